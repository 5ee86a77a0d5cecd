//! The Unix socket of an agent: where it is put, and which users may come by it. The kernel says who they are; what
//! others send is thrown away unread.

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

/// How often it is tried to put the socket where it cannot be.
const RETRY: Duration = Duration::from_secs(5);

/// Users at once that are told why they may not register; beyond, connections of such are closed at once.
const REFUSALS: usize = 16;
/// From accept to the end of such a connection.
const REFUSAL: Duration = Duration::from_secs(1);
/// What is thrown away of what they send: a request, and some.
const DISCARDED: u64 = 128 << 10;

/// The socket, and who may come by it.
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
        tracing::debug!(user, "a user that may not register came by the agent's socket");
        if let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() {
            tokio::spawn(async move {
                // Whoever does not read it has lost nothing.
                let _told = timeout(REFUSAL, refuse(stream, user)).await;
                drop(permit);
            });
        }
        Ok(None)
    }
}

/// Answers once something was sent, and closes once the client has: an answer that comes before its request, or a close
/// with unread bytes, hides from HTTP clients what is said.
async fn refuse(mut stream: UnixStream, user: u32) -> io::Result<()> {
    let why = format!(
        "{{\"error\": \"user {user} may not register here; add it to registration.users of the agent's file\"}}\n"
    );
    let length = why.len();
    let head = "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nConnection: close\r\n";
    // Not `readable`, which may be true of a connection that has sent nothing.
    stream.read_u8().await?;
    stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n{why}").as_bytes()).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(DISCARDED), &mut tokio::io::sink()).await.map(drop)
}

/// Puts the socket there, however often that has to be tried.
pub(super) async fn bound(local: Local) -> Registrars {
    let mut said = None;
    loop {
        match bind(&local.path, !local.users.is_empty()) {
            Ok(listener) => {
                tracing::info!(socket = %local.path.display(), "VMs register here");
                let mut users = local.users;
                users.extend([0, geteuid().as_raw()]);
                return Registrars { listener, users, refusals: Arc::new(Semaphore::new(REFUSALS)) };
            }
            Err(error) => {
                let why = error.to_string();
                if said.as_ref() != Some(&why) {
                    tracing::error!(
                        socket = %local.path.display(),
                        "cannot serve the registration socket: {why}; write another path under registration.socket"
                    );
                }
                said = Some(why);
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// `is_shared`: users besides the own one come by it. Which ones, the kernel says; the file's mode only lets them try.
fn bind(path: &Path, is_shared: bool) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something else than a socket is there",
            ));
        }
        // One that nobody listens on is left of an agent that has ended.
        Ok(_) => match Blocking::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) => return Err(error),
            Ok(_) => {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another agent serves it"));
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
