//! Tracks a bulk transfer's place in the worker's queue and the state of its turn. `turn` implements the queue; `flow`
//! moves the bytes.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::net::TcpStream;

use crate::turn::{Ticket, Turns};

/// The bulk state of one direction.
#[derive(Debug, Default)]
pub(crate) struct Bulk {
    ticket: Option<Ticket>,
    turn: Turn,
    /// Bytes of this turn.
    load: usize,
    /// Bytes since the source last ran dry.
    pub(crate) burst: usize,
}

/// The state of the turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Turn {
    /// Not used yet.
    #[default]
    Fresh,
    /// One load has been moved.
    Spent,
    /// All other tasks have run since.
    Over,
}

impl Bulk {
    /// Ready when the source has bytes and this direction has the worker's turn. After each load all other tasks run
    /// once, then the turn goes to the next in the queue.
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

    /// Records a load of this many bytes.
    pub(crate) fn spend(&mut self, bytes: usize) {
        (self.turn, self.load) = (Turn::Spent, 0);
        self.burst += bytes;
    }

    /// Records a part of a load; the turn is over once the load has `whole` bytes.
    pub(crate) fn spend_part(&mut self, bytes: usize, whole: usize) {
        self.load += bytes;
        if self.load >= whole {
            self.spend(self.load);
        }
    }

    /// Leaves the queue, or returns the rest of the turn.
    pub(crate) fn step_back(&mut self) {
        (self.ticket, self.turn, self.load) = (None, Turn::Fresh, 0);
    }
}

/// Lets the runtime's other tasks and its I/O run first: a task that merely wakes itself runs again before the runtime
/// polls its sockets.
fn after_everybody<T>(cx: &mut Context<'_>) -> Poll<T> {
    let deferred = pin!(tokio::task::yield_now());
    let _pending = deferred.poll(cx);
    Poll::Pending
}
