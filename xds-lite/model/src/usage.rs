//! What somebody uses of a limited resource, as `/status` shows it.

use serde::Serialize;

/// How somebody stands with one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// What is in use.
    pub used: u64,
    /// The most that may be.
    pub limit: u64,
    /// How often more was asked for, and refused.
    pub exceeded: u64,
}
