//! Frees tables that were replaced.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Control;

impl Control {
    /// Frees snapshots that no connection reads any more and returns memory to the system, forever.
    pub(crate) async fn free_retired(self: Arc<Self>) -> io::Result<()> {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut left = true;
        loop {
            tick.tick().await;
            let unused: Vec<_> = self
                .retired
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extract_if(.., |snapshot| Arc::strong_count(snapshot) == 1)
                .collect();
            if left || !unused.is_empty() {
                let process = Arc::clone(&self.process);
                let freeing = move || {
                    drop(unused);
                    process.metrics.services.forget_the_gone();
                    isthmus_sys::trim_memory();
                };
                tokio::task::spawn_blocking(freeing).await?;
                left = false;
            }
        }
    }
}
