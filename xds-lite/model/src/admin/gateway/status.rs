//! `/status` of a gateway.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DownEndpoint, Matrix};
use crate::Locality;
use crate::admin::StoreHealth;

/// The state of a gateway. Times are RFC 3339, in UTC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The version of the program.
    pub version: String,
    /// Its identity in its cluster.
    pub node: Node,
    /// `serving`, `draining` or `ended`.
    pub phase: String,
    /// Whether `/healthz/ready` answers 200.
    pub ready: bool,
    /// When the gateway started.
    #[serde(default)]
    pub started: String,
    /// Seconds since then.
    #[serde(default)]
    pub uptime_seconds: u64,
    /// The worker threads.
    #[serde(default)]
    pub workers: Vec<Worker>,
    /// The listeners, in the file's order.
    #[serde(default)]
    pub listeners: Vec<Listener>,
    /// Open connections and their limit.
    #[serde(default)]
    pub connections: Connections,
    /// The tables in use.
    #[serde(default)]
    pub tables: Tables,
    /// What leads to hosts from applications without TLS.
    #[serde(default)]
    pub bindings: Bindings,
    /// The host names of endpoints and what they resolve to.
    #[serde(default)]
    pub names: BTreeMap<String, Resolved>,
    /// Edits of the configuration file.
    #[serde(default)]
    pub reloads: Reloads,
    /// The last edit, if it was refused.
    pub last_refused_edit: Option<LastRefusedEdit>,
    /// Endpoints that do not answer the gateway's own ClientHello.
    #[serde(default)]
    pub endpoints_failing: u64,
    /// The gateways of other clusters.
    #[serde(default)]
    pub matrix: Matrix,
    /// The health of endpoints.
    #[serde(default)]
    pub endpoint_health: EndpointHealth,
    /// Parts taken out of their split because too many of their connections failed; at most 100 are listed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub split_aborts: Vec<AbortedPart>,
    /// Memory of unfinished ClientHellos, in bytes.
    #[serde(default)]
    pub hello_memory_bytes: u64,
    /// Unfinished ClientHellos dropped in favour of other sources, since the start.
    #[serde(default)]
    pub hellos_given_up: u64,
    /// Pipes for splicing.
    #[serde(default)]
    pub pipes: Pipes,
    /// Contact with the agent or control plane; none without `xds`.
    pub agent: Option<AgentContact>,
    /// The persisted tables; none without `xds.state`.
    pub state: Option<StoreHealth>,
    /// The identity and its trust; none without `trust`.
    pub trust: Option<Trust>,
    /// Lines of the access log dropped since the start because nothing read them fast enough.
    #[serde(default)]
    pub access_log_dropped: u64,
}

/// The health of endpoints, as far as the gateway has seen it itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct EndpointHealth {
    /// Endpoints of services with `health.probe`.
    pub probed: u64,
    /// How many times longer than configured the interval of the slowest recent probe was; 1 is as configured.
    pub stretch: f64,
    /// Endpoints that are ejected or have failed their probes.
    pub unhealthy: u64,
    /// The first of them.
    pub listed: Vec<UnhealthyEndpoint>,
}

/// An unhealthy endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnhealthyEndpoint {
    /// The service, `HOST:PORT`.
    pub service: String,
    /// Its address, `IP:PORT`.
    pub address: String,
    /// The cluster behind it, if it is another cluster's gateway.
    pub cluster: Option<String>,
    /// When it turned unhealthy, RFC 3339.
    #[serde(default)]
    pub since: String,
    /// Why: the reason of its failed connects, or the kind of probe and its result.
    #[serde(default)]
    pub why: String,
}

/// The identity of a gateway in its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Node {
    /// The machine's host name unless set.
    pub id: String,
    /// Its cluster.
    pub cluster: String,
    /// Its network.
    #[serde(default)]
    pub network: String,
    /// Its locality.
    #[serde(default)]
    pub locality: Locality,
}

/// A worker thread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Worker {
    /// Its open connections.
    #[serde(default)]
    pub connections: u64,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// The bound address, `IP:PORT`; with a range of ports, or `virtual addresses`, where bindings say what is open.
    pub address: String,
    /// Open sockets, where bindings say what is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open: Option<u64>,
    /// The first of the addresses that bindings call for and that cannot be listened on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_open: Vec<NotOpen>,
    /// Its open connections.
    #[serde(default)]
    pub connections: u32,
    /// Connections accepted since the start.
    #[serde(default)]
    pub accepted: u64,
}

/// An address that cannot be listened on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NotOpen {
    /// The address, `IP:PORT`.
    pub address: String,
    /// The error and its remedy.
    pub why: String,
}

/// What leads to hosts from applications without TLS, and who calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Bindings {
    /// Bound hosts, of the file and of the agent.
    pub hosts: u64,
    /// Callers of the agent.
    pub callers: u64,
    /// The first of the virtual addresses and listener ports that several hosts claim; they lead to none of them.
    pub conflicts: Vec<String>,
}

/// Open connections and their limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Connections {
    /// Open now.
    pub open: u32,
    /// The limit: `limits.connections`, or what the descriptors allow if that is less.
    pub limit: u32,
    /// Connections that the process's descriptors allow.
    pub descriptors_allow: u32,
    /// Refused connections that stay open until their alert has arrived.
    pub lingering: u32,
}

/// The tables in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Tables {
    /// The number of the snapshot; grows with each change.
    pub epoch: u64,
    /// When they last changed.
    pub changed: String,
    /// Seconds since then.
    pub age_seconds: u64,
    /// Services.
    pub services: u64,
    /// Endpoints of all services.
    pub endpoints: u64,
}

/// What an endpoint's host name resolves to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resolved {
    /// The addresses in use, sorted; empty before the first answer.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// When they were last confirmed.
    pub confirmed: Option<String>,
    /// Why some or all could not be confirmed since.
    pub problem: Option<String>,
}

/// Edits of the configuration file since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Reloads {
    /// Applied.
    pub applied: u64,
    /// Refused as a whole.
    pub refused: u64,
}

/// A refused edit of the configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LastRefusedEdit {
    /// Its problems, one a line.
    pub why: String,
    /// When the edit was seen.
    #[serde(default)]
    pub at: String,
}

/// Pipes for splicing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Pipes {
    /// The limit.
    pub limit: u64,
    /// Open now.
    pub open: u64,
    /// Connections that copied because there was no pipe, since the start.
    pub denied: u64,
}

/// Contact with the agent or control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgentContact {
    /// The address tried last.
    pub agent: Option<String>,
    /// Whether it is connected.
    pub connected: bool,
    /// When `connected` last changed.
    #[serde(default)]
    pub since: String,
    /// Why it is not connected.
    pub error: Option<String>,
    /// Slices in the tables; of a control plane, services.
    #[serde(default)]
    pub slices: u64,
    /// Slices, or resources of a control plane, refused since the start.
    #[serde(default)]
    pub refusals: u64,
    /// The last of them and why.
    pub refusal: Option<String>,
    /// Addresses probed while it is not connected (`stale: probe`).
    pub probed: Option<Probed>,
}

/// Addresses probed while the agent is unreachable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Probed {
    /// Addresses probed.
    pub addresses: u64,
    /// Addresses that are down.
    pub down: u64,
    /// The first of those that are down.
    pub listed: Vec<DownEndpoint>,
}

/// A gateway's identity and trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Trust {
    /// Loaded.
    Loaded(LoadedTrust),
    /// Awaiting the first certificate.
    Awaited(AwaitedTrust),
}

/// A loaded identity and its trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LoadedTrust {
    /// The SPIFFE ID.
    pub identity: String,
    /// Renewal of the certificate; none unless the gateway renews it itself (`trust.directory`).
    pub renewal: Option<Renewal>,
    /// Grows with each change of the files.
    #[serde(default)]
    pub epoch: u64,
    /// The certificates in use and when each expires.
    #[serde(default)]
    pub certificates: Vec<Certificate>,
    /// The trust domains that are trusted.
    #[serde(default)]
    pub domains: Vec<Domain>,
    /// Files that were refused and why; their previous content stays in use.
    #[serde(default)]
    pub refused: Vec<String>,
    /// Callers and services whose certificates the agent issues.
    #[serde(default)]
    pub issued: Vec<Issued>,
}

/// A caller or service whose certificate the agent issues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Issued {
    /// The SPIFFE ID.
    pub identity: String,
    /// When its certificate expires; none while it has none, and its connections are refused.
    pub not_after: Option<String>,
    /// When it is renewed.
    pub due: Option<String>,
    /// Why it has no certificate, or no new one.
    pub problem: Option<String>,
}

/// An identity whose first certificate has not been obtained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AwaitedTrust {
    /// Always null.
    pub identity: (),
    /// Why there is no certificate yet.
    pub problem: Option<String>,
}

/// Renewal of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Renewal {
    /// When it is due.
    pub due: String,
    /// Why the last attempt failed.
    pub problem: Option<String>,
}

/// A certificate in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Certificate {
    /// `leaf`, `intermediate` or `root`.
    pub kind: String,
    /// The leaf's SPIFFE ID, or the trust domain.
    pub name: String,
    /// The serial number, hexadecimal.
    #[serde(default)]
    pub serial: String,
    /// When it expires.
    pub not_after: String,
}

/// A trusted domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Domain {
    /// The trust domain.
    pub trust_domain: String,
    /// The sequence number of its bundle.
    pub sequence: Option<u64>,
    /// The sequence number of its deny-list; none without one.
    pub denied: Option<u64>,
}

/// A part that was taken out of its split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AbortedPart {
    /// The service, `HOST:PORT`.
    pub service: String,
    /// The part, as written: `cluster: NAME` or `labels: { … }`.
    pub part: String,
}
