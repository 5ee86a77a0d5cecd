//! Defines the checked settings: these types cannot hold an invalid configuration. Only [`super::resolve`] makes
//! them; [`super::raw`] is the file as written.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use isthmus_certs::SpiffeId;
use isthmus_model::binding::Binding;
use isthmus_model::units;
use isthmus_model::{HostName, Locality};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::destinations::{Capture, Destination, OriginalDestination, Sockets, VirtualAddresses};
pub use super::trusts::{FirstToken, ManagedTrust, Trusts};
pub use isthmus_model::address::Target;
pub use isthmus_model::services::{
    Balance, CertificateFiles, Endpoint, HealthCheck, Named, RemoteGateway, Scope, Service, ServiceAccess,
    ServiceTimeouts, ServiceTls, TlsMode,
};

/// All settings. [`Live`] can change while the gateway runs; the rest is bound at start.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Read once, at start.
    #[serde(flatten)]
    pub fixed: Fixed,
    /// Swapped as a whole when the file changes.
    #[serde(flatten)]
    pub live: Live,
}

/// Settings bound at start: a change needs a restart, and an edit of them is refused as a whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fixed {
    /// Identity of this gateway in its cluster.
    pub node: Node,
    /// Worker threads, at least 1.
    pub workers: usize,
    /// At least one; names are unique. Index-aligned with [`Live::listeners`].
    pub binds: Vec<Bind>,
    /// Admin address; loopback unless the file says otherwise.
    pub admin: SocketAddr,
    /// Where `/metrics` is served.
    pub metrics: SocketAddr,
    /// Where `/healthz/*` is served.
    pub health: SocketAddr,
    /// Pipes and their size.
    pub relay: Relay,
    /// Socket options.
    pub tcp: Tcp,
    /// Access log.
    pub access_log: AccessLog,
    /// The file of the audit log; none: no audit log.
    pub audit_log: Option<PathBuf>,
    /// Maximum number of services with their own counters; the rest are summed in one series.
    pub service_metrics: usize,
    /// This gateway's identity and trust, if it has any.
    pub trust: Option<Trusts>,
    /// The agents or control plane that supply services.
    pub xds: Option<Xds>,
    /// How endpoints' host names are resolved.
    pub dns: Dns,
    /// Whether the agent's bindings and callers are asked for: a listener needs them.
    #[serde(skip)]
    pub follows_bindings: bool,
}

/// Settings that may change while the gateway runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Live {
    /// Index-aligned with [`Fixed::binds`].
    pub listeners: Vec<Listener>,
    /// In the file's order.
    pub services: Vec<Arc<Service>>,
    /// What leads to hosts from applications without TLS; hosts, addresses and listener ports are unique.
    pub bindings: Vec<Arc<Binding>>,
    /// What `isthmus-gateway capture` captures.
    pub capture: Option<Capture>,
    /// Process-wide limits.
    pub limits: Limits,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// How endpoints are reached.
    pub upstream: Upstream,
    /// How the gateway drains.
    pub drain: Drain,
}

/// The source of services beside the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Xds {
    /// Agents or a control plane.
    #[serde(flatten)]
    pub source: Source,
    /// Directory of the persisted tables, if any.
    pub state: Option<PathBuf>,
}

/// What a gateway follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Agents of its cluster, in the order in which they are tried; at least one.
    Agents(Vec<Target>),
    /// A control plane other than an agent.
    ControlPlane(ControlPlane),
}

/// A control plane of Listeners, Clusters and ClusterLoadAssignments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ControlPlane {
    /// Its addresses, in the order in which they are tried; at least one.
    pub addresses: Vec<Target>,
    /// How it is authenticated.
    #[serde(flatten)]
    pub server: Known,
    /// The Listener with this port is the gateway's.
    pub port: u16,
    /// The gateway's node ID there; none: in the form of istiod's own proxies.
    pub node_id: Option<String>,
    /// Node metadata sent to it.
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

/// How a server is authenticated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Known {
    /// By its SPIFFE ID.
    #[serde(rename = "identity", serialize_with = "as_text")]
    Identity(SpiffeId),
    /// By a DNS name in a certificate issued under the gateway's own trust domain.
    #[serde(rename = "tls_name")]
    Name(HostName),
}

fn as_text<S: serde::Serializer>(id: &SpiffeId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

/// The gateway's identity in its cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// The machine's host name unless set.
    pub id: String,
    /// Its cluster.
    pub cluster: String,
    /// Its network.
    pub network: String,
    /// Its locality.
    pub locality: Locality,
}

/// One address to accept on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bind {
    /// Unique name; the label of its metrics.
    pub name: String,
    /// With port 0 the kernel picks a free one.
    #[serde(rename = "address")]
    pub sockets: Sockets,
    /// Only for IPv6 addresses: refuse IPv4 on the same socket.
    pub ipv6_only: bool,
    /// Length of the kernel's accept queue, for each worker.
    pub backlog: u32,
}

/// The clients of a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum Side {
    /// Other clusters' gateways and clients: they reach exported endpoints of this cluster only.
    #[default]
    EastWest,
    /// Local clients: they also reach other clusters' gateways.
    Outbound,
}

/// What the clients of a listener speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Mode {
    /// TLS, which is routed by its ClientHello.
    #[default]
    Passthrough,
    /// Plaintext, for which the gateway begins mTLS.
    Originate,
}

/// How a listener for applications without TLS finds services, and its callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Originate {
    /// How the service of a connection is found.
    pub to: Destination,
    /// Who calls.
    pub callers: Callers,
}

/// The callers of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Callers {
    /// At least one; no range has two identities.
    OfFile(Vec<Caller>),
    /// Those of the agent.
    OfAgent,
}

impl Callers {
    /// Returns those of the file.
    #[must_use]
    pub fn of_file(&self) -> &[Caller] {
        match self {
            Callers::OfFile(callers) => callers,
            Callers::OfAgent => &[],
        }
    }
}

/// Callers with one identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Caller {
    /// Their addresses.
    pub sources: Vec<IpNet>,
    /// Their identity.
    pub identity: SpiffeId,
    /// Its certificate; `None` where the agent issues it.
    #[serde(flatten)]
    pub files: Option<CertificateFiles>,
}

impl Caller {
    /// Returns the caller with this address, by the longest prefix.
    #[must_use]
    pub fn find(source: IpAddr, callers: &[Caller]) -> Option<&Caller> {
        let prefix = |caller: &Caller| {
            let nets = caller.sources.iter().filter(|net| net.contains(&source));
            nets.map(IpNet::prefix_len).max()
        };
        let known = callers.iter().filter_map(|caller| Some((prefix(caller)?, caller)));
        known.max_by_key(|(prefix, _)| *prefix).map(|(_, caller)| caller)
    }
}

/// How a listener treats its connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listener {
    /// The clients it serves.
    pub side: Side,
    /// Connections at once.
    pub max_connections: u32,
    /// The service (index in [`Live::services`]) for a hello that no name matches.
    pub default: Option<usize>,
    /// Sources that must send a PROXY header; all others must not.
    pub proxy_from: Vec<IpNet>,
    /// Set where applications without TLS connect.
    #[serde(skip)]
    pub originate: Option<Box<Originate>>,
}

/// Limits of the whole process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Connections at once; never past 90 % of the descriptor limit.
    pub connections: u32,
    /// Connections at once from one source address; none: no limit.
    #[serde(serialize_with = "units::count_or_off")]
    pub per_source: Option<u32>,
    /// Bytes of one ClientHello, at most 64 KiB.
    pub hello_size: usize,
    /// Bytes of all ClientHellos in flight.
    pub hello_memory: usize,
}

/// Deadlines of the whole process. None: no limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Timeouts {
    /// From accept to a whole ClientHello.
    #[serde(serialize_with = "units::duration")]
    pub hello: Duration,
}

/// How endpoints are reached.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Upstream {
    /// Endpoints tried for one connection, each a different one.
    pub attempts: u32,
    /// Local addresses to connect from, in turn; empty: the kernel's choice.
    pub source_addresses: Vec<IpAddr>,
    /// Replays of a ClientHello after an endpoint rejected it.
    pub replay: Replay,
    /// Ejection of endpoints that cannot be connected to.
    pub ejection: Ejection,
    /// How long an endpoint that rejected a ClientHello or could not be connected to is tried last; none: never.
    #[serde(serialize_with = "units::duration_or_off")]
    pub demotion: Option<Duration>,
}

/// The budget of a service for sending a ClientHello again.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replay {
    /// Replays allowed for each connection, on average; 0.2 is one in five.
    pub ratio: f64,
    /// Replays allowed at once, whatever the traffic.
    pub burst: u32,
    /// The share of the burst that one source address may use in 10 s.
    pub source_share: f64,
}

/// When an endpoint that cannot be connected to is ejected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ejection {
    /// Connect failures in a row; 0 never ejects.
    pub failures: u32,
    /// Duration of an ejection, multiplied by the number of ejections so far.
    #[serde(serialize_with = "units::duration")]
    pub base: Duration,
    /// Maximum duration of an ejection.
    #[serde(serialize_with = "units::duration")]
    pub max: Duration,
    /// At most this share of a service's endpoints, in per cent; one may always be ejected.
    pub max_percent: u8,
}

/// Pipes for splicing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Relay {
    /// Bytes that a pipe should hold; below 256 KiB the relay copies instead.
    pub pipe_size: usize,
    /// Pipes of the process, at most; 0 always copies.
    pub pipes: usize,
}

/// Socket options of both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tcp {
    /// TCP_NODELAY.
    pub nodelay: bool,
    /// Silence before the first keepalive probe; none turns keepalive off.
    #[serde(serialize_with = "units::duration_or_off")]
    pub keepalive_idle: Option<Duration>,
    /// Interval between probes.
    #[serde(serialize_with = "units::duration")]
    pub keepalive_interval: Duration,
    /// Unanswered probes before the connection is dead.
    pub keepalive_probes: u32,
    /// SO_RCVBUF in bytes; none: the kernel tunes it.
    #[serde(serialize_with = "units::size_or_auto")]
    pub receive_buffer: Option<usize>,
    /// SO_SNDBUF in bytes; none: the kernel tunes it.
    #[serde(serialize_with = "units::size_or_auto")]
    pub send_buffer: Option<usize>,
}

/// The access log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AccessLog {
    /// One JSON line a connection on standard output.
    pub enabled: bool,
    /// Also connections that never sent a byte.
    pub no_data: bool,
    /// Also probes of other clusters' gateways.
    pub probes: bool,
    /// Bytes of lines that wait to be written, for each worker; beyond, lines are dropped and counted.
    pub buffer: usize,
}

/// How the gateway drains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drain {
    /// How long to keep accepting after readiness failed.
    #[serde(serialize_with = "units::duration")]
    pub accept_for: Duration,
    /// Then the window over which connections are closed.
    #[serde(serialize_with = "units::duration")]
    pub window: Duration,
}

/// How host names of endpoints are resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dns {
    /// Name servers; empty: those of the system.
    pub servers: Vec<SocketAddr>,
    /// An answer is used at least this long, whatever its TTL.
    #[serde(serialize_with = "units::duration")]
    pub min_ttl: Duration,
    /// An answer is used at most this long.
    #[serde(serialize_with = "units::duration")]
    pub max_ttl: Duration,
}
