//! Keeps replaced snapshots until no connection reads them, then frees them, and returns memory to the system once
//! enough of it is free.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Control;
use crate::snapshot::Snapshot;

/// Memory is trimmed once the services rebuilt since the last trim are this part of all. A trim walks the whole heap:
/// after each change it would cost more the more services there are.
const PART: usize = 64;

/// Replaced snapshots.
#[derive(Debug, Default)]
pub(super) struct Retired(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Each with the number of services that its successor rebuilt.
    snapshots: Vec<(Arc<Snapshot>, usize)>,
    /// Services rebuilt since the last trim, of snapshots that are freed.
    freed: usize,
}

/// Snapshots that no connection reads.
#[derive(Debug)]
pub(super) struct Unused {
    pub(super) snapshots: Vec<Arc<Snapshot>>,
    /// Whether dropping them is worth a trim.
    pub(super) is_trim_due: bool,
}

impl Retired {
    /// Adds a snapshot whose successor rebuilt this many services.
    pub(super) fn push(&self, snapshot: Arc<Snapshot>, rebuilt: usize) {
        self.lock().snapshots.push((snapshot, rebuilt));
    }

    /// Removes the snapshots that no connection reads; the tables in use have `services`.
    pub(super) fn remove_unused(&self, services: usize) -> Unused {
        let mut state = self.lock();
        let is_unused = |(snapshot, _): &mut (Arc<Snapshot>, usize)| Arc::strong_count(snapshot) == 1;
        let (snapshots, rebuilt): (Vec<_>, Vec<_>) = state.snapshots.extract_if(.., is_unused).unzip();
        state.freed = rebuilt.into_iter().fold(state.freed, usize::saturating_add);
        let is_trim_due = !snapshots.is_empty() && state.freed.saturating_mul(PART) >= services;
        if is_trim_due {
            state.freed = 0;
        }
        Unused { snapshots, is_trim_due }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control {
    /// Frees snapshots that no connection reads any more, forever. Returns memory to the system at the start, and once
    /// enough of it is free.
    pub(crate) async fn free_retired(self: Arc<Self>) -> io::Result<()> {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tokio::task::spawn_blocking(isthmus_sys::trim_memory).await?;
        loop {
            tick.tick().await;
            let Unused { snapshots, is_trim_due } =
                self.retired.remove_unused(self.process.tables.load().len());
            if snapshots.is_empty() {
                continue;
            }
            let process = Arc::clone(&self.process);
            let freeing = move || {
                drop(snapshots);
                process.metrics.services.forget_the_gone();
                if is_trim_due {
                    isthmus_sys::trim_memory();
                }
            };
            tokio::task::spawn_blocking(freeing).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;
    use crate::snapshot::Resolved;

    fn snapshot() -> Arc<Snapshot> {
        let text = "listeners: [{ address: '127.0.0.1:0' }]\n";
        let live = config::parse(text, Path::new("gateway.yaml")).unwrap().live;
        Arc::new(Snapshot::compile(live, &Resolved::new(), None, &|_| false))
    }

    #[test]
    fn memory_is_trimmed_once_a_part_of_the_services_is_rebuilt() {
        let (retired, tables) = (Retired::default(), snapshot());
        let trims = |services: usize, changes: usize| {
            let due = (0..changes).map(|_| {
                retired.push(Arc::new(Snapshot::clone(&tables)), 1);
                retired.remove_unused(services).is_trim_due
            });
            due.filter(|is_due| *is_due).count()
        };
        assert_eq!(trims(PART * 1_000, 999), 0);
        assert_eq!(trims(PART * 1_000, 1), 1);
        assert_eq!(trims(PART * 1_000, 3_000), 3);
        assert_eq!(trims(PART, 5), 5, "a small heap is trimmed quickly");
    }

    #[test]
    fn memory_is_trimmed_after_many_services_are_removed() {
        let retired = Retired::default();
        retired.push(snapshot(), 100_000);
        assert!(retired.remove_unused(10).is_trim_due);
        assert!(!retired.remove_unused(10).is_trim_due, "nothing else was freed");
    }

    #[test]
    fn snapshot_in_use_is_neither_freed_nor_counted() {
        let retired = Retired::default();
        let used = snapshot();
        retired.push(Arc::clone(&used), 100);
        let unused = retired.remove_unused(100);
        assert!(unused.snapshots.is_empty() && !unused.is_trim_due);
        drop(used);
        let unused = retired.remove_unused(100);
        assert!(unused.snapshots.len() == 1 && unused.is_trim_due);
    }
}
