//! Asks one server one question, from a port of its own.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use isthmus_dns::{Answered, Relayed, Transport};
use tokio::net::{TcpSocket, UdpSocket};

use super::asked::OwnSockets;
use super::tcp;

/// More than a server sends to whom takes 1 232 bytes.
const LARGEST_DATAGRAM: usize = 4_096;
const LARGEST_STREAM: usize = 65_535;
/// Packets that are no answer, after which the server counts as one that does not answer.
const IGNORED: usize = 64;

/// What a server has answered.
#[derive(Debug)]
pub(super) enum Exchanged {
    /// Its answer.
    Answered(Vec<u8>),
    /// Its word that it cannot answer.
    Failed(Vec<u8>),
}

/// Asks a server. `sockets` knows the sending socket for as long as it is open.
///
/// # Errors
/// The server cannot be reached, or sends something else.
pub(super) async fn exchange(
    relayed: &Relayed,
    server: SocketAddr,
    transport: Transport,
    sockets: &OwnSockets,
) -> io::Result<Exchanged> {
    let id = random_id()?;
    match transport {
        Transport::Udp => over_udp(relayed, server, id, sockets).await,
        Transport::Tcp => over_tcp(relayed, server, id, sockets).await,
    }
}

async fn over_udp(
    relayed: &Relayed,
    server: SocketAddr,
    id: u16,
    sockets: &OwnSockets,
) -> io::Result<Exchanged> {
    // The kernel chooses a port at random, and drops what comes from elsewhere.
    let socket = UdpSocket::bind((unspecified(server), 0)).await?;
    socket.connect(server).await?;
    let _known = sockets.add(socket.local_addr()?);
    socket.send(&relayed.packet(id)).await?;
    let mut buffer = vec![0; LARGEST_DATAGRAM];
    for _ in 0..IGNORED {
        let length = socket.recv(&mut buffer).await?;
        let packet = buffer.get(..length).unwrap_or_default();
        if let Some(exchanged) = judge(relayed, id, packet) {
            return Ok(exchanged);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "it sends packets that are no answer"))
}

async fn over_tcp(
    relayed: &Relayed,
    server: SocketAddr,
    id: u16,
    sockets: &OwnSockets,
) -> io::Result<Exchanged> {
    let socket = if server.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    let mut stream = socket.connect(server).await?;
    let _known = sockets.add(stream.local_addr()?);
    tcp::write(&mut stream, &relayed.packet(id)).await?;
    let packet = tcp::read_at_most(&mut stream, LARGEST_STREAM).await?;
    judge(relayed, id, &packet)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it sends something that is no answer"))
}

fn judge(relayed: &Relayed, id: u16, packet: &[u8]) -> Option<Exchanged> {
    match relayed.answered_by(id, packet) {
        Answered::Yes => Some(Exchanged::Answered(packet.to_vec())),
        Answered::Failed => Some(Exchanged::Failed(packet.to_vec())),
        Answered::No => None,
    }
}

fn unspecified(server: SocketAddr) -> IpAddr {
    if server.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

fn random_id() -> io::Result<u16> {
    let mut id = [0; 2];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| io::Error::other("no random numbers"))?;
    Ok(u16::from_be_bytes(id))
}
