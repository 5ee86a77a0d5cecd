//! `listeners:` and `services:` as they are written. Not the rest of the file.

use isthmus_xds::Locality;
use isthmus_xds::config::address::{Cidr, Host, Label, ListenAddress, TargetAddress};
use isthmus_xds::config::at::At;
use isthmus_xds::config::units::{Count, CountOrOff, Time, TimeOrOff};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::defaults;

/// One address to accept on.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listener {
    /// Its label in logs and metrics: 1 to 63 ASCII letters, digits, `-`, `_` or `.`; unique. Default:
    /// `east-west` for the first, else `listener-N`, N being its position from 1. Needs a restart.
    #[schemars(extend("pattern" = "^[A-Za-z0-9._-]{1,63}$"))]
    pub(crate) name: Option<At<String>>,
    /// `IP:PORT` or `[IPV6]:PORT`; port 0 picks a free one. Needs a restart.
    #[schemars(required)]
    pub(crate) address: Option<At<ListenAddress>>,
    /// For IPv6 addresses only: refuse IPv4 on the same socket. Needs a restart.
    #[schemars(extend("default" = true))]
    pub(crate) ipv6_only: Option<At<bool>>,
    /// The kernel's accept queue, for each worker; the kernel caps it at net.core.somaxconn. Needs a restart.
    #[schemars(extend("default" = defaults::BACKLOG))]
    #[schemars(extend("minimum" = defaults::BACKLOGS.0, "maximum" = defaults::BACKLOGS.1))]
    pub(crate) backlog: Option<At<Count>>,
    /// Connections at once on this listener.
    #[schemars(extend("default" = defaults::LISTENER_CONNECTIONS))]
    #[schemars(extend("minimum" = defaults::CONNECTION_COUNTS.0, "maximum" = defaults::CONNECTION_COUNTS.1))]
    pub(crate) max_connections: Option<At<Count>>,
    /// The service for a hello that no name matches or that has no SNI: `HOST` or `HOST:PORT` of a service
    /// in this file. Default: such a hello is refused.
    pub(crate) default: Option<At<String>>,
    /// PROXY protocol from load balancers in front. Default: nobody may send it.
    pub(crate) proxy_protocol: Option<At<ReceiveProxy>>,
}

/// Who sends PROXY headers to a listener.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReceiveProxy {
    /// Sources that must send a PROXY v1 or v2 header; all others must not.
    #[schemars(required)]
    pub(crate) from: Option<Vec<At<Cidr>>>,
}

/// One service: a host and a port, and who serves it. Its names are `outbound_.PORT_._.HOST` always; and
/// HOST, its aliases and `INSTANCE.HOST` if the host stands in the file once or `sni_port` says this port.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Service {
    /// Its name, or `*.suffix` for every name under a suffix.
    #[schemars(required)]
    pub(crate) host: Option<At<Host>>,
    /// Its port, unique for the host.
    #[schemars(extend("default" = defaults::SERVICE_PORT))]
    #[schemars(extend("minimum" = defaults::PORTS.0, "maximum" = defaults::PORTS.1))]
    pub(crate) port: Option<At<Count>>,
    /// Which port of this host the bare host, the aliases and `INSTANCE.HOST` mean. Needed when the host
    /// has several entries; one of them says it. Default: the port of the only entry.
    #[schemars(extend("minimum" = defaults::PORTS.0, "maximum" = defaults::PORTS.1))]
    pub(crate) sni_port: Option<At<Count>>,
    /// Other names, each exact or `*.suffix`. Default: none.
    pub(crate) aliases: Option<Vec<At<Host>>>,
    /// Condition: the client offers one of these protocols. Default: no condition.
    #[schemars(inner(length(min = 1, max = 255)))]
    pub(crate) alpn: Option<Vec<At<String>>>,
    /// Condition: the client's address lies in one of these ranges. Default: no condition.
    pub(crate) sources: Option<Vec<At<Cidr>>>,
    /// How an endpoint is chosen.
    #[schemars(extend("default" = "round_robin"))]
    pub(crate) balance: Option<Balance>,
    /// Connections at once to this service, or `off`.
    #[schemars(extend("default" = "off"))]
    #[schemars(extend("minimum" = defaults::CONNECTION_COUNTS.0, "maximum" = defaults::CONNECTION_COUNTS.1))]
    pub(crate) max_connections: Option<At<CountOrOff>>,
    /// `v2` sends a PROXY v2 header with the client's address, and the SNI as TLV 0x02, to the endpoints.
    #[schemars(extend("default" = "off"))]
    pub(crate) proxy_protocol: Option<SendProxy>,
    /// Deadlines of this service. Default: the general ones.
    pub(crate) timeouts: Option<Box<ServiceTimeouts>>,
    /// Who serves it. Default: nobody, and its names are refused with `no_endpoint`.
    pub(crate) endpoints: Option<Vec<At<Endpoint>>>,
}

/// How an endpoint is chosen among the healthy ones.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum Balance {
    /// In turn, by weight.
    RoundRobin,
    /// Of two chosen at random, the one with fewer connections for its weight.
    LeastConnections,
    /// At random, by weight.
    Random,
    /// By the client's address: the same endpoint while it lives.
    SourceHash,
}

/// Whether endpoints get a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum SendProxy {
    /// Version 2.
    V2,
    /// None.
    Off,
}

/// Deadlines of one service.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServiceTimeouts {
    /// One attempt to connect.
    pub(crate) connect: Option<At<Time>>,
    /// All attempts to connect together.
    pub(crate) connect_total: Option<At<Time>>,
    /// No byte in either direction, or `off`.
    pub(crate) idle: Option<At<TimeOrOff>>,
    /// One side has closed and the other is silent, or `off`.
    pub(crate) half_closed: Option<At<TimeOrOff>>,
    /// From connect to the endpoint's first byte, or `off`.
    pub(crate) first_byte: Option<At<TimeOrOff>>,
    /// From accept to the end, or `off`.
    pub(crate) max_duration: Option<At<TimeOrOff>>,
}

/// One address that serves a service.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Endpoint {
    /// `IP:PORT`, `[IPV6]:PORT`, or `NAME:PORT`: then every address of the name is used, and the name is
    /// resolved again when its TTL ends. Unique in the service.
    #[schemars(required)]
    pub(crate) address: Option<At<TargetAddress>>,
    /// Its stable name, one DNS label, unique in the service: makes `INSTANCE.HOST` a name of this endpoint.
    pub(crate) instance: Option<At<Label>>,
    /// Its share among the endpoints; 0 takes no new connections while another lives.
    #[schemars(extend("default" = defaults::WEIGHT))]
    #[schemars(extend("minimum" = defaults::WEIGHTS.0, "maximum" = defaults::WEIGHTS.1))]
    pub(crate) weight: Option<At<Count>>,
    /// Where it stands. Default: unknown.
    pub(crate) locality: Option<Locality>,
}
