//! Places for those who are nobody yet: who waits does not keep others out, the one that came first goes.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::task::AbortHandle;

/// So many tasks at once, and no more.
#[derive(Debug)]
pub(super) struct Room {
    most: usize,
    inside: Mutex<VecDeque<AbortHandle>>,
}

impl Room {
    pub(super) fn new(most: usize) -> Room {
        Room { most, inside: Mutex::default() }
    }

    /// One more; the one that has been there longest ends where there is no place.
    pub(super) fn enter(&self, task: AbortHandle) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.retain(|one| !one.is_finished());
        if inside.len() >= self.most
            && let Some(first) = inside.pop_front()
        {
            first.abort();
        }
        inside.push_back(task);
    }
}
