//! Opens one connection to one endpoint and sends the first bytes, with the fewest system calls. Nothing is sent before
//! the endpoint is connected.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use isthmus_health::tcp::has_no_way;
use isthmus_model::services::defaults;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use socket2::Socket;
use tokio::net::{TcpSocket, TcpStream};

use crate::config::settings::Tcp;
use crate::family::Families;
use crate::pick::Step;
use crate::reason::Reason;
use crate::snapshot::Endpoint;
use crate::socket;
use crate::worker::{Process, Worker};

/// A connected endpoint.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) stream: TcpStream,
    /// How many of the first bytes it has.
    pub(crate) sent: usize,
    /// How long connecting took.
    pub(crate) took: Duration,
}

/// Returns the connect timeout; another cluster may be far away.
pub(crate) fn patience(endpoint: &Endpoint, connect: Duration) -> Duration {
    if endpoint.cluster().is_some() { connect.max(defaults::CONNECT_ACROSS) } else { connect }
}

/// Connects and sends as much as the socket accepts at once; accepted bytes show that it is connected.
///
/// # Errors
/// Why the endpoint was not reached.
pub(crate) async fn dial(step: Step<'_>, wire: &[u8], worker: &Worker) -> Result<Connected, Reason> {
    let (begun, to) = (Instant::now(), step.endpoint.address);
    match open(step, wire, worker).await {
        Ok((stream, sent)) => {
            worker.process.families.works(to.ip());
            Ok(Connected { stream, sent, took: begun.elapsed() })
        }
        Err(error) => Err(reason_of(&error, to, &worker.process.families)),
    }
}

async fn open(step: Step<'_>, wire: &[u8], worker: &Worker) -> io::Result<(TcpStream, usize)> {
    let socket = start(step, worker)?;
    // On a near network the handshake is complete when connect returns: the hello is sent at once, which saves one
    // wait for the socket.
    let mut sent = match send(&socket, wire, SendFlags::NOSIGNAL) {
        Ok(sent) => sent,
        Err(Errno::AGAIN | Errno::NOTCONN) => 0,
        Err(error) => return Err(error.into()),
    };
    let stream = TcpStream::from_std(socket.into())?;
    if wire.is_empty() {
        stream.writable().await?;
        return stream.take_error()?.map_or(Ok((stream, 0)), Err);
    }
    while sent == 0 {
        stream.writable().await?;
        sent = write(&stream, wire)?;
    }
    Ok((stream, sent))
}

/// Sends the rest. An endpoint that is slow to take a large flight counts as connected: other timeouts apply.
pub(crate) async fn send_rest(stream: &TcpStream, mut rest: &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        stream.writable().await?;
        rest = rest.get(write(stream, rest)?..).unwrap_or_default();
    }
    Ok(())
}

/// Writes what the socket accepts, possibly nothing.
fn write(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match stream.try_write(bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        wrote => wrote,
    }
}

/// Starts a connect, from the next source address that has a port left.
fn start(step: Step<'_>, worker: &Worker) -> io::Result<Socket> {
    let (to, tcp) = (step.endpoint.address, &worker.process.fixed.tcp);
    let sources = &step.tables.live.upstream.source_addresses;
    let usable = || sources.iter().filter(|source| source.is_ipv4() == to.is_ipv4());
    let count = usable().count();
    if count == 0 {
        return begin(to, None, tcp);
    }
    let first = worker.next_source.fetch_add(1, Relaxed) % count;
    let mut outcome = Err(Errno::ADDRNOTAVAIL.into());
    for source in usable().cycle().skip(first).take(count) {
        outcome = begin(to, Some(*source), tcp);
        if !matches!(&outcome, Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable) {
            break;
        }
    }
    outcome
}

fn begin(to: SocketAddr, from: Option<IpAddr>, tcp: &Tcp) -> io::Result<Socket> {
    let socket = socket::upstream(to, from, tcp)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
        _ => Ok(socket),
    }
}

/// Opens a connection of the gateway itself, in the same way as for clients; sends nothing.
///
/// # Errors
/// The kernel's error, or that the address is this gateway's own.
pub(crate) async fn plain(to: SocketAddr, process: &Process) -> io::Result<TcpStream> {
    if process.is_own(to) {
        return Err(io::Error::other("the address is this gateway's own"));
    }
    let from = {
        let tables = process.tables.load();
        let mut sources = tables.live.upstream.source_addresses.iter();
        sources.find(|source| source.is_ipv4() == to.is_ipv4()).copied()
    };
    let socket = socket::upstream(to, from, &process.fixed.tcp)?;
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

/// Maps an error to a reason. Without a route to an address family, its other endpoints are tried last, too.
fn reason_of(error: &io::Error, to: SocketAddr, families: &Families) -> Reason {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Reason::ConnectRefused,
        io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        _ if has_no_way(error, to) => {
            if families.failed(to.ip(), socket::now()) {
                let family = if to.is_ipv4() { "IPv4" } else { "IPv6" };
                tracing::warn!(address = %to, %error, "no route to this address; trying {family} endpoints last for a while; is {family} off?");
            }
            Reason::ConnectFailed
        }
        _ if socket::is_local_resource(error) => Reason::LocalResources,
        _ => Reason::ConnectFailed,
    }
}
