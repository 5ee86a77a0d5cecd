//! `/matrix` of a gateway: how it reaches the gateways of other clusters.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::matrix::Row;

/// How a gateway reaches the gateways of the clusters that it imports from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Matrix {
    /// One row for each gateway address of another cluster.
    pub rows: Vec<Row>,
    /// Since when none of them has answered, in seconds since 1970; none while one does.
    pub cut_off_since: Option<u64>,
    /// Addresses that are not probed because there are too many.
    pub left_out: u64,
}
