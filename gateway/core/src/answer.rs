//! Waits for a server's first bytes. Until they arrive, and while the client has sent no more than its hello, the
//! connection can still move to another endpoint. Reads no more than is needed to decide.

use std::net::Shutdown;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::leg::Leg;
use crate::live::Conn;
use crate::memory::Flight;
use crate::peek::{SCRATCH, poll_through};
use crate::reason::{Alert, Reason};

/// A server that has the client's first flight.
#[derive(Debug)]
pub struct Server {
    /// Its side of the connection.
    pub leg: Leg,
    /// What it has sent so far.
    pub said: Reply,
}

/// What a server sent before the relay began.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing was read.
    Nothing,
    /// These bytes.
    Bytes(Vec<u8>),
    /// It closed.
    Closed,
    /// It reset.
    Reset,
}

impl Reply {
    /// Number of bytes that the relay forwards first.
    pub(crate) fn length(&self) -> usize {
        match self {
            Reply::Bytes(bytes) => bytes.len(),
            Reply::Nothing | Reply::Closed | Reply::Reset => 0,
        }
    }
}

/// Why an attempt failed.
#[derive(Debug)]
pub enum Failure {
    /// The endpoint was not reached: `connect_refused`, `connect_timeout`, `connect_failed`, `local_resources`, or
    /// `tls_failed` where it did not prove to be the destination.
    Unreached(Reason),
    /// The endpoint was reached, and refused this caller or closed before an application's first byte.
    Refused(Reason),
    /// The endpoint took the hello and rejected it before its first byte of an answer.
    Rejected(Server),
    /// The endpoint took the hello and sent nothing for the first-byte timeout.
    Silent,
    /// Another cluster's gateway, which ends the TLS, has reached no endpoint: none of these bytes of the application was
    /// delivered.
    Undelivered(Flight),
    /// The endpoint failed after bytes of the application that it may have delivered.
    Lost(Reason),
    /// The service or the endpoint has as many connections as it may: `limit_pending`, `limit_endpoint`.
    Limited(Reason),
    /// The client disconnected meanwhile.
    ClientGone,
}

/// Waits for the server's first bytes. A client that sends more than its hello ends the wait, because those bytes
/// cannot be moved to another server. So does `is_over`: the hello is no longer kept for a replay.
///
/// # Errors
/// [`Failure::Rejected`] when the server closes, resets or answers with an alert that says "not here";
/// [`Failure::ClientGone`] when the client resets.
pub(crate) async fn answer(
    stream: TcpStream,
    client: &TcpStream,
    on_client_closed: impl Fn(),
    is_over: impl Fn() -> bool,
) -> Result<Server, Failure> {
    let mut server = Server { leg: Leg::passthrough(stream), said: Reply::Nothing };
    let mut first = Vec::new();
    let mut client_may_speak = true;
    let heard = std::future::poll_fn(|cx| {
        if is_over() {
            return Poll::Ready(Event::Client);
        }
        if client_may_speak {
            match poll_client(client, cx) {
                Poll::Ready(Client::Spoke) => return Poll::Ready(Event::Client),
                Poll::Ready(Client::Reset) => return Poll::Ready(Event::ClientReset),
                Poll::Ready(Client::Closed) => {
                    // Forwarded at once; another endpoint would get it again.
                    client_may_speak = false;
                    let _shut = SockRef::from(&server.leg.stream).shutdown(Shutdown::Write);
                    on_client_closed();
                }
                Poll::Pending => {}
            }
        }
        poll_server(&mut server.leg.stream, cx, &mut first)
    })
    .await;
    match heard {
        Event::Client if first.is_empty() => Ok(server),
        Event::Client | Event::Server => {
            server.said = Reply::Bytes(first);
            Ok(server)
        }
        Event::ClientReset => Err(Failure::ClientGone),
        Event::Rejection(said) => {
            server.said = if first.is_empty() { said } else { Reply::Bytes(first) };
            Err(Failure::Rejected(server))
        }
    }
}

/// Waits for an answer within the first-byte timeout, if there is one; `None` once it has passed. The table of live
/// connections does not end the connection meanwhile: it can still move.
pub(crate) async fn in_time<T>(
    limit: Option<Duration>,
    conn: &Conn,
    answer: impl Future<Output = T>,
) -> Option<T> {
    let Some(limit) = limit else { return Some(answer.await) };
    let _timed_here = conn.time_first_byte();
    timeout(limit, answer).await.ok()
}

enum Event {
    Client,
    ClientReset,
    Server,
    Rejection(Reply),
}

/// What a client has done while its server is awaited.
pub(crate) enum Client {
    Spoke,
    Closed,
    Reset,
}

/// Waits until the client resets; forever if it has sent bytes or closed, which hides a later reset.
pub(crate) async fn reset_of(client: &TcpStream) {
    let heard = std::future::poll_fn(|cx| poll_client(client, cx)).await;
    if !matches!(heard, Client::Reset) {
        std::future::pending::<()>().await;
    }
}

/// Waits until a client that has not sent a byte closes or resets; forever once it has sent one.
pub(crate) async fn end_of_silent(client: &TcpStream) {
    let heard = std::future::poll_fn(|cx| poll_client(client, cx)).await;
    if matches!(heard, Client::Spoke) {
        std::future::pending::<()>().await;
    }
}

/// Peeks without consuming: the bytes belong to the relay.
pub(crate) fn poll_client(client: &TcpStream, cx: &mut Context<'_>) -> Poll<Client> {
    let mut byte = [0];
    match client.poll_peek(cx, &mut tokio::io::ReadBuf::new(&mut byte)) {
        Poll::Ready(Ok(0)) => Poll::Ready(Client::Closed),
        Poll::Ready(Ok(_)) => Poll::Ready(Client::Spoke),
        Poll::Ready(Err(_)) => Poll::Ready(Client::Reset),
        Poll::Pending => Poll::Pending,
    }
}

fn poll_server(stream: &mut TcpStream, cx: &mut Context<'_>, first: &mut Vec<u8>) -> Poll<Event> {
    loop {
        let read = poll_through(stream, cx, SCRATCH, |bytes| {
            first.extend_from_slice(bytes);
            bytes.len()
        });
        match read {
            Poll::Pending => return Poll::Pending,
            // An incomplete alert counts as an answer.
            Poll::Ready(Err(_) | Ok(0)) if !first.is_empty() => return Poll::Ready(Event::Server),
            Poll::Ready(Err(_)) => return Poll::Ready(Event::Rejection(Reply::Reset)),
            Poll::Ready(Ok(0)) => return Poll::Ready(Event::Rejection(Reply::Closed)),
            Poll::Ready(Ok(_)) => match says_elsewhere(first) {
                None => {}
                Some(true) => return Poll::Ready(Event::Rejection(Reply::Nothing)),
                Some(false) => return Poll::Ready(Event::Server),
            },
        }
    }
}

/// Whether a server's first record is a fatal alert that another endpoint might not send: internal_error
/// or unrecognized_name. `None` while undecided.
pub(crate) fn says_elsewhere(bytes: &[u8]) -> Option<bool> {
    const ALERTS: [Alert; 2] = [Alert::InternalError, Alert::UnrecognizedName];
    let shape: [fn(u8) -> bool; 7] = [
        |kind| kind == Alert::RECORD,
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
    fn answer_with_fatal_alert_80_or_112_is_a_rejection() {
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
