//! One attempt to reach one endpoint: connect, send the client's first flight, and, while the connection
//! can still move to another endpoint, wait for the server's first bytes. Which endpoint, and whether
//! there is another attempt, is the story's business (`conn`).

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use socket2::Socket;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::account::Account;
use crate::config::settings::Tcp;
use crate::peek::{SCRATCH, poll_through};
use crate::reason::{Alert, Reason};
use crate::route::Route;
use crate::snapshot::{Endpoint, Snapshot};
use crate::socket;
use crate::worker::Worker;

/// A server that took the first flight.
#[derive(Debug)]
pub struct Server {
    /// Its socket.
    pub stream: TcpStream,
    /// What it said already.
    pub said: Said,
}

/// What a server said before the relay began.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing that was read.
    Nothing,
    /// These bytes.
    Bytes(Vec<u8>),
    /// It closed.
    Closed,
    /// It reset.
    Reset,
}

/// Why an attempt failed.
#[derive(Debug)]
pub enum Failure {
    /// The endpoint was not reached: `connect_refused`, `connect_timeout`, `connect_failed` or
    /// `local_resources`.
    Unreached(Reason),
    /// The endpoint took the hello and turned it down before its first byte of an answer.
    Rejected(Server),
    /// The client left meanwhile.
    ClientGone,
}

/// What one attempt goes by: a route, an endpoint of its service, and the tables that both are from.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The route.
    pub route: &'a Route,
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// The tables.
    pub tables: &'a Snapshot,
}

/// One attempt.
#[derive(Debug)]
pub struct Attempt<'a> {
    /// Where to.
    pub step: Step<'a>,
    /// What is sent first.
    pub wire: Cow<'a, [u8]>,
    /// How long connecting may take.
    pub patience: Duration,
    /// Whether the client can still be moved to another endpoint afterwards.
    pub may_move: bool,
}

/// Connects and sends what comes first; then, if the client can still be moved, waits for an answer.
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
    if worker.process.is_own(attempt.step.endpoint.address) {
        return Err(Failure::Unreached(Reason::Loop));
    }
    let stream = match timeout(attempt.patience, dial(&attempt, worker)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(Failure::Unreached(reason_of(&error))),
        Err(_) => return Err(Failure::Unreached(Reason::ConnectTimeout)),
    };
    account.connected(attempt.step, attempt.wire.len());
    if !attempt.may_move {
        return Ok(Server { stream, said: Said::Nothing });
    }
    let server = answer(stream, client).await?;
    account.answered(&server.said);
    Ok(server)
}

async fn dial(attempt: &Attempt<'_>, worker: &Worker) -> io::Result<TcpStream> {
    let socket = start(attempt.step, worker)?;
    // On a near network the handshake is over when connect returns: the hello goes out at once, and one
    // wait for the socket is saved.
    let sent = match send(&socket, &attempt.wire, SendFlags::NOSIGNAL) {
        Ok(sent) => sent,
        Err(Errno::AGAIN | Errno::NOTCONN) => 0,
        Err(error) => return Err(error.into()),
    };
    let stream = TcpStream::from_std(socket.into())?;
    let mut rest = attempt.wire.get(sent..).unwrap_or_default();
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(stream)
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

fn reason_of(error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Reason::ConnectRefused,
        io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        _ if socket::is_local_resource(error) => Reason::LocalResources,
        _ => Reason::ConnectFailed,
    }
}

/// Waits for the server's first bytes, as long as nobody else has spoken: a client that sends more than
/// its hello ends the wait, since what it sent cannot be taken back from this server.
///
/// # Errors
/// [`Failure::Rejected`] when the server closes, resets or answers with an alert that says "not here";
/// [`Failure::ClientGone`] when the client resets.
async fn answer(stream: TcpStream, client: &TcpStream) -> Result<Server, Failure> {
    let mut server = Server { stream, said: Said::Nothing };
    let mut first = Vec::new();
    let mut client_may_speak = true;
    let heard = std::future::poll_fn(|cx| {
        if client_may_speak {
            match poll_client(client, cx) {
                Poll::Ready(Client::Spoke) => return Poll::Ready(Heard::Client),
                Poll::Ready(Client::Reset) => return Poll::Ready(Heard::ClientReset),
                Poll::Ready(Client::Closed) => client_may_speak = false,
                Poll::Pending => {}
            }
        }
        poll_server(&mut server.stream, cx, &mut first)
    })
    .await;
    match heard {
        Heard::Client if first.is_empty() => Ok(server),
        Heard::Client | Heard::Server => {
            server.said = Said::Bytes(first);
            Ok(server)
        }
        Heard::ClientReset => Err(Failure::ClientGone),
        Heard::Rejection(said) => {
            server.said = if first.is_empty() { said } else { Said::Bytes(first) };
            Err(Failure::Rejected(server))
        }
    }
}

enum Heard {
    Client,
    ClientReset,
    Server,
    Rejection(Said),
}

enum Client {
    Spoke,
    Closed,
    Reset,
}

/// Looks without taking: the bytes are the relay's.
fn poll_client(client: &TcpStream, cx: &mut Context<'_>) -> Poll<Client> {
    let mut byte = [0];
    match client.poll_peek(cx, &mut tokio::io::ReadBuf::new(&mut byte)) {
        Poll::Ready(Ok(0)) => Poll::Ready(Client::Closed),
        Poll::Ready(Ok(_)) => Poll::Ready(Client::Spoke),
        Poll::Ready(Err(_)) => Poll::Ready(Client::Reset),
        Poll::Pending => Poll::Pending,
    }
}

fn poll_server(stream: &mut TcpStream, cx: &mut Context<'_>, first: &mut Vec<u8>) -> Poll<Heard> {
    loop {
        let read = poll_through(stream, cx, SCRATCH, |bytes| {
            first.extend_from_slice(bytes);
            bytes.len()
        });
        match read {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(_)) => return Poll::Ready(Heard::Rejection(Said::Reset)),
            Poll::Ready(Ok(0)) => return Poll::Ready(Heard::Rejection(Said::Closed)),
            Poll::Ready(Ok(_)) => match says_elsewhere(first) {
                None => {}
                Some(true) => return Poll::Ready(Heard::Rejection(Said::Nothing)),
                Some(false) => return Poll::Ready(Heard::Server),
            },
        }
    }
}

/// Whether a server's first record is a fatal alert that another endpoint might not send: internal_error
/// or unrecognized_name. `None` while that cannot be told.
fn says_elsewhere(bytes: &[u8]) -> Option<bool> {
    const ALERTS: [Alert; 2] = [Alert::InternalError, Alert::UnrecognizedName];
    let shape: [fn(u8) -> bool; 7] = [
        |kind| kind == 21,
        |major| major == 3,
        |_| true,
        |high| high == 0,
        |low| low == 2,
        |level| level == 2,
        |alert| ALERTS.iter().any(|known| *known as u8 == alert),
    ];
    if bytes.iter().zip(shape).any(|(byte, fits)| !fits(*byte)) {
        return Some(false);
    }
    (bytes.len() >= shape.len()).then_some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_fatal_alerts_send_the_hello_elsewhere() {
        for (alert, elsewhere) in [(80, true), (112, true), (40, false), (48, false), (49, false), (0, false)]
        {
            let record = [21, 3, 3, 0, 2, 2, alert];
            assert_eq!(says_elsewhere(&record), Some(elsewhere), "alert {alert}");
            for end in 0..6 {
                assert_eq!(says_elsewhere(&record[..end]), None, "prefix of {end}");
            }
        }
        assert_eq!(says_elsewhere(&[21, 3, 3, 0, 2, 1, 80]), Some(false), "a warning");
        assert_eq!(says_elsewhere(&[22, 3, 3]), Some(false), "a handshake");
    }
}
