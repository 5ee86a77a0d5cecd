//! Places for those who are nobody yet: who waits does not keep others out, the one that came first goes. Who has
//! proven something meanwhile stays.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::AbortHandle;

/// So many tasks at once, and no more.
#[derive(Debug)]
pub(super) struct ConnectionPool {
    most: usize,
    inside: Mutex<VecDeque<(AbortHandle, Slot)>>,
}

/// One's place in a pool, which nobody else is given once it is kept.
#[derive(Clone, Debug, Default)]
pub struct Slot(Arc<AtomicBool>);

impl Slot {
    /// Whoever sits here has proven something, and is let finish.
    pub fn keep(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_kept(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl ConnectionPool {
    pub(super) fn new(most: usize) -> ConnectionPool {
        ConnectionPool { most, inside: Mutex::default() }
    }

    /// One more; where there is no place the one that has been there longest ends, of those whose slots are not
    /// kept.
    pub(super) fn enter(&self, task: AbortHandle, slot: Slot) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.retain(|(one, _)| !one.is_finished());
        inside.push_back((task, slot));
        if inside.len() > self.most
            && let Some(place) = inside.iter().position(|(_, slot)| !slot.is_kept())
            && let Some((first, _)) = inside.remove(place)
        {
            first.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_came_first_goes_unless_its_seat_is_kept() {
        let pool = ConnectionPool::new(2);
        let tasks: Vec<_> = (0..4).map(|_| tokio::spawn(std::future::pending::<()>())).collect();
        let slots = [(); 4].map(|()| Slot::default());
        slots[0].keep();
        for (task, slot) in tasks.iter().zip(&slots) {
            pool.enter(task.abort_handle(), slot.clone());
        }
        let inside = pool.inside.lock().unwrap().iter().map(|(_, slot)| slot.is_kept()).collect::<Vec<_>>();
        assert_eq!(inside, [true, false]);
        for (index, task) in tasks.into_iter().enumerate() {
            match index {
                1 | 2 => assert!(task.await.is_err_and(|error| error.is_cancelled()), "{index}"),
                _ => assert!(!task.is_finished(), "{index}"),
            }
        }
    }
}
