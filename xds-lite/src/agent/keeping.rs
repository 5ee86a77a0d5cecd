//! What an agent keeps for a restart: where, and what it does when it cannot.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::slice::Cluster;

/// Milliseconds since 1970: higher than any before, unless a clock was set back and nothing was kept.
pub(super) fn incarnation() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Where the slices of a peer are kept.
pub(super) fn import_path(folder: &Path, cluster: &Cluster) -> PathBuf {
    folder.join("imports").join(format!("{cluster}.slices"))
}

/// Says that something could not be kept.
pub(super) fn report(outcome: io::Result<()>, what: &str) {
    if let Err(error) = outcome {
        tracing::error!(%error, what, "cannot be kept for a restart; it is served all the same");
    }
}
