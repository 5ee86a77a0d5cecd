//! Questions in streams, each after its length. One at a time of a connection is answered.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_dns::Transport;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::{Answer, LARGEST, Reply, Server};

/// The wait after an error of the listener, such as a lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until dropped.
pub(super) async fn serve(server: Arc<Server>, listener: TcpListener) {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a DNS connection");
                sleep(PAUSE).await;
                continue;
            }
        };
        let client = from.ip();
        if !server.is_client(client) {
            server.refuse(client);
            continue;
        }
        let Some(place) = server.connections.admit(client) else {
            server.stats.count(Answer::Limited);
            continue;
        };
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            let _ended = answer(&server, stream, from).await;
            drop(place);
        });
    }
}

/// Answers the questions of a connection until it ends, or is silent for too long.
async fn answer(server: &Server, mut stream: TcpStream, from: SocketAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let packet = timeout(server.limits.idle, read(&mut stream)).await??;
        let reply = match server.decide(&packet, from, Transport::Tcp) {
            Reply::Now(reply) => Some(reply),
            Reply::Later(relayed, place) => {
                let reply = server.ask(&packet, relayed, Transport::Tcp).await;
                drop(place);
                reply
            }
            Reply::Nothing => None,
        };
        let Some(reply) = reply else { return Ok(()) };
        timeout(server.limits.idle, write(&mut stream, &reply)).await??;
    }
}

/// Reads one message.
///
/// # Errors
/// The stream ends, or the message is larger than any question.
pub(super) async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    read_at_most(stream, LARGEST).await
}

/// As [`read`], of at most so many bytes.
pub(super) async fn read_at_most(stream: &mut TcpStream, most: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too long"));
    }
    let mut packet = vec![0; length];
    stream.read_exact(&mut packet).await?;
    Ok(packet)
}

/// Writes one message.
pub(super) async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}
