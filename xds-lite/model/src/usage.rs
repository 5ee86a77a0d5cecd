//! The use of a limited resource, as `/status` shows it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The use of one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// The amount in use.
    pub used: u64,
    /// The limit.
    pub limit: u64,
    /// How often a request beyond the limit was refused.
    pub exceeded: u64,
}
