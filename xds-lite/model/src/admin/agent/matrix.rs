//! `/matrix` of an agent: what the cluster's gateways report.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::matrix::Row;

/// How the cluster's gateways reach other clusters, and which of the cluster's endpoints they find unhealthy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Matrix {
    /// What each gateway reports, by its identity.
    pub gateways: BTreeMap<String, GatewayReport>,
}

/// What one gateway reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GatewayReport {
    /// Whether its stream of reports is open.
    pub connected: bool,
    /// Seconds since its last sign of life.
    pub age_seconds: u64,
    /// Whether the report counts: it is at most 15 seconds old.
    pub fresh: bool,
    /// Since when no gateway of another cluster has answered it; none while one does.
    pub cut_off_since: Option<u64>,
    /// The gateway addresses of other clusters.
    pub matrix: Vec<Row>,
    /// Endpoints of this cluster to which it sends no new connections.
    pub unhealthy_count: u64,
    /// The first 100 of them.
    pub unhealthy: Vec<UnhealthyEndpoint>,
}

/// An endpoint that a gateway finds unhealthy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UnhealthyEndpoint {
    /// Its service, `HOST:PORT`.
    pub service: String,
    /// Its address.
    pub address: String,
    /// Since when.
    pub since: u64,
    /// Why.
    pub why: String,
}
