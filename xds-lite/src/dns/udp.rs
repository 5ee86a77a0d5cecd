//! Questions in datagrams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_dns::{Failure, Transport};
use tokio::net::UdpSocket;
use tokio::time::sleep;

use super::{LARGEST, Reply, Server};

/// The wait after an error of the socket, such as a lack of memory in the kernel.
const PAUSE: Duration = Duration::from_millis(10);

/// Serves until dropped.
pub(super) async fn serve(server: Arc<Server>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; LARGEST];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, from)) => {
                let packet = buffer.get(..length).unwrap_or_default();
                if let Some(reply) = reply(&server, &socket, packet, from) {
                    send(&socket, &reply, from).await;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "cannot receive a DNS question");
                sleep(PAUSE).await;
            }
        }
    }
}

/// The answer that is known at once. Others are sent by a task of their own, as many as there are places.
fn reply(server: &Arc<Server>, socket: &Arc<UdpSocket>, packet: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
    if !server.is_client(from.ip()) {
        let is_told = server.refuse(from.ip());
        return is_told.then(|| isthmus_dns::failure(packet, Failure::Refused, Transport::Udp)).flatten();
    }
    match server.decide(packet, from, Transport::Udp) {
        Reply::Later(relayed, place) => {
            let (server, socket, packet) = (Arc::clone(server), Arc::clone(socket), packet.to_vec());
            tokio::spawn(async move {
                let reply = server.ask(&packet, relayed, Transport::Udp).await;
                drop(place);
                if let Some(reply) = reply {
                    send(&socket, &reply, from).await;
                }
            });
            None
        }
        Reply::Now(reply) => Some(reply),
        Reply::Nothing => None,
    }
}

/// A datagram that cannot be sent is as one that is lost: the client asks again.
async fn send(socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(reply, to).await {
        tracing::debug!(%to, %error, "cannot send a DNS answer");
    }
}
