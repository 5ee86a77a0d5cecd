//! A direction's part in bulk: its place in the worker's line, and what has become of its turn. How the
//! line works is in `turn`; moving the bytes is `flow`'s.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::net::TcpStream;

use crate::turn::{Ticket, Turns};

/// A direction in bulk.
#[derive(Debug, Default)]
pub(crate) struct Bulk {
    ticket: Option<Ticket>,
    turn: Turn,
    /// Bytes since the source last ran dry.
    pub(crate) burst: usize,
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

impl Bulk {
    /// Ready when the source has bytes and the worker's turn is ours. After each load everybody else
    /// runs once, then the turn goes to the next in line.
    pub(crate) fn poll_turn(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        turns: &Arc<Turns>,
    ) -> Poll<io::Result<()>> {
        if self.turn == Turn::Spent && self.ticket.is_some() {
            self.turn = Turn::Over;
            return after_everybody(cx);
        }
        if self.turn == Turn::Over && self.ticket.as_ref().is_some_and(Ticket::is_wanted) {
            self.ticket = None;
        }
        self.turn = Turn::Fresh;
        match source.poll_read_ready(cx) {
            Poll::Ready(answer) => answer?,
            Poll::Pending => {
                self.ticket = None;
                return Poll::Pending;
            }
        }
        self.ticket.get_or_insert_with(|| Ticket::new(turns)).poll_turn(cx).map(Ok)
    }

    /// A load of this many bytes was moved.
    pub(crate) fn spend(&mut self, bytes: usize) {
        self.turn = Turn::Spent;
        self.burst += bytes;
    }

    /// Leaves the line, or gives the turn back unused.
    pub(crate) fn step_back(&mut self) {
        (self.ticket, self.turn) = (None, Turn::Fresh);
    }
}

/// Lets the other tasks of the runtime, and its I/O, come first: a task that merely wakes itself runs
/// again before the runtime looks at its sockets.
fn after_everybody<T>(cx: &mut Context<'_>) -> Poll<T> {
    let deferred = pin!(tokio::task::yield_now());
    let _pending = deferred.poll(cx);
    Poll::Pending
}
