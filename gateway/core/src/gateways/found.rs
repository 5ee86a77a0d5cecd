//! What probes of other clusters' gateways have found, for pages, metrics and reports.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use isthmus_health::matrix::{Answer, Distances};
use isthmus_model::matrix::Row;
use tokio::sync::watch;

/// What is known of other clusters' gateways.
#[derive(Debug, Default)]
pub struct Found {
    /// Every probed address.
    pub rows: watch::Sender<Arc<Rows>>,
    /// The classes of distance.
    pub distances: watch::Sender<Distances>,
    /// Probes so far by [`RESULTS`].
    pub probes: [AtomicU64; RESULTS.len()],
}

/// The words for the results of probes.
pub const RESULTS: [&str; 4] = ["alert", "closed", "unreached", "not_asked"];

/// The matrix as pages, metrics and reports show it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// One row for each address.
    pub rows: Vec<Row>,
    /// Since when no address has answered, in seconds since 1970.
    pub cut_off_since: Option<u64>,
    /// Addresses that are not probed because there are too many.
    pub left_out: usize,
}

impl Found {
    /// Returns every probed address.
    #[must_use]
    pub fn rows(&self) -> Arc<Rows> {
        Arc::clone(&self.rows.borrow())
    }

    pub(crate) fn count(&self, answer: &Answer) {
        let result = match answer {
            Answer::Alerted(_) => 0,
            Answer::Closed(_) => 1,
            Answer::Unreached(_) => 2,
            Answer::Unasked => 3,
        };
        self.probes.get(result).into_iter().for_each(|count| _ = count.fetch_add(1, Relaxed));
    }
}
