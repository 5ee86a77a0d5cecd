//! Defines every section of the file but `listeners:` and `services:`, as written.

use isthmus_model::Locality;
use isthmus_model::address::{Ip, ListenAddress, ServerAddress, TargetAddress};
use isthmus_model::at::At;
use isthmus_model::units::{
    Count, CountOrOff, Share, Size, SizeOrAuto, Time, TimeOrOff, show_duration, show_duration_or_off,
    show_size,
};
use isthmus_model::values::PORTS;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::defaults;

/// The gateway's identity in its cluster.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Node {
    /// Name of the gateway; at most 253 bytes. Default: the machine's host name.
    pub(crate) id: Option<At<String>>,
    /// Its cluster; at most 253 bytes.
    #[schemars(extend("default" = defaults::CLUSTER))]
    pub(crate) cluster: Option<At<String>>,
    /// Its network; at most 253 bytes. Default: empty.
    #[schemars(extend("default" = ""))]
    pub(crate) network: Option<At<String>>,
    /// Its locality. Default: unknown.
    pub(crate) locality: Option<Locality>,
}

/// Limits of the whole process.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    /// Connections at once; never more than 90 % of the descriptor limit allows.
    #[schemars(extend("default" = defaults::CONNECTIONS))]
    #[schemars(extend("minimum" = defaults::CONNECTION_COUNTS.0, "maximum" = defaults::CONNECTION_COUNTS.1))]
    pub(crate) connections: Option<At<Count>>,
    /// Connections at once from one source address, or `off`.
    #[schemars(extend("default" = "off"))]
    #[schemars(extend("minimum" = defaults::CONNECTION_COUNTS.0, "maximum" = defaults::CONNECTION_COUNTS.1))]
    pub(crate) per_source: Option<At<CountOrOff>>,
    /// Size of one ClientHello, 1KiB to 64KiB.
    #[schemars(extend("default" = show_size(defaults::HELLO_SIZE)))]
    pub(crate) hello_size: Option<At<Size>>,
    /// Memory of all ClientHellos in flight; at least `hello_size`.
    #[schemars(extend("default" = show_size(defaults::HELLO_MEMORY)))]
    pub(crate) hello_memory: Option<At<Size>>,
}

/// Deadlines.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Timeouts {
    /// From accept to a complete ClientHello.
    #[schemars(extend("default" = show_duration(defaults::HELLO)))]
    pub(crate) hello: Option<At<Time>>,
    /// Time for one attempt to connect.
    #[schemars(extend("default" = show_duration(defaults::CONNECT)))]
    pub(crate) connect: Option<At<Time>>,
    /// Time for all attempts to connect together.
    #[schemars(extend("default" = show_duration(defaults::CONNECT_TOTAL)))]
    pub(crate) connect_total: Option<At<Time>>,
    /// Time without a byte in either direction, or `off`.
    #[schemars(extend("default" = show_duration_or_off(defaults::IDLE)))]
    pub(crate) idle: Option<At<TimeOrOff>>,
    /// Time of silence after one side has closed, or `off`.
    #[schemars(extend("default" = show_duration_or_off(defaults::HALF_CLOSED)))]
    pub(crate) half_closed: Option<At<TimeOrOff>>,
    /// Time from connect to the endpoint's first byte, or `off`.
    #[schemars(extend("default" = show_duration_or_off(defaults::FIRST_BYTE)))]
    pub(crate) first_byte: Option<At<TimeOrOff>>,
    /// Maximum duration of a connection, or `off`.
    #[schemars(extend("default" = show_duration_or_off(defaults::MAX_DURATION)))]
    pub(crate) max_duration: Option<At<TimeOrOff>>,
}

/// How endpoints are reached.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Upstream {
    /// Endpoints tried for one connection, each a different one.
    #[schemars(extend("default" = defaults::ATTEMPTS))]
    #[schemars(extend("minimum" = defaults::ATTEMPT_COUNTS.0, "maximum" = defaults::ATTEMPT_COUNTS.1))]
    pub(crate) attempts: Option<At<Count>>,
    /// Local addresses to connect from, in turn; each adds about 28 000 ports towards one endpoint.
    /// Default: the kernel's choice.
    pub(crate) source_addresses: Option<Vec<At<Ip>>>,
    /// How often a ClientHello may be replayed to another endpoint after one rejected it.
    pub(crate) replay: Option<Replay>,
    /// When an endpoint that cannot be connected to is ejected.
    pub(crate) ejection: Option<Ejection>,
    /// How long an endpoint that rejected a ClientHello or could not be connected to is tried last, while the gateway
    /// checks it with its own ClientHello; or `off`.
    #[schemars(extend("default" = show_duration_or_off(defaults::DEMOTION)))]
    pub(crate) demotion: Option<At<TimeOrOff>>,
}

/// The budget of each service for sending a ClientHello again.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Replay {
    /// Replays for each connection, on average; 0 to 1.
    #[schemars(extend("default" = defaults::REPLAY_RATIO))]
    pub(crate) ratio: Option<At<Share>>,
    /// Replays at once, whatever the traffic.
    #[schemars(extend("default" = defaults::REPLAY_BURST))]
    #[schemars(extend("minimum" = defaults::REPLAY_BURSTS.0, "maximum" = defaults::REPLAY_BURSTS.1))]
    pub(crate) burst: Option<At<Count>>,
    /// The share of the burst that one source address may use in 10 s; above 0, up to 1.
    #[schemars(extend("default" = defaults::REPLAY_SOURCE_SHARE, "exclusiveMinimum" = 0))]
    pub(crate) source_share: Option<At<Share>>,
}

/// When an endpoint that cannot be connected to is ejected.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ejection {
    /// Connect failures in a row; 0 never ejects.
    #[schemars(extend("default" = defaults::EJECTION_FAILURES))]
    #[schemars(extend("minimum" = defaults::EJECTION_FAILURE_COUNTS.0, "maximum" = defaults::EJECTION_FAILURE_COUNTS.1))]
    pub(crate) failures: Option<At<Count>>,
    /// Duration of an ejection, multiplied by the number of ejections so far.
    #[schemars(extend("default" = show_duration(defaults::EJECTION_BASE)))]
    pub(crate) base: Option<At<Time>>,
    /// Maximum duration of an ejection; at least `base`.
    #[schemars(extend("default" = show_duration(defaults::EJECTION_MAX)))]
    pub(crate) max: Option<At<Time>>,
    /// At most this share of a service's endpoints, in per cent; one may always be ejected.
    #[schemars(extend("default" = defaults::EJECTION_PERCENT))]
    #[schemars(extend("minimum" = defaults::PERCENTS.0, "maximum" = defaults::PERCENTS.1))]
    pub(crate) max_percent: Option<At<Count>>,
}

/// Splicing.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Relay {
    /// Size of a pipe, 4KiB to 1GiB; where the kernel grants less than 256KiB, the relay copies instead.
    #[schemars(extend("default" = show_size(defaults::PIPE_SIZE)))]
    pub(crate) pipe_size: Option<At<Size>>,
    /// Pipes of the whole process; 0 always copies. Without privilege the kernel grants 64 of 1MiB to a user.
    #[schemars(extend("default" = defaults::PIPES))]
    #[schemars(extend("minimum" = defaults::PIPE_COUNTS.0, "maximum" = defaults::PIPE_COUNTS.1))]
    pub(crate) pipes: Option<At<Count>>,
}

/// Socket options.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tcp {
    /// TCP_NODELAY: send small writes at once.
    #[schemars(extend("default" = true))]
    pub(crate) nodelay: Option<bool>,
    /// Silence before the first keepalive probe, or `off`; whole seconds, 1s to 32767s.
    #[schemars(extend("default" = show_duration(defaults::KEEPALIVE)))]
    pub(crate) keepalive_idle: Option<At<TimeOrOff>>,
    /// Interval between two probes; whole seconds, 1s to 32767s.
    #[schemars(extend("default" = show_duration(defaults::KEEPALIVE)))]
    pub(crate) keepalive_interval: Option<At<Time>>,
    /// Unanswered probes before the connection is dead.
    #[schemars(extend("default" = defaults::KEEPALIVE_PROBES))]
    #[schemars(extend("minimum" = defaults::KEEPALIVE_PROBE_COUNTS.0, "maximum" = defaults::KEEPALIVE_PROBE_COUNTS.1))]
    pub(crate) keepalive_probes: Option<At<Count>>,
    /// SO_RCVBUF, 4KiB to 1GiB, or `auto`: the kernel tunes it.
    #[schemars(extend("default" = "auto"))]
    pub(crate) receive_buffer: Option<At<SizeOrAuto>>,
    /// SO_SNDBUF, 4KiB to 1GiB, or `auto`: the kernel tunes it.
    #[schemars(extend("default" = "auto"))]
    pub(crate) send_buffer: Option<At<SizeOrAuto>>,
}

/// How the gateway drains.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Drain {
    /// How long to keep accepting after readiness failed; `0s` stops at once.
    #[schemars(extend("default" = show_duration(defaults::DRAIN_ACCEPT_FOR)))]
    pub(crate) accept_for: Option<At<Time>>,
    /// Window over which connections are then closed, idle ones first; `0s` closes them at once.
    #[schemars(extend("default" = show_duration(defaults::DRAIN_WINDOW)))]
    pub(crate) window: Option<At<Time>>,
}

/// The admin API: status, drain and others.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Admin {
    /// Address of the admin API. It can drain the gateway: keep it on loopback.
    #[schemars(extend("default" = defaults::ADMIN))]
    pub(crate) address: Option<At<ListenAddress>>,
}

/// Prometheus metrics.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Metrics {
    /// Address that serves `/metrics` and nothing else.
    #[schemars(extend("default" = defaults::METRICS))]
    pub(crate) address: Option<At<ListenAddress>>,
    /// Number of services with their own counters; the rest are summed in one series.
    #[schemars(extend("default" = defaults::SERVICE_METRICS))]
    #[schemars(extend("minimum" = defaults::SERVICE_METRIC_COUNTS.0, "maximum" = defaults::SERVICE_METRIC_COUNTS.1))]
    pub(crate) services: Option<At<Count>>,
}

/// Liveness and readiness.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Health {
    /// Address that serves `/healthz/live` and `/healthz/ready` and nothing else.
    #[schemars(extend("default" = defaults::HEALTH))]
    pub(crate) address: Option<At<ListenAddress>>,
}

/// The access log.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccessLog {
    /// Whether the access log is written.
    #[schemars(extend("default" = true))]
    pub(crate) enabled: Option<bool>,
    /// Also log connections that never sent a byte, such as load balancers' checks.
    #[schemars(extend("default" = false))]
    pub(crate) no_data: Option<bool>,
    /// Also log probes of other clusters' gateways.
    #[schemars(extend("default" = false))]
    pub(crate) probes: Option<bool>,
    /// Buffer for unwritten lines of each worker, 4KiB to 1GiB; lines beyond it are dropped and counted.
    #[schemars(extend("default" = show_size(defaults::LOG_BUFFER)))]
    pub(crate) buffer: Option<At<Size>>,
}

/// This gateway's identity and the bundles that it trusts.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Trust {
    /// Certificate chain, leaf first, PEM. Needs `key` and `bundles`; `directory` replaces all three.
    pub(crate) certificate: Option<At<String>>,
    /// Private key of the certificate, PEM.
    pub(crate) key: Option<At<String>>,
    /// Directory with a bundle for each trust domain: `DOMAIN.json` (SPIFFE) or `DOMAIN.pem` (roots).
    pub(crate) bundles: Option<At<String>>,
    /// Directory in which the gateway keeps a certificate that the agents or the control plane of `xds` issue and
    /// renew. With a `control_plane` it needs `bundles` and `token_file`.
    pub(crate) directory: Option<At<String>>,
    /// Output of `isthmus-agent token create --gateway NAME`, for the first certificate; ignored while the directory
    /// has a valid one.
    pub(crate) token: Option<At<String>>,
    /// File with the token, in place of `token`. With a `control_plane` the token that authenticates this gateway
    /// there; it is read for each certificate request.
    pub(crate) token_file: Option<At<String>>,
    /// Directory with deny-lists: `DOMAIN.json`. Default: none.
    pub(crate) deny: Option<At<String>>,
    /// Directory with revocation lists: `DOMAIN.pem` or `DOMAIN.crl`. Default: none.
    pub(crate) crls: Option<At<String>>,
    /// Treatment of a revocation list past its nextUpdate: `refuse` rejects all certificates of its authority,
    /// `accept` keeps using the list.
    #[schemars(extend("default" = "refuse"))]
    pub(crate) stale_crl: Option<StaleCrl>,
    /// How long a publisher of revocation lists may be unavailable; each list must be valid for longer.
    #[schemars(extend("default" = show_duration(defaults::OUTAGE_BUDGET)))]
    pub(crate) outage_budget: Option<At<Time>>,
}

/// Treatment of a stale revocation list.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StaleCrl {
    Refuse,
    Accept,
}

/// The source of services beside the file: agents of the cluster, or another control plane.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Xds {
    /// Addresses of the agents, `IP:PORT` or `NAME:PORT`, in the order in which they are tried; at least one.
    #[schemars(length(min = 1))]
    pub(crate) agents: Option<Vec<At<TargetAddress>>>,
    /// Directory where the last tables are persisted for a restart without an agent. Default: none; a gateway that
    /// starts without an agent waits for one.
    pub(crate) state: Option<At<String>>,
    /// A control plane that serves Listeners, Clusters and ClusterLoadAssignments, such as istiod, in place of agents.
    pub(crate) control_plane: Option<At<ControlPlane>>,
}

/// A control plane other than an agent.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ControlPlane {
    /// `IP:PORT` or `NAME:PORT`, in the order in which they are tried; at least one.
    #[schemars(required, length(min = 1))]
    pub(crate) addresses: Option<Vec<At<TargetAddress>>>,
    /// SPIFFE ID of its certificate. Either this or `tls_name`.
    pub(crate) identity: Option<At<String>>,
    /// DNS name of its certificate, signed by a root of this gateway's own trust domain. Either this or
    /// `identity`.
    pub(crate) tls_name: Option<At<String>>,
    /// Port of the Listener that this gateway uses; Listeners with other ports are ignored.
    #[schemars(extend("default" = defaults::CONTROL_PLANE_PORT))]
    #[schemars(extend("minimum" = PORTS.0, "maximum" = PORTS.1))]
    pub(crate) port: Option<At<Count>>,
    /// Node ID of this gateway there, 1 to 1024 bytes. Default:
    /// `router~IP~ID.NAMESPACE~NAMESPACE.svc.cluster.local`, as istiod reads it.
    pub(crate) node_id: Option<At<String>>,
    /// Node metadata sent to it. `NAME`, `NAMESPACE`, `CLUSTER_ID`, `NETWORK` and `INSTANCE_IPS` have defaults, which
    /// apply unless set here.
    pub(crate) metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

/// How host names of endpoints are resolved.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dns {
    /// Name servers, `IP:PORT`. Default: those of the system.
    pub(crate) servers: Option<Vec<At<ServerAddress>>>,
    /// An answer is used at least this long, whatever its TTL.
    #[schemars(extend("default" = show_duration(defaults::MIN_TTL)))]
    pub(crate) min_ttl: Option<At<Time>>,
    /// An answer is used at most this long; at least `min_ttl`.
    #[schemars(extend("default" = show_duration(defaults::MAX_TTL)))]
    pub(crate) max_ttl: Option<At<Time>>,
}
