//! Bytes in both directions, untouched, until both have ended. Small transfers are copied through the
//! worker's buffer; a read that fills it turns a direction to bulk: then the kernel moves the bytes
//! through a pipe, a load at a time, in turns with the other relays of the worker (`turn`).

use std::io;
use std::net::Shutdown;
use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::close::pass_on_reset;
use crate::connect::Said;
use crate::live::Conn;
use crate::peek::{SCRATCH, poll_through};
use crate::pipe::Pipe;
use crate::socket;
use crate::turn::Ticket;
use crate::worker::Worker;

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both directions ended in order, this side first.
    Closed(Side),
    /// This side reset; what it sent before has been written to the other.
    Reset(Side),
}

/// One of the two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who connected to us.
    Client,
    /// Who we connected to.
    Server,
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

/// One direction.
#[derive(Debug)]
struct Flow {
    from: Side,
    held: Held,
    /// The source has ended: nothing more will be read.
    source_ended: bool,
    /// The source has reset, or has shown it by taking no more bytes: its end is no orderly one.
    source_reset: bool,
    /// The sink takes no more bytes.
    sink_gone: bool,
    done: bool,
    bulk: Option<Bulk>,
}

/// Bytes that left the source and did not reach the sink yet.
#[derive(Debug)]
enum Held {
    Nothing,
    Bytes { bytes: Vec<u8>, written: usize },
    Pipe(Pipe),
}

/// A direction in bulk: its place in line, or the turn.
#[derive(Debug, Default)]
struct Bulk {
    ticket: Option<Ticket>,
    turn: Turn,
    /// Bytes since the source last ran dry.
    burst: usize,
}

/// What has become of the turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Turn {
    /// Not used yet.
    #[default]
    Fresh,
    /// One load was moved.
    Spent,
    /// And everybody else has run since.
    Over,
}

#[derive(Clone, Copy, Debug)]
enum FlowEnd {
    Closed,
    Reset,
}

/// What a direction needs besides its two sockets.
struct Moving<'a> {
    worker: &'a Worker,
    conn: &'a Conn,
    count: &'a AtomicU64,
}

impl Moving<'_> {
    fn moved(&self, bytes: usize) {
        self.conn.moved(self.count, bytes, self.worker.live.coarse_now());
    }
}

impl Flow {
    fn new(from: Side) -> Flow {
        Flow {
            from,
            held: Held::Nothing,
            source_ended: false,
            source_reset: false,
            sink_gone: false,
            done: false,
            bulk: None,
        }
    }

    fn begin_with(&mut self, said: Said) {
        match said {
            Said::Nothing => {}
            Said::Bytes(bytes) => self.held = Held::Bytes { bytes, written: 0 },
            Said::Closed => self.source_ended = true,
            Said::Reset => (self.source_ended, self.source_reset) = (true, true),
        }
    }

    /// Moves bytes until something is not ready. Ready once, at the end of this direction.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut TcpStream,
        sink: &TcpStream,
        moving: &Moving<'_>,
    ) -> Poll<FlowEnd> {
        if self.done {
            return Poll::Pending;
        }
        loop {
            if ready!(self.poll_flush(cx, sink)).is_err() {
                (self.sink_gone, self.done) = (true, true);
                (self.held, self.bulk) = (Held::Nothing, None);
                return Poll::Pending;
            }
            if self.source_ended {
                (self.done, self.bulk) = (true, None);
                return Poll::Ready(if self.source_reset { FlowEnd::Reset } else { end_of(sink) });
            }
            match ready!(self.poll_fill(cx, source, sink, moving)) {
                Ok(0) => self.source_ended = true,
                Ok(bytes) => moving.moved(bytes),
                Err(_) => (self.source_ended, self.source_reset) = (true, true),
            }
        }
    }

    /// Writes what is held. Waiting for a slow sink must not keep the turn from others.
    fn poll_flush(&mut self, cx: &mut Context<'_>, sink: &TcpStream) -> Poll<io::Result<()>> {
        loop {
            let wrote = match &mut self.held {
                Held::Nothing => return Poll::Ready(Ok(())),
                Held::Pipe(pipe) if pipe.held() == 0 => {
                    self.held = Held::Nothing;
                    continue;
                }
                Held::Bytes { bytes, written } if *written == bytes.len() => {
                    self.held = Held::Nothing;
                    continue;
                }
                Held::Pipe(pipe) => sink.try_io(Interest::WRITABLE, || pipe.drain(sink)).map(|_| ()),
                Held::Bytes { bytes, written } => {
                    let rest = bytes.get(*written..).unwrap_or_default();
                    sink.try_write(rest).map(|wrote| *written += wrote)
                }
            };
            match wrote {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.end_turn();
                    ready!(sink.poll_write_ready(cx))?;
                }
                other => other?,
            }
        }
    }

    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut TcpStream,
        sink: &TcpStream,
        moving: &Moving<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.bulk.is_none() {
            return self.poll_copy(cx, source, sink);
        }
        ready!(self.poll_turn(cx, source, moving))?;
        let Some(mut pipe) = moving.worker.pipes.take() else {
            if let Some(bulk) = &mut self.bulk {
                bulk.turn = Turn::Spent;
            }
            return self.poll_copy(cx, source, sink);
        };
        match source.try_io(Interest::READABLE, || pipe.fill(&*source)) {
            Ok(bytes) => {
                self.held = Held::Pipe(pipe);
                if let Some(bulk) = &mut self.bulk {
                    bulk.turn = Turn::Spent;
                    bulk.burst += bytes;
                }
                Poll::Ready(Ok(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // Dry. A source that had little is not bulk any more.
                let was_burst = self.bulk.take().is_some_and(|bulk| bulk.burst >= SCRATCH);
                if was_burst {
                    self.bulk = Some(Bulk::default());
                }
                self.poll_fill(cx, source, sink, moving)
            }
            // The kernel cannot splice this socket: copy, for good.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                self.bulk = None;
                self.poll_copy(cx, source, sink)
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Reads through the worker's buffer and writes at once; what the sink does not take is kept.
    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut TcpStream,
        sink: &TcpStream,
    ) -> Poll<io::Result<usize>> {
        let copied = poll_through(source, cx, SCRATCH, |bytes| {
            let wrote = if bytes.is_empty() { 0 } else { sink.try_write(bytes).unwrap_or(0) };
            let rest = bytes.get(wrote..).unwrap_or_default();
            if !rest.is_empty() {
                self.held = Held::Bytes { bytes: rest.to_vec(), written: 0 };
            }
            bytes.len()
        });
        let bytes = ready!(copied)?;
        if bytes == SCRATCH {
            self.bulk.get_or_insert_default().burst += bytes;
        } else {
            self.bulk = None;
        }
        Poll::Ready(Ok(bytes))
    }

    /// Ready when the source has bytes and the worker's turn is ours. After each load everybody else
    /// runs once, then the turn goes to the next in line.
    fn poll_turn(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        moving: &Moving<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(bulk) = &mut self.bulk else { return Poll::Ready(Ok(())) };
        if bulk.turn == Turn::Spent && bulk.ticket.is_some() {
            bulk.turn = Turn::Over;
            return after_everybody(cx);
        }
        if bulk.turn == Turn::Over && bulk.ticket.as_ref().is_some_and(Ticket::is_wanted) {
            bulk.ticket = None;
        }
        bulk.turn = Turn::Fresh;
        match source.poll_read_ready(cx) {
            Poll::Ready(answer) => answer?,
            Poll::Pending => {
                bulk.ticket = None;
                return Poll::Pending;
            }
        }
        bulk.ticket.get_or_insert_with(|| Ticket::new(&moving.worker.turns)).poll_turn(cx).map(Ok)
    }

    fn end_turn(&mut self) {
        if let Some(bulk) = &mut self.bulk {
            (bulk.ticket, bulk.turn) = (None, Turn::Fresh);
        }
    }
}

/// Passes the end of the stream on.
fn end_of(sink: &TcpStream) -> FlowEnd {
    // ENOTCONN: the sink has gone already, which its own direction reports.
    let _shut = SockRef::from(sink).shutdown(Shutdown::Write);
    FlowEnd::Closed
}

/// Lets the other tasks of the runtime, and its I/O, come first: a task that merely wakes itself runs
/// again before the runtime looks at its sockets.
fn after_everybody<T>(cx: &mut Context<'_>) -> Poll<T> {
    let deferred = pin!(tokio::task::yield_now());
    let _pending = deferred.poll(cx);
    Poll::Pending
}
