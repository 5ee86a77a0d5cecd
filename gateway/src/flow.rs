//! One direction of a relay: reads, writes, and knows when it has ended. Small transfers are copied through
//! the worker's buffer; a read that fills it turns the direction to bulk, a load at a time, in turns with
//! the other relays of the worker. What the two directions mean for each other is in `relay`.

use std::io;
use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::answer::Said;
use crate::held::Held;
use crate::live::Conn;
use crate::peek::{SCRATCH, poll_through};
use crate::turn::Ticket;
use crate::worker::Worker;

/// One of the two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who connected to us.
    Client,
    /// Who we connected to.
    Server,
}

/// One direction.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) from: Side,
    held: Held,
    /// The source has ended: nothing more will be read.
    source_ended: bool,
    /// The source has reset, or has shown it by taking no more bytes: its end is no orderly one.
    pub(crate) source_reset: bool,
    /// The sink takes no more bytes.
    pub(crate) sink_gone: bool,
    /// This direction has ended.
    pub(crate) done: bool,
    bulk: Option<Bulk>,
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
pub(crate) enum FlowEnd {
    Closed,
    Reset,
}

/// What a direction needs besides its two sockets.
pub(crate) struct Moving<'a> {
    pub(crate) worker: &'a Worker,
    pub(crate) conn: &'a Conn,
    pub(crate) count: &'a AtomicU64,
}

impl Moving<'_> {
    /// A sink that takes what it is owed is not idle, however slow it is.
    fn touch(&self) {
        self.moved(0);
    }

    fn moved(&self, bytes: usize) {
        self.conn.moved(self.count, bytes, self.worker.live.coarse_now());
    }
}

impl Flow {
    pub(crate) fn new(from: Side) -> Flow {
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

    pub(crate) fn begin_with(&mut self, said: Said) {
        match said {
            Said::Nothing => {}
            Said::Bytes(bytes) => self.held = Held::Bytes { bytes, written: 0 },
            Said::Closed => self.source_ended = true,
            Said::Reset => (self.source_ended, self.source_reset) = (true, true),
        }
    }

    /// It waits for a sink that takes no bytes.
    pub(crate) fn is_stuck(&self) -> bool {
        self.held.len() > 0
    }

    /// Moves bytes until something is not ready. Ready once, at the end of this direction.
    pub(crate) fn poll(
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
            if ready!(self.poll_flush(cx, sink, moving)).is_err() {
                (self.sink_gone, self.done) = (true, true);
                (self.held, self.bulk) = (Held::Nothing, None);
                return Poll::Pending;
            }
            if self.source_ended {
                (self.done, self.bulk) = (true, None);
                return Poll::Ready(if self.source_reset { FlowEnd::Reset } else { FlowEnd::Closed });
            }
            match ready!(self.poll_fill(cx, source, sink, moving)) {
                Ok(0) => self.source_ended = true,
                Ok(bytes) => moving.moved(bytes),
                Err(_) => (self.source_ended, self.source_reset) = (true, true),
            }
        }
    }

    /// Waiting for a slow sink must not keep the turn from others.
    fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        sink: &TcpStream,
        moving: &Moving<'_>,
    ) -> Poll<io::Result<()>> {
        let before = self.held.len();
        let flushed = self.held.poll_flush(cx, sink);
        if self.held.len() != before {
            moving.touch();
        }
        if flushed.is_pending()
            && let Some(bulk) = &mut self.bulk
        {
            (bulk.ticket, bulk.turn) = (None, Turn::Fresh);
        }
        flushed
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
            let copied = self.poll_copy(cx, source, sink);
            if let Some(bulk) = &mut self.bulk {
                // A dry source must not keep the turn from others.
                match copied {
                    Poll::Pending => *bulk = Bulk::default(),
                    Poll::Ready(_) => bulk.turn = Turn::Spent,
                }
            }
            return copied;
        };
        match source.try_io(Interest::READABLE, || pipe.fill(&*source)) {
            Ok(0) => Poll::Ready(Ok(0)),
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
                self.bulk = self.bulk.take().filter(|bulk| bulk.burst >= SCRATCH).map(|_| Bulk::default());
                self.poll_fill(cx, source, sink, moving)
            }
            // The kernel cannot splice this socket: copy.
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
            self.held = Held::copy_of(bytes.get(wrote..).unwrap_or_default());
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
}

/// Lets the other tasks of the runtime, and its I/O, come first: a task that merely wakes itself runs
/// again before the runtime looks at its sockets.
fn after_everybody<T>(cx: &mut Context<'_>) -> Poll<T> {
    let deferred = pin!(tokio::task::yield_now());
    let _pending = deferred.poll(cx);
    Poll::Pending
}
