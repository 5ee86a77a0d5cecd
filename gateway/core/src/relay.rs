//! Relays bytes unchanged in both directions until both have ended; each direction is a `flow`. A half-close is
//! preserved, and a reset of one side is forwarded to the other.

use std::net::Shutdown;
use std::task::Poll;
use std::time::Duration;

use socket2::SockRef;

use crate::answer::Reply;
use crate::close::pass_on_reset;
pub use crate::flow::Side;
use crate::flow::{Flow, FlowEnd, Moving};
use crate::leg::Leg;
use crate::live::{Conn, SILENT_MS};
use crate::socket::{self, Millis};
use crate::worker::Worker;

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both directions ended in order, this side first.
    Closed(Side),
    /// This side reset; what it sent before has been written to the other.
    Reset(Side),
}

/// Relays until both directions have ended; `said` is what the server sent before. A reset has been forwarded when
/// this returns.
pub async fn relay(client: &mut Leg, server: &mut Leg, said: Reply, worker: &Worker, conn: &Conn) -> End {
    let mut stuck = Stuck::new(conn.target().and_then(|target| target.service.rules.timeouts.half_closed));
    let end = {
        let mut flows = [Flow::new(Side::Client), Flow::new(Side::Server).after(said)];
        both_ways(client, server, &mut flows, worker, conn, &mut stuck).await
    };
    let survivor = match end {
        End::Closed(_) => return end,
        End::Reset(Side::Client) => server,
        End::Reset(Side::Server) => client,
    };
    // Boxed: a relay that idles for hours should not carry its timer.
    Box::pin(pass_on_reset(&survivor.stream, stuck.patience(socket::now()))).await;
    end
}

/// Detects a side that resets while the other accepts no bytes: nothing is read from it, so no read reports the reset.
/// Checked once a second when no byte has moved for that long.
struct Stuck {
    /// How long received bytes may still be delivered.
    limit: Option<Duration>,
    reset_since: Option<Millis>,
}

impl Stuck {
    fn new(limit: Option<Duration>) -> Stuck {
        Stuck { limit, reset_since: None }
    }

    /// Returns the rest of the limit.
    fn patience(&self, now: Millis) -> Option<Duration> {
        let waited = Duration::from_millis(self.reset_since.map_or(0, |since| now.saturating_sub(since)));
        self.limit.map(|limit| limit.saturating_sub(waited))
    }

    /// Whether an unread source has reset and the time to deliver its bytes is over.
    fn is_hopeless(&mut self, flow: &Flow, source: &Leg, now: Millis) -> bool {
        if self.reset_since.is_none() && (flow.source_reset || socket::has_failed(&source.stream)) {
            self.reset_since = Some(now);
        }
        self.reset_since.is_some() && self.patience(now) == Some(Duration::ZERO)
    }
}

/// Not an `async fn`, which would hold its arguments twice.
fn both_ways(
    client: &mut Leg,
    server: &mut Leg,
    [up, down]: &mut [Flow; 2],
    worker: &Worker,
    conn: &Conn,
    stuck: &mut Stuck,
) -> impl Future<Output = End> {
    let mut first = None;
    std::future::poll_fn(move |cx| {
        if conn.came_of_age() {
            socket::keep_alive_or_say(&server.stream, &worker.process.fixed.tcp, conn.id);
        }
        // A side whose writes fail has reset. Its earlier bytes may still be in transit, and its end then looks
        // orderly, because the write has consumed the error.
        let up_end = up.poll(cx, client, server, &Moving { worker, conn, count: &conn.bytes_in });
        down.source_reset |= up.sink_gone;
        let down_end = down.poll(cx, server, client, &Moving { worker, conn, count: &conn.bytes_out });
        up.source_reset |= down.sink_gone;
        // What TLS itself has to answer, such as a key update: its own direction may have nothing to send.
        for leg in [&mut *client, &mut *server] {
            let _pending = leg.poll_flush(cx, || {});
        }
        for (flow, end, sink) in [(&*up, up_end, &*server), (&*down, down_end, &*client)] {
            match end {
                Poll::Ready(FlowEnd::Closed) if first.is_none() => {
                    first = Some(flow.from);
                    conn.set_half_closed(worker.live.coarse_now());
                    // The second end needs no FIN of its own: both sockets are closed then.
                    // ENOTCONN: the sink is gone already, which its own direction reports.
                    let _shut = SockRef::from(&sink.stream).shutdown(Shutdown::Write);
                }
                Poll::Ready(FlowEnd::Reset) => return Poll::Ready(End::Reset(flow.from)),
                _ => {}
            }
        }
        for flow in [&*up, &*down] {
            if flow.source_reset && flow.done {
                return Poll::Ready(End::Reset(flow.from));
            }
        }
        let now = worker.live.coarse_now();
        let is_silent = now.saturating_sub(conn.last_byte()) >= SILENT_MS;
        conn.wake_when_silent(up.is_stuck(server) || down.is_stuck(client));
        for (flow, source, sink) in [(&*up, &*client, &*server), (&*down, &*server, &*client)] {
            if is_silent && flow.is_stuck(sink) && stuck.is_hopeless(flow, source, now) {
                return Poll::Ready(End::Reset(flow.from));
            }
        }
        match first {
            Some(side) if up.done && down.done => Poll::Ready(End::Closed(side)),
            _ => Poll::Pending,
        }
    })
}
