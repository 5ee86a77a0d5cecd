//! Relays one direction and detects its end. Small transfers are copied through the worker's buffer; a read that fills
//! it switches the direction to bulk, which moves one load at a time in turns with the worker's other relays. `relay`
//! connects the two directions.

use std::io;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::answer::Reply;
use crate::bulk::Bulk;
use crate::leg::Leg;
use crate::live::Conn;
use crate::peek::{SCRATCH, poll_through};
use crate::unsent::Unsent;
use crate::worker::Worker;

/// One of the two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The side that connected to the gateway.
    Client,
    /// The side that the gateway connected to.
    Server,
}

/// One direction.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) from: Side,
    pub(crate) unsent: Unsent,
    /// The source has ended: nothing more will be read.
    source_ended: bool,
    /// The source has reset, as seen by a read or a failed write: its end is not orderly.
    pub(crate) source_reset: bool,
    /// Writes to the sink fail.
    pub(crate) sink_gone: bool,
    /// This direction has ended.
    pub(crate) done: bool,
    pub(crate) bulk: Option<Bulk>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum FlowEnd {
    Closed,
    Reset,
}

/// The context of a direction besides its two sockets.
pub(crate) struct Moving<'a> {
    pub(crate) worker: &'a Worker,
    pub(crate) conn: &'a Conn,
    pub(crate) count: &'a AtomicU64,
}

impl Moving<'_> {
    /// Counts as activity: a sink that accepts bytes is not idle, however slow it is.
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
            unsent: Unsent::Nothing,
            source_ended: false,
            source_reset: false,
            sink_gone: false,
            done: false,
            bulk: None,
        }
    }

    /// Begins after what the source has said before.
    pub(crate) fn after(mut self, said: Reply) -> Flow {
        match said {
            Reply::Nothing => {}
            Reply::Bytes(bytes) => self.unsent = Unsent::Bytes { bytes, written: 0 },
            Reply::Closed => self.source_ended = true,
            Reply::Reset => (self.source_ended, self.source_reset) = (true, true),
        }
        self
    }

    /// Whether bytes are unsent that the sink does not accept.
    pub(crate) fn is_stuck(&self, sink: &Leg) -> bool {
        self.unsent.len() > 0 || sink.owes()
    }

    /// Moves bytes until something is not ready. Ready once, at the end of this direction.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Leg,
        sink: &mut Leg,
        moving: &Moving<'_>,
    ) -> Poll<FlowEnd> {
        if self.done {
            return Poll::Pending;
        }
        loop {
            let mut flushed = ready!(self.poll_flush(cx, sink, moving));
            if self.source_ended && !self.source_reset && flushed.is_ok() {
                flushed = ready!(sink.poll_end(cx));
            }
            if flushed.is_err() {
                (self.sink_gone, self.done) = (true, true);
                (self.unsent, self.bulk) = (Unsent::Nothing, None);
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

    /// Writes unsent bytes, and gives up the turn while the sink is slow.
    fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut Leg,
        moving: &Moving<'_>,
    ) -> Poll<io::Result<()>> {
        let before = self.unsent.len();
        let mut flushed = self.unsent.poll_flush(cx, &sink.stream);
        if self.unsent.len() != before {
            moving.touch();
        }
        if matches!(flushed, Poll::Ready(Ok(()))) {
            flushed = sink.poll_flush(cx, || moving.touch());
        }
        if flushed.is_pending()
            && let Some(bulk) = &mut self.bulk
        {
            bulk.step_back();
        }
        flushed
    }

    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Leg,
        sink: &mut Leg,
        moving: &Moving<'_>,
    ) -> Poll<io::Result<usize>> {
        if source.is_tls() || sink.is_tls() {
            return self.poll_recode(cx, source, sink, moving);
        }
        self.poll_pass(cx, &mut source.stream, &sink.stream, moving)
    }

    /// Moves bytes as they are.
    fn poll_pass(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut TcpStream,
        sink: &TcpStream,
        moving: &Moving<'_>,
    ) -> Poll<io::Result<usize>> {
        let Some(bulk) = &mut self.bulk else { return self.poll_copy(cx, source, sink) };
        ready!(bulk.poll_turn(cx, source, &moving.worker.turns))?;
        let Some(mut pipe) = moving.worker.pipes.lend() else {
            let copied = self.poll_copy(cx, source, sink);
            if let Some(bulk) = &mut self.bulk {
                // A source without bytes must not keep the turn.
                if copied.is_pending() { bulk.step_back() } else { bulk.spend(0) }
            }
            return copied;
        };
        match source.try_io(Interest::READABLE, || pipe.fill(&*source)) {
            Ok(0) => Poll::Ready(Ok(0)),
            Ok(bytes) => {
                self.unsent = Unsent::Pipe(pipe);
                bulk.spend(bytes);
                Poll::Ready(Ok(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // The source has no more bytes. After a small burst it is no longer bulk.
                self.bulk = self.bulk.take().filter(|bulk| bulk.burst >= SCRATCH).map(|_| Bulk::default());
                self.poll_pass(cx, source, sink, moving)
            }
            // The kernel cannot splice this socket: copy.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                self.bulk = None;
                self.poll_copy(cx, source, sink)
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Reads through the worker's buffer and writes at once; what the sink does not accept is unsent.
    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut TcpStream,
        sink: &TcpStream,
    ) -> Poll<io::Result<usize>> {
        let copied = poll_through(source, cx, SCRATCH, |bytes| {
            let wrote = if bytes.is_empty() { 0 } else { sink.try_write(bytes).unwrap_or(0) };
            self.unsent = Unsent::copy_of(bytes.get(wrote..).unwrap_or_default());
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
}
