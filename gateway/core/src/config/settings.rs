//! What the gateway runs on, after every check: these types cannot hold a wrong configuration. Made
//! only by [`super::resolve`]; the file as it is written is [`super::raw`].

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use isthmus_certs::SpiffeId;
use isthmus_model::units;
use isthmus_model::{HostName, Locality};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::trusts::{FirstToken, ManagedTrust, Trusts};
pub use isthmus_model::address::Target;
pub use isthmus_model::services::{Balance, Endpoint, Named, RemoteGateway, Scope, Service, ServiceTimeouts};

/// Everything. What a running gateway can change is in [`Live`]; the rest is bound at start.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Read once, at start.
    #[serde(flatten)]
    pub fixed: Fixed,
    /// Swapped whole when the file changes.
    #[serde(flatten)]
    pub live: Live,
}

/// What is bound at start: changing it takes a restart, and an edit of it is refused as a whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fixed {
    /// Who this gateway is.
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
    /// Services that get counters of their own, at most; the rest are summed in one series.
    pub service_metrics: usize,
    /// This gateway's identity and trust, if it has any.
    pub trust: Option<Trusts>,
    /// Who gives it services.
    pub xds: Option<Xds>,
    /// How endpoints' host names are resolved.
    pub dns: Dns,
}

/// What may change while connections live.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Live {
    /// Index-aligned with [`Fixed::binds`].
    pub listeners: Vec<Listener>,
    /// In the file's order.
    pub services: Vec<Arc<Service>>,
    /// Process-wide limits.
    pub limits: Limits,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// How endpoints are reached.
    pub upstream: Upstream,
    /// How the gateway goes away.
    pub drain: Drain,
}

/// Who gives a gateway services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Xds {
    /// Whom to follow.
    #[serde(flatten)]
    pub source: Source,
    /// Where the last tables are kept, if anywhere.
    pub state: Option<PathBuf>,
}

/// Whom a gateway follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Agents of its cluster, in the order in which they are tried; at least one.
    Agents(Vec<Target>),
    /// A foreign control plane.
    ControlPlane(ControlPlane),
}

/// A control plane of Listeners, Clusters and ClusterLoadAssignments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ControlPlane {
    /// Where it is, in the order in which addresses are tried; at least one.
    pub addresses: Vec<Target>,
    /// How it is known.
    #[serde(flatten)]
    pub server: Known,
    /// The Listener with this port is the gateway's.
    pub port: u16,
    /// What the gateway is called there; none: as istiod's own proxies are.
    pub node_id: Option<String>,
    /// What else is said of it there.
    pub metadata: serde_json::Map<String, serde_json::Value>,
}

/// How a server is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Known {
    /// By its SPIFFE ID.
    #[serde(rename = "identity", serialize_with = "as_text")]
    Identity(SpiffeId),
    /// By a DNS name that a root of the gateway's own domain has signed for.
    #[serde(rename = "tls_name")]
    Name(HostName),
}

fn as_text<S: serde::Serializer>(id: &SpiffeId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

/// Who this gateway is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// The machine's host name unless set.
    pub id: String,
    /// The cluster it stands in.
    pub cluster: String,
    /// The network it stands in.
    pub network: String,
    /// Where it stands.
    pub locality: Locality,
}

/// One address to accept on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bind {
    /// Unique; the label of its metrics.
    pub name: String,
    /// Port 0 picks a free one.
    pub address: SocketAddr,
    /// Only for IPv6 addresses: refuse IPv4 on the same socket.
    pub ipv6_only: bool,
    /// The kernel's accept queue, for each worker.
    pub backlog: u32,
}

/// Who comes to a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum Side {
    /// Other clusters' gateways and clients: they reach what is exposed to them, in this cluster alone.
    #[default]
    EastWest,
    /// Local clients: they reach other clusters, too.
    Outbound,
}

/// What a listener does with what it accepts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listener {
    /// Who comes here.
    pub side: Side,
    /// Connections at once.
    pub max_connections: u32,
    /// The service (index in [`Live::services`]) for a hello that no name matches.
    pub default: Option<usize>,
    /// Sources that must send a PROXY header; all others must not.
    pub proxy_from: Vec<IpNet>,
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
    /// Replays of a ClientHello after an endpoint answered it badly.
    pub replay: Replay,
    /// Ejection of endpoints that cannot be connected to.
    pub ejection: Ejection,
    /// How long an endpoint that turned a hello away or could not be connected to is tried last; none: never.
    #[serde(serialize_with = "units::duration_or_off")]
    pub demotion: Option<Duration>,
}

/// The budget of a service for sending a ClientHello again.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replay {
    /// Replays allowed for each connection, on average; 0.2 is one in five.
    pub ratio: f64,
    /// Replays allowed at once whatever the traffic.
    pub burst: u32,
    /// The share of the burst that one source address may use in 10 s.
    pub source_share: f64,
}

/// When an endpoint that cannot be connected to is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ejection {
    /// Connect failures in a row; 0 never ejects.
    pub failures: u32,
    /// For how long, times the number of ejections so far.
    #[serde(serialize_with = "units::duration")]
    pub base: Duration,
    /// At most this long.
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
    /// Between probes.
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
    /// Bytes of lines that wait to be written, for each worker; beyond, lines are dropped and counted.
    pub buffer: usize,
}

/// How the gateway goes away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drain {
    /// Keep accepting this long after readiness went off.
    #[serde(serialize_with = "units::duration")]
    pub accept_for: Duration,
    /// Then close the connections over this long.
    #[serde(serialize_with = "units::duration")]
    pub window: Duration,
}

/// How host names of endpoints are resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dns {
    /// Servers to ask; empty: those of the system.
    pub servers: Vec<SocketAddr>,
    /// An answer is used at least this long, whatever its TTL.
    #[serde(serialize_with = "units::duration")]
    pub min_ttl: Duration,
    /// And at most this long.
    #[serde(serialize_with = "units::duration")]
    pub max_ttl: Duration,
}
