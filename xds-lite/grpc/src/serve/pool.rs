//! A bounded pool of unauthenticated connections. A full pool aborts its oldest connection for a new one, so that idle
//! clients cannot lock others out; connections that have proven something stay.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::AbortHandle;

/// A pool with a limit on concurrent tasks.
#[derive(Debug)]
pub(super) struct ConnectionPool {
    most: usize,
    inside: Mutex<VecDeque<(AbortHandle, Slot)>>,
}

/// The place of a connection in a pool; once kept, it is not given to another.
#[derive(Clone, Debug, Default)]
pub struct Slot(Arc<AtomicBool>);

impl Slot {
    /// Protects the connection, which has proven something, from eviction.
    pub fn protect(&self) {
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

    /// Adds a task. If the pool is full, aborts the oldest task whose slot is not kept.
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
    async fn full_pool_evicts_the_oldest_task_without_a_kept_slot() {
        let pool = ConnectionPool::new(2);
        let tasks: Vec<_> = (0..4).map(|_| tokio::spawn(std::future::pending::<()>())).collect();
        let slots = [(); 4].map(|()| Slot::default());
        slots[0].protect();
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
