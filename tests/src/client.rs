//! Byte-level clients: they connect, send, and report exactly how the connection ended.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use crate::wait::DEADLINE;

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By a FIN.
    Fin,
    /// By a reset.
    Reset,
    /// Still open at the deadline.
    Open,
}

/// A fatal alert in one record.
#[must_use]
pub fn alert(code: u8) -> Vec<u8> {
    vec![21, 3, 3, 0, 2, 2, code]
}

/// Connects; reads and writes fail after [`DEADLINE`].
#[must_use]
#[track_caller]
pub fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    prepare(&stream);
    stream
}

/// Dials what is refused by a reset, and returns how long that took. The reset may come before `connect` returns.
#[track_caller]
pub fn dial_reset(address: SocketAddr) -> Duration {
    let begun = Instant::now();
    match TcpStream::connect(address) {
        Ok(mut stream) => {
            prepare(&stream);
            assert_eq!(rest(&mut stream), (Vec::new(), End::Reset), "{address}");
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{address}: {error}"),
    }
    begun.elapsed()
}

/// Connects from another address of this machine.
#[must_use]
#[track_caller]
pub fn dial_from(source: IpAddr, address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    let stream = TcpStream::from(socket);
    prepare(&stream);
    stream
}

/// Connects and sends.
#[must_use]
#[track_caller]
pub fn send(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = dial(address);
    // The gateway may have refused and closed already.
    let _sent = stream.write_all(bytes);
    stream
}

pub(crate) fn prepare(stream: &TcpStream) {
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
}

/// Reads to the end.
pub fn rest(stream: &mut TcpStream) -> (Vec<u8>, End) {
    let mut bytes = Vec::new();
    let end = match stream.read_to_end(&mut bytes) {
        Ok(_) => End::Fin,
        Err(error) => end_of(&error),
    };
    (bytes, end)
}

/// Reads to the end, for at most `limit`.
pub fn rest_within(stream: &mut TcpStream, limit: Duration) -> (Vec<u8>, End) {
    stream.set_read_timeout(Some(limit)).unwrap();
    let answer = rest(stream);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    answer
}

/// How the stream ended, according to an error.
#[must_use]
pub fn end_of(error: &io::Error) -> End {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => End::Open,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => End::Reset,
        other => panic!("{other:?}: {error}"),
    }
}

/// Closes a connection with a reset.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Reads exactly `size` bytes.
pub fn read_exactly(stream: &mut TcpStream, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    stream.read_exact(&mut bytes).unwrap_or_else(|error| panic!("wanted {size} bytes: {error}"));
    bytes
}

/// Sends a text and expects it back.
#[track_caller]
pub fn echo(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).unwrap();
    assert_eq!(read_exactly(stream, text.len()), text);
}
