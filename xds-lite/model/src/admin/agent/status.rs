//! `/status` of an agent.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Client, Matrix, Names, Peer, Probed};
use crate::Usage;
use crate::admin::StoreHealth;

/// The state of an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The version of the program.
    pub version: String,
    /// Its cluster.
    pub cluster: String,
    /// Its network.
    pub network: String,
    /// Why the last edit of the agent's file is not in use; none: it is.
    pub refused_edit: Option<String>,
    /// Whether keys of the agent's file have changed that are read at start only.
    #[serde(default)]
    pub needs_restart: bool,
    /// The registry: files and registered VMs.
    #[serde(default)]
    pub registry: Registry,
    /// What is offered to other clusters.
    #[serde(default)]
    pub exports: Exports,
    /// What other clusters offer.
    #[serde(default)]
    pub imports: Slices,
    /// The own trust domain.
    #[serde(default)]
    pub trust: Trust,
    /// The agents of other clusters, by cluster.
    #[serde(default)]
    pub peers: BTreeMap<String, Peer>,
    /// What is persisted for a restart.
    #[serde(default)]
    pub state: State,
    /// Certificates that the agent issues; none without `issuing`.
    pub issuing: Option<Issuing>,
    /// Names for applications without TLS; none without `virtual_addresses` and `originate_ports`.
    pub names: Option<Names>,
    /// Who follows this agent: `gateways` and `peers`.
    #[serde(default)]
    pub nodes: BTreeMap<String, Vec<Client>>,
    /// What the cluster's gateways report.
    #[serde(default)]
    pub reports: Matrix,
    /// What each client uses of each resource: by kind of client, identity and resource.
    #[serde(default)]
    pub budgets: BTreeMap<String, BTreeMap<String, BTreeMap<String, Usage>>>,
    /// What the tables for Envoys leave out and why; none unless Envoys are served.
    pub envoys: Option<Vec<String>>,
    /// What the tables for gRPC clients leave out and why; none unless Envoys are served.
    pub grpc: Option<Vec<String>>,
}

/// The registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Registry {
    /// Hosts.
    pub hosts: u64,
    /// Registered VMs.
    pub registered: u64,
    /// Registrations of each user and token.
    pub registrars: BTreeMap<String, u64>,
    /// Files that cannot be used and registrations that are ignored, and why.
    pub problems: Vec<String>,
}

/// What is offered to other clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Exports {
    /// Exported hosts.
    pub count: u64,
    /// Hosts that an export rule selects and that are not exported, at most 1000.
    pub held_back: Vec<NotExported>,
}

/// A host that is not exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NotExported {
    /// The host.
    pub host: String,
    /// Why it is not exported.
    pub why: String,
}

/// What other clusters offer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Slices {
    /// Imported slices.
    pub count: u64,
    /// Imported slices, at most 1000.
    pub imported: Vec<ImportedSlice>,
    /// Quarantined slices, at most 1000.
    pub held_back: Vec<ImportedSlice>,
    /// Probes of unreachable clusters' addresses.
    pub probed: Probed,
}

/// A slice of another cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImportedSlice {
    /// The cluster that owns it.
    pub cluster: String,
    /// The host.
    pub host: String,
    /// Why it is quarantined; none: it is imported.
    pub held: Option<String>,
}

/// The own trust domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Trust {
    /// The trust domain.
    #[serde(default)]
    pub domain: String,
    /// The sequence number of its bundle.
    pub sequence: Option<u64>,
    /// The sequence number of its deny-list; none without one.
    pub deny_list: Option<u64>,
    /// Files that were refused and why; their previous content stays in use.
    #[serde(default)]
    pub refused: Vec<String>,
}

/// What is persisted for a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct State {
    /// Each store; none without `state`.
    pub stores: Vec<StoreHealth>,
    /// Persisted records that are ignored, and why.
    pub problems: Vec<String>,
}

/// Certificates that the agent issues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Issuing {
    /// The serial number of the intermediate, hexadecimal.
    pub serial: Option<String>,
    /// When the intermediate expires, RFC 3339.
    pub until: Option<String>,
    /// Certificates issued since the start.
    #[serde(default)]
    pub signed: u64,
    /// Requests refused since the start.
    #[serde(default)]
    pub refused: u64,
    /// Why new files of the intermediate are not used.
    pub problem: Option<String>,
}
