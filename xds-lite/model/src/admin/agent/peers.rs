//! Other programs as an agent's status shows them: peers, clients, and what is probed of unreachable clusters.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Usage;

/// Contact with the agent of another cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Peer {
    /// Its address, `IP:PORT` or `NAME:PORT`.
    pub address: String,
    /// Its trust domain.
    #[serde(default)]
    pub trust_domain: String,
    /// Whether it is connected.
    pub connected: bool,
    /// Why the last contact was lost.
    pub error: Option<String>,
    /// When `connected` last changed.
    #[serde(default)]
    pub since: u64,
    /// Invalid slices rejected since the start.
    #[serde(default)]
    pub refusals: u64,
    /// The last rejected slice, and why.
    pub refusal: Option<String>,
    /// Bundles and deny-lists that it sends.
    #[serde(default)]
    pub bundle: BundleUpdates,
    /// What it offers, and the limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offers: Option<Offers>,
    /// The bundle of this side that it has acknowledged; absent for a peer of the same trust domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<Acknowledged>,
}

/// The outcome of a peer's bundle updates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BundleUpdates {
    /// The sequence number of the last bundle accepted since this agent started.
    pub taken: Option<u64>,
    /// Updates rejected since the start.
    #[serde(default)]
    pub refusals: u64,
    /// The last rejected update and why, unless one was accepted since.
    pub refusal: Option<String>,
    /// A recommended change on this side.
    pub advice: Option<String>,
}

/// What a peer offers, and its limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Offers {
    /// Its slices.
    pub slices: Usage,
    /// Their bytes.
    pub bytes: Usage,
    /// Their names.
    pub names: Usage,
    /// Names that were not granted, up to the length of the list.
    #[serde(default)]
    pub not_granted: u64,
    /// Whether there were more.
    #[serde(default)]
    pub not_granted_unlisted: bool,
}

/// The bundle of the own trust domain that a peer has acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Acknowledged {
    /// The sequence number of the acknowledged bundle; none before the first.
    pub sequence: Option<u64>,
    /// The sequence number of the published bundle.
    pub present: Option<u64>,
    /// Whether the published bundle is acknowledged.
    pub is_present: Option<bool>,
    /// Why the peer rejects the published bundle.
    pub refusal: Option<String>,
}

/// A gateway or peer that follows this agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Client {
    /// Its identity.
    pub peer: String,
    /// How far it is in what it is sent.
    #[serde(default)]
    pub position: u64,
    /// Whether it has accepted or rejected all of it.
    #[serde(default)]
    pub settled: bool,
    /// Responses that it rejected.
    #[serde(default)]
    pub refusals: u64,
    /// Why it rejected the last one, unless it has accepted one since.
    pub refusal: Option<String>,
}

/// Probes of unreachable clusters' addresses (`stale: probe`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Probed {
    /// Addresses probed.
    pub addresses: u64,
    /// Addresses that are down.
    pub down: u64,
    /// The first of those that are down, at most 1000.
    pub listed: Vec<Down>,
}

/// An address that is down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Down {
    /// `IP:PORT` or `NAME:PORT`.
    pub address: String,
    /// When it went down.
    #[serde(default)]
    pub since: u64,
    /// The error of the last probe.
    #[serde(default)]
    pub why: String,
}
