//! Makes one attempt to reach one endpoint: connects, sends the client's first flight and, while the connection can
//! still move to another endpoint, waits for the server's first bytes. `conn` chooses the endpoint and decides on
//! further attempts.

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use isthmus_health::tcp::has_no_way;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use socket2::Socket;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::account::Account;
use crate::answer::{Failure, Reply, Server, answer, reset_of};
use crate::config::settings::Tcp;
use crate::family::Families;
use crate::leg::Leg;
use crate::originate::{self, Upstream};
use crate::pick::Step;
use crate::reason::Reason;
use crate::snapshot::Endpoint;
use crate::socket;
use crate::worker::{Process, Worker};
use isthmus_model::services::defaults;

/// One attempt.
#[derive(Debug)]
pub struct Attempt<'a> {
    /// The endpoint.
    pub step: Step<'a>,
    /// The bytes sent first.
    pub wire: Cow<'a, [u8]>,
    /// How many of the client's bytes are among them.
    pub sent: usize,
    /// TLS to begin with the endpoint, and the application's first bytes for it.
    pub(crate) tls: Option<(Upstream, &'a [u8])>,
    /// How long connecting may take.
    pub patience: Duration,
    /// The leg that the endpoint is, without TLS of the gateway's own.
    pub(crate) leg: fn(TcpStream) -> Leg,
    /// Whether the connection can still move to another endpoint afterwards.
    pub may_move: bool,
}

impl Attempt<'_> {
    /// Waits until the client does not want the endpoint any more.
    async fn given_up_by(&self, client: &TcpStream) {
        match self.tls {
            Some((_, first)) => originate::given_up_by(client, first).await,
            None => reset_of(client).await,
        }
    }
}

/// Connects and sends the first bytes; then, if the connection can still move, waits for an answer.
///
/// # Errors
/// Why this endpoint will not serve the client.
pub async fn connect(
    attempt: Attempt<'_>,
    client: &TcpStream,
    account: &mut Account,
    worker: &Worker,
) -> Result<Server, Failure> {
    account.attempt(attempt.step);
    let target = attempt.step.endpoint.address;
    if worker.process.is_own(target) || attempt.step.tables.bindings.have(target.ip()) {
        return Err(Failure::Unreached(Reason::Loop));
    }
    let dialled = tokio::select! {
        biased;
        dialled = timeout(attempt.patience, dial(&attempt, worker)) => dialled,
        () = attempt.given_up_by(client) => return Err(Failure::ClientGone),
    };
    let (to, families) = (attempt.step.endpoint.address, &worker.process.families);
    let (stream, sent) = match dialled {
        Ok(Ok(connected)) => connected,
        Ok(Err(error)) => return Err(Failure::Unreached(reason_of(&error, to, families))),
        Err(_) => return Err(Failure::Unreached(Reason::ConnectTimeout)),
    };
    families.works(to.ip());
    account.connected(attempt.step, attempt.sent);
    let sent = tokio::select! {
        biased;
        sent = send_rest(&stream, attempt.wire.get(sent..).unwrap_or_default()) => sent,
        () = attempt.given_up_by(client) => return Err(Failure::ClientGone),
    };
    if let Some((tls, first)) = attempt.tls {
        sent.map_err(|_| Failure::Refused(Reason::UpstreamRejected))?;
        let tls = (tls, attempt.step.endpoint);
        return originate::open(stream, tls, (client, first), attempt.patience, account, worker).await;
    }
    match (sent, attempt.may_move) {
        (Ok(()), true) => {
            let half_closed = || account.conn.set_half_closed(worker.live.coarse_now());
            let is_over = || account.conn.is_hello_revoked();
            let server = answer(stream, client, half_closed, is_over).await?;
            account.answered(server.said.length());
            Ok(server)
        }
        (Ok(()), false) => Ok(Server { leg: (attempt.leg)(stream), said: Reply::Nothing }),
        // The endpoint already had a part of the hello, so this is not a refused connect.
        (Err(_), true) => Err(Failure::Rejected(Server { leg: (attempt.leg)(stream), said: Reply::Reset })),
        (Err(_), false) => Ok(Server { leg: (attempt.leg)(stream), said: Reply::Reset }),
    }
}

/// Returns the connect timeout; another cluster may be far away.
pub(crate) fn patience(endpoint: &Endpoint, connect: Duration) -> Duration {
    if endpoint.cluster().is_some() { connect.max(defaults::CONNECT_ACROSS) } else { connect }
}

/// Connects and sends as much as the socket accepts at once; accepted bytes show that it is connected.
async fn dial(attempt: &Attempt<'_>, worker: &Worker) -> io::Result<(TcpStream, usize)> {
    let socket = start(attempt.step, worker)?;
    // On a near network the handshake is complete when connect returns: the hello is sent at once, which saves one
    // wait for the socket.
    let mut sent = match send(&socket, &attempt.wire, SendFlags::NOSIGNAL) {
        Ok(sent) => sent,
        Err(Errno::AGAIN | Errno::NOTCONN) => 0,
        Err(error) => return Err(error.into()),
    };
    let stream = TcpStream::from_std(socket.into())?;
    if attempt.wire.is_empty() {
        stream.writable().await?;
        return stream.take_error()?.map_or(Ok((stream, 0)), Err);
    }
    while sent == 0 {
        stream.writable().await?;
        sent = write(&stream, &attempt.wire)?;
    }
    Ok((stream, sent))
}

/// Sends the rest. An endpoint that is slow to take a large flight counts as connected: other timeouts apply.
async fn send_rest(stream: &TcpStream, mut rest: &[u8]) -> io::Result<()> {
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
