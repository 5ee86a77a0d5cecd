//! Bytes in both directions, untouched, until both have ended: each direction is a `flow`. Here is what
//! they mean for each other: half-close is kept, and a reset of one side becomes a reset of the other.

use std::task::Poll;

use tokio::net::TcpStream;

use crate::answer::Said;
use crate::close::pass_on_reset;
pub use crate::flow::Side;
use crate::flow::{Flow, FlowEnd, Moving};
use crate::live::Conn;
use crate::socket;
use crate::worker::Worker;

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both directions ended in order, this side first.
    Closed(Side),
    /// This side reset; what it sent before has been written to the other.
    Reset(Side),
}

/// Relays until it ends; `said` is what the server said before. A reset has been passed on when this
/// returns.
pub async fn relay(
    client: &mut TcpStream,
    server: &mut TcpStream,
    said: Said,
    worker: &Worker,
    conn: &Conn,
) -> End {
    let end = both_ways(client, server, said, worker, conn).await;
    let survivor = match end {
        End::Closed(_) => return end,
        End::Reset(Side::Client) => server,
        End::Reset(Side::Server) => client,
    };
    let patience = conn.target().and_then(|target| target.service.settings.timeouts.half_closed);
    pass_on_reset(survivor, patience).await;
    end
}

async fn both_ways(
    client: &mut TcpStream,
    server: &mut TcpStream,
    said: Said,
    worker: &Worker,
    conn: &Conn,
) -> End {
    let mut up = Flow::new(Side::Client);
    let mut down = Flow::new(Side::Server);
    down.begin_with(said);
    let mut first = None;
    std::future::poll_fn(|cx| {
        if conn.came_of_age()
            && let Err(error) = socket::keep_alive(&*server, &worker.process.fixed.tcp)
        {
            tracing::debug!(%error, "keepalive");
        }
        let up_end = up.poll(cx, client, server, &Moving { worker, conn, count: &conn.bytes_in });
        let down_end = down.poll(cx, server, client, &Moving { worker, conn, count: &conn.bytes_out });
        for (flow, end) in [(&up, up_end), (&down, down_end)] {
            match end {
                Poll::Ready(FlowEnd::Closed) if first.is_none() => {
                    first = Some(flow.from);
                    conn.set_half_closed(worker.live.coarse_now());
                }
                Poll::Ready(FlowEnd::Reset) => return Poll::Ready(End::Reset(flow.from)),
                _ => {}
            }
        }
        // A side that takes no more bytes has reset. What it sent before may still be on its way through.
        down.source_reset |= up.sink_gone;
        up.source_reset |= down.sink_gone;
        for flow in [&up, &down] {
            if flow.source_reset && flow.done {
                return Poll::Ready(End::Reset(flow.from));
            }
        }
        match first {
            Some(side) if up.done && down.done => Poll::Ready(End::Closed(side)),
            _ => Poll::Pending,
        }
    })
    .await
}
