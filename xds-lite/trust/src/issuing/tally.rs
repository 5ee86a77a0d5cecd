//! How many certificates were signed and refused, for status and metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Since the agent started.
#[derive(Debug, Default)]
pub struct Tally {
    signed: AtomicU64,
    refused: AtomicU64,
}

impl Tally {
    pub(super) fn count(&self, is_signed: bool) {
        let count = if is_signed { &self.signed } else { &self.refused };
        count.fetch_add(1, Relaxed);
    }

    /// Certificates that were given away.
    #[must_use]
    pub fn signed(&self) -> u64 {
        self.signed.load(Relaxed)
    }

    /// Requests that were not followed, whatever the reason.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}
