//! Closes connections gracefully: delivers a refusal's alert, closes in order, and delays a reset until earlier bytes
//! are acknowledged.

use std::net::Shutdown;
use std::task::Poll;
use std::time::Duration;

use rustix::net::{SendFlags, send};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::last_alert::last_record;
use crate::leg::{Leg, Speaks};
use crate::peek::{SCRATCH, poll_through};
use crate::reason::Alert;
use crate::session::Session;
use crate::socket;

/// Time and bytes for a refused client that is still sending, so that its alert arrives.
const REFUSAL_PATIENCE: Duration = Duration::from_millis(500);
/// More than a gateway that originates holds for another endpoint.
const REFUSAL_BYTES: usize = 128 * 1024;
/// Time for both sides to close a connection that the gateway closes.
const ORDERLY_PATIENCE: Duration = Duration::from_secs(1);
/// Interval between checks whether a peer has acknowledged everything.
const RESET_POLL: Duration = Duration::from_millis(10);

/// Sends the alert and closes so that it arrives: closing a socket with unread bytes sends a reset that overtakes the
/// alert (it was lost 40 of 40 times). A TLS session of the gateway's own has sent its alert already, unless its handshake
/// was complete.
pub(crate) async fn refuse(client: Leg, alert: Option<Alert>) {
    let Leg { mut stream, speaks } = client;
    let record = match (speaks, alert) {
        (Speaks::Passthrough, Some(alert)) => vec![21, 3, 3, 0, 2, 2, alert as u8],
        (Speaks::Tls(session), Some(alert)) if session.is_established() => {
            match last_record_of(session, alert, &stream).await {
                Some(record) => record,
                None => return socket::reset_on_close(&stream),
            }
        }
        _ => Vec::new(),
    };
    if !record.is_empty() && send(&stream, &record, SendFlags::NOSIGNAL) != Ok(record.len()) {
        return;
    }
    finish(&mut stream, REFUSAL_PATIENCE, REFUSAL_BYTES).await;
}

/// Returns the record with the alert, once what was encrypted before it has been sent.
async fn last_record_of(mut session: Box<Session>, alert: Alert, stream: &TcpStream) -> Option<Vec<u8>> {
    let flush = std::future::poll_fn(|cx| session.poll_flush(cx, stream, || {}));
    timeout(REFUSAL_PATIENCE, flush).await.ok()?.ok()?;
    let (suite, secrets) = session.into_secrets()?;
    last_record(suite, secrets, alert)
}

/// Resets both sides at once.
pub(crate) fn at_once(client: Leg, server: Option<Leg>) {
    for leg in std::iter::once(client).chain(server) {
        socket::reset_on_close(&leg.stream);
    }
}

/// Sends FIN to both sides, after close_notify where the gateway speaks TLS, then discards their bytes until they close,
/// too.
pub(crate) async fn in_order(client: Leg, server: Option<Leg>) {
    match server {
        Some(server) => {
            tokio::join!(end(client), end(server));
        }
        None => end(client).await,
    }
}

async fn end(leg: Leg) {
    let Leg { mut stream, speaks } = leg;
    if let Speaks::Tls(mut session) = speaks {
        let _in_time = timeout(ORDERLY_PATIENCE, say_goodbye(&mut session, &stream)).await;
    }
    finish(&mut stream, ORDERLY_PATIENCE, usize::MAX).await;
}

async fn say_goodbye(session: &mut Session, stream: &TcpStream) -> std::io::Result<()> {
    session.close();
    std::future::poll_fn(|cx| session.poll_flush(cx, stream, || {})).await
}

/// Resets `survivor` after its peer has acknowledged what was sent to it: a reset discards what the kernel still holds
/// (SO_LINGER 0 at once lost 4.1 of 4.2 MB).
pub(crate) async fn pass_on_reset(survivor: &TcpStream, patience: Option<Duration>) {
    let acknowledged = async {
        // A failed socket has no peer, and its unacknowledged bytes never decrease.
        while survivor.peer_addr().is_ok()
            && isthmus_sys::unacknowledged(survivor).is_ok_and(|bytes| bytes > 0)
        {
            sleep(RESET_POLL).await;
        }
    };
    // Set first, so that the socket is reset however the wait ends.
    socket::reset_on_close(survivor);
    let _in_time = timeout(patience.unwrap_or(Duration::MAX), acknowledged).await;
}

async fn finish(stream: &mut TcpStream, patience: Duration, most: usize) {
    let socket = SockRef::from(&*stream);
    let owes_a_reset = socket.linger().is_ok_and(|linger| linger.is_some());
    if owes_a_reset || socket.shutdown(Shutdown::Write).is_err() {
        return;
    }
    let mut discarded = 0;
    let discard = std::future::poll_fn(|cx| {
        loop {
            match poll_through(stream, cx, SCRATCH, <[u8]>::len) {
                Poll::Ready(Ok(read)) if read > 0 && discarded < most => discarded += read,
                Poll::Pending => return Poll::Pending,
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
    });
    let _in_time = timeout(patience, discard).await;
}
