//! Endings that take a moment: a refusal that must arrive, a close in order, a reset that must not cut
//! what was received before it. The connection's account is written before; this is manners.

use std::net::Shutdown;
use std::task::Poll;
use std::time::Duration;

use rustix::net::{SendFlags, send};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::peek::{SCRATCH, poll_through};
use crate::reason::Alert;
use crate::socket;

/// A refused client that is still sending gets this long, and this many bytes, to hear why.
const REFUSAL_PATIENCE: Duration = Duration::from_millis(500);
const REFUSAL_BYTES: usize = 64 * 1024;
/// Both sides of a connection that we end get this long to end it too.
const ORDERLY_PATIENCE: Duration = Duration::from_secs(1);
/// How often a socket is asked whether its peer has acknowledged everything.
const RESET_POLL: Duration = Duration::from_millis(10);

/// Sends the alert and closes so that it arrives: a socket that is closed with bytes unread resets, and
/// the reset overtakes the alert (it was lost 40 of 40 times).
pub(crate) async fn refuse(mut client: TcpStream, alert: Option<Alert>) {
    if let Some(alert) = alert {
        let record = [21, 3, 3, 0, 2, 2, alert as u8];
        if send(&client, &record, SendFlags::NOSIGNAL).is_err() {
            return;
        }
    }
    finish(&mut client, REFUSAL_PATIENCE, REFUSAL_BYTES).await;
}

/// Resets both sides: there is no time left.
pub(crate) fn at_once(client: TcpStream, server: Option<TcpStream>) {
    for stream in std::iter::once(client).chain(server) {
        socket::reset_on_close(&stream);
    }
}

/// FIN to both sides, then their bytes are discarded until they end too.
pub(crate) async fn in_order(mut client: TcpStream, server: Option<TcpStream>) {
    match server {
        Some(mut server) => {
            tokio::join!(
                finish(&mut client, ORDERLY_PATIENCE, usize::MAX),
                finish(&mut server, ORDERLY_PATIENCE, usize::MAX)
            );
        }
        None => finish(&mut client, ORDERLY_PATIENCE, usize::MAX).await,
    }
}

/// Resets `survivor`, but not before its peer has acknowledged what was sent to it: a reset throws away
/// what the kernel still holds (SO_LINGER 0 at once lost 4.1 of 4.2 MB).
pub(crate) async fn pass_on_reset(survivor: &TcpStream, patience: Option<Duration>) {
    let acknowledged = async {
        // A socket that has failed has no peer any more, and what it owed one stays for ever.
        while survivor.peer_addr().is_ok()
            && isthmus_sys::unacknowledged(survivor).is_ok_and(|bytes| bytes > 0)
        {
            sleep(RESET_POLL).await;
        }
    };
    // First, so that whatever ends the wait, the end is a reset.
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
