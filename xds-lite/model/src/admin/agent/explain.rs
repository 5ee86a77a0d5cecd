//! `/explain` of an agent: what it knows of a name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Down;
use crate::admin::{Address, Decided};

/// What an agent knows of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The name in the question.
    pub asked: String,
    /// The host that has the name; the name itself if no host has it.
    pub host: String,
    /// Whether it is the name of a `host`, an `alias` or an `instance`; none: no host has it.
    pub named_by: Option<String>,
    /// The port in a name such as `outbound_.PORT_._.HOST`.
    pub port: Option<u16>,
    /// Other hosts with the same name.
    #[serde(default)]
    pub others: Vec<String>,
    /// The host in the registry of this cluster.
    pub registry: Option<RegisteredHost>,
    /// The slice that this cluster offers.
    pub offer: Option<OwnOffer>,
    /// What the rules of each port of the own slice say about the caller in the question.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub access: Vec<PortAccess>,
    /// The policies of the traffic of this cluster's callers, those of single ports first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<PolicyOf>,
    /// The slices that other clusters offer.
    #[serde(default)]
    pub imports: Vec<Import>,
    /// What only another cluster's agent can tell.
    pub note: Option<String>,
}

/// A host in the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RegisteredHost {
    /// Whether an export rule selects it.
    pub chosen_by_an_export: bool,
    /// The gateways to export it on; empty: all; none: it is not selected.
    pub on_gateways: Option<Vec<String>>,
    /// Why it is not exported; none: it is.
    pub why_not: Option<String>,
    /// Its ports.
    #[serde(default)]
    pub ports: Vec<RegisteredPort>,
}

/// A port of a host in the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RegisteredPort {
    /// The port.
    pub port: u16,
    /// Its endpoints.
    #[serde(default)]
    pub endpoints: Vec<RegisteredEndpoint>,
}

/// An endpoint in the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RegisteredEndpoint {
    /// Its address.
    pub address: Address,
    /// Its stable name.
    pub instance: Option<String>,
    /// The result of its mTLS check; none: it needs none.
    pub mtls: Option<MtlsResult>,
}

/// The result of an mTLS check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MtlsResult {
    /// Not checked yet.
    Awaited,
    /// It refuses clients without a certificate.
    Required,
    /// It accepts them: what it did.
    NotRequired(String),
    /// It is unreachable or does not speak TLS: why.
    Unreachable(String),
}

/// The slice that this cluster offers of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OwnOffer {
    /// The start of the agent that set the revision.
    pub incarnation: u64,
    /// The revision.
    pub revision: u64,
    /// Its ports; none: the slice is withdrawn.
    pub ports: Option<Vec<OfferedPort>>,
    /// The addresses of the gateways through which it is reached.
    #[serde(default)]
    pub gateways: Vec<String>,
}

/// A port of an offered slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OfferedPort {
    /// The port.
    pub port: u16,
    /// Whether it is exported.
    #[serde(default)]
    pub exported: bool,
    /// Its endpoints.
    #[serde(default)]
    pub endpoints: u64,
    /// Those of them that other clusters may reach.
    #[serde(default)]
    pub exposed: u64,
}

/// What the rules of a port say about a caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortAccess {
    /// The port.
    pub port: u16,
    /// The decision.
    #[serde(flatten)]
    pub decided: Decided,
}

/// The policy of a port's traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyOf {
    /// The port; none: every port that is not listed.
    pub port: Option<u16>,
    /// Where it is written: `registry`, or the entry of the agent's file such as `traffic[0]`; none: nowhere.
    pub written: Option<String>,
    /// What differs from the defaults, as files write it; `default`: nothing.
    pub policy: String,
}

/// A slice that another cluster offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Import {
    /// The cluster that owns it.
    pub cluster: String,
    /// The host.
    pub host: String,
    /// Why it is quarantined; none: it is imported.
    pub held: Option<String>,
    /// By which rule it is kept; none while its cluster is reachable.
    pub stale: Option<Stale>,
}

/// How a slice of an unreachable cluster is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stale {
    /// `keep`, `probe`, or a time such as `10m`.
    pub rule: String,
    /// Since when its cluster is unreachable.
    pub since: Option<u64>,
    /// Its addresses that are down.
    #[serde(default)]
    pub down: Vec<Down>,
}
