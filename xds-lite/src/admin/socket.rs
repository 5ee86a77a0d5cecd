//! Binds the agent's Unix socket and admits its users, whom the kernel authenticates. Requests of other users are
//! discarded and answered with an error.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as Blocking;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::geteuid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use isthmus_http::Listener;

use super::Local;

/// Pause before a failed bind is retried.
const RETRY: Duration = Duration::from_secs(5);

/// Refused connections at once that get an answer; beyond, they are closed at once.
const REFUSALS: usize = 16;
/// Longest duration of a refused connection.
const REFUSAL: Duration = Duration::from_secs(1);
/// Bytes discarded of a refused connection: more than a whole request.
const DISCARDED: u64 = 128 << 10;

/// The socket, and the users that may use it.
pub(super) struct Registrars {
    listener: UnixListener,
    users: BTreeSet<u32>,
    refusals: Arc<Semaphore>,
}

impl Listener for Registrars {
    type Stream = UnixStream;
    type Client = u32;

    async fn accept(&self) -> io::Result<Option<(UnixStream, u32)>> {
        let (stream, _) = self.listener.accept().await?;
        let user = stream.peer_cred()?.uid();
        if self.users.contains(&user) {
            return Ok(Some((stream, user)));
        }
        tracing::debug!(user, "refused a connection to the registration socket: user not allowed");
        if let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() {
            tokio::spawn(async move {
                // A client that does not read the answer loses nothing.
                let _answered = timeout(REFUSAL, refuse(stream, user)).await;
                drop(permit);
            });
        }
        Ok(None)
    }
}

/// Answers after the first byte of the request, and closes after the client has: HTTP clients do not see an answer that
/// precedes its request, nor one whose connection was closed with unread bytes.
async fn refuse(mut stream: UnixStream, user: u32) -> io::Result<()> {
    let why = format!(
        "{{\"error\": \"user {user} may not register here; add it to registration.users of the agent's file\"}}\n"
    );
    let length = why.len();
    let head = "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nConnection: close\r\n";
    // Not `readable`, which may be true before the client has sent anything.
    stream.read_u8().await?;
    stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n{why}").as_bytes()).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(DISCARDED), &mut tokio::io::sink()).await.map(drop)
}

/// Binds the socket, retrying until it succeeds; logs each new error once.
pub(super) async fn bound(local: Local) -> Registrars {
    let mut logged = None;
    loop {
        match bind(&local.path, !local.users.is_empty()) {
            Ok(listener) => {
                tracing::info!(socket = %local.path.display(), "serving the registration socket");
                let mut users = local.users;
                users.extend([0, geteuid().as_raw()]);
                return Registrars { listener, users, refusals: Arc::new(Semaphore::new(REFUSALS)) };
            }
            Err(error) => {
                let why = error.to_string();
                if logged.as_ref() != Some(&why) {
                    tracing::error!(
                        socket = %local.path.display(),
                        "cannot serve the registration socket: {why}; write another path under registration.socket"
                    );
                }
                logged = Some(why);
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// `is_shared`: other users may connect. The file's mode lets all of them try; the kernel tells which user it is.
fn bind(path: &Path, is_shared: bool) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket"));
        }
        // A socket that nothing listens on is a leftover of an earlier agent.
        Ok(_) => match Blocking::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) => return Err(error),
            Ok(_) => {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves it"));
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    let mode = if is_shared { 0o666 } else { 0o600 };
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(listener)
}
