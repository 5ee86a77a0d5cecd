//! Lets bulk transfers take turns. A relay that moves a MiB per system call and never yields starves its neighbours on
//! the same worker: with 32 of them, small round trips waited 365–520 ms (p99), with turns 3 ms. So a worker has one
//! turn: its holder moves one load, lets all other tasks run while still holding it, and passes it on in order.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// The one turn of a worker.
#[derive(Debug, Default)]
pub struct Turns(Mutex<Line>);

#[derive(Debug, Default)]
struct Line {
    next_ticket: u64,
    holder: Option<u64>,
    waiting: VecDeque<(u64, Waker)>,
}

impl Turns {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn pass_on(&mut self) {
        self.holder = self.waiting.pop_front().map(|(ticket, waker)| {
            waker.wake();
            ticket
        });
    }
}

/// A place in the queue, or the turn itself. Dropping it returns either.
#[derive(Debug)]
pub struct Ticket {
    turns: Arc<Turns>,
    number: u64,
}

impl Ticket {
    /// Takes a place at the end of the queue.
    #[must_use]
    pub fn new(turns: &Arc<Turns>) -> Ticket {
        let mut line = turns.line();
        line.next_ticket += 1;
        Ticket { number: line.next_ticket, turns: Arc::clone(turns) }
    }

    /// Ready when this ticket has the turn.
    pub fn poll_turn(&self, cx: &Context<'_>) -> Poll<()> {
        let mut line = self.turns.line();
        match line.holder {
            Some(holder) if holder == self.number => return Poll::Ready(()),
            None => {
                line.holder = Some(self.number);
                return Poll::Ready(());
            }
            Some(_) => {}
        }
        match line.waiting.iter_mut().find(|(number, _)| *number == self.number) {
            Some((_, waker)) => waker.clone_from(cx.waker()),
            None => line.waiting.push_back((self.number, cx.waker().clone())),
        }
        Poll::Pending
    }

    /// Whether this ticket has the turn and others wait for it.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        let line = self.turns.line();
        line.holder == Some(self.number) && !line.waiting.is_empty()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut line = self.turns.line();
        if line.holder == Some(self.number) {
            line.pass_on();
        } else {
            line.waiting.retain(|(number, _)| *number != self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turn_passes_in_order_and_survives_dropped_tickets() {
        let turns = Arc::new(Turns::default());
        let cx = Context::from_waker(Waker::noop());
        let [first, second, third] = std::array::from_fn(|_| Ticket::new(&turns));
        assert!(first.poll_turn(&cx).is_ready());
        assert!(second.poll_turn(&cx).is_pending());
        assert!(third.poll_turn(&cx).is_pending());
        assert!(first.poll_turn(&cx).is_ready(), "the holder keeps it");
        drop(second);
        drop(first);
        assert!(third.poll_turn(&cx).is_ready());
        drop(third);
        assert!(Ticket::new(&turns).poll_turn(&cx).is_ready());
    }
}
