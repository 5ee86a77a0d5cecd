//! Counts signed and refused certificates, for status and metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counters since the start of the agent.
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

    /// Certificates issued.
    #[must_use]
    pub fn signed(&self) -> u64 {
        self.signed.load(Relaxed)
    }

    /// Requests refused or failed, for any reason.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}
