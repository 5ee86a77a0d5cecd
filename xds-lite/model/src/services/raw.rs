//! `services:` exactly as it is written. Its comments are what the JSON Schema shows. Not what the values mean
//! or whether they fit together.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::address::{Cidr, Host, Label, TargetAddress};
use crate::at::At;
use crate::locality::Locality;
use crate::units::{Count, CountOrOff, Time, TimeOrOff};
use crate::values::PORTS;

use super::scope::StaleRule;
use super::{Balance, defaults};

/// One service: a host and a port, and who serves it. Its names are `outbound_.PORT_._.HOST` always; and
/// HOST, its aliases and `INSTANCE.HOST` if the host stands in the file once or `sni_port` says this port.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Its name, or `*.suffix` for every name under a suffix.
    #[schemars(required)]
    pub(super) host: Option<At<Host>>,
    /// Its port, unique for the host.
    #[schemars(extend("default" = defaults::PORT))]
    #[schemars(extend("minimum" = PORTS.0, "maximum" = PORTS.1))]
    pub(super) port: Option<At<Count>>,
    /// Which port of this host the bare host, the aliases and `INSTANCE.HOST` mean. Needed when the host
    /// has several entries; one of them says it. Default: the port of the only entry.
    #[schemars(extend("minimum" = PORTS.0, "maximum" = PORTS.1))]
    pub(super) sni_port: Option<At<Count>>,
    /// Other names, each exact or `*.suffix`. Default: none.
    pub(super) aliases: Option<Vec<At<Host>>>,
    /// Condition: the client offers one of these protocols. Default: no condition.
    #[schemars(inner(length(min = 1, max = 255)))]
    pub(super) alpn: Option<Vec<At<String>>>,
    /// Condition: the client's address lies in one of these ranges. Default: no condition.
    pub(super) sources: Option<Vec<At<Cidr>>>,
    /// How an endpoint is chosen.
    #[schemars(extend("default" = "round_robin"))]
    pub(super) balance: Option<Balance>,
    /// Connections at once to this service, or `off`.
    #[schemars(extend("default" = "off"))]
    #[schemars(extend("minimum" = defaults::CONNECTION_COUNTS.0, "maximum" = defaults::CONNECTION_COUNTS.1))]
    pub(super) max_connections: Option<At<CountOrOff>>,
    /// `v2` sends a PROXY v2 header with the client's address, and the SNI as TLV 0x02, to the endpoints.
    #[schemars(extend("default" = "off"))]
    pub(super) proxy_protocol: Option<SendProxy>,
    /// Deadlines of this service. Default: the general ones.
    pub(super) timeouts: Option<Box<ServiceTimeouts>>,
    /// Which namespace it belongs to, for the exports and workspaces of an agent. Default: for
    /// `NAME.NAMESPACE.svc.…` the second label, otherwise none.
    pub(super) namespace: Option<At<Label>>,
    /// By which the exports of an agent choose it. Default: none.
    pub(super) labels: Option<BTreeMap<String, String>>,
    /// An agent exports it though its endpoints let in clients that have no certificate.
    #[schemars(extend("default" = false))]
    pub(super) allow_unauthenticated: Option<bool>,
    /// It is one service with those of the same host in other clusters, where those say so, too.
    #[schemars(extend("default" = false))]
    pub(super) merge: Option<bool>,
    /// What other clusters, and gateways without their agent, do with it once they no longer hear of this
    /// cluster: `keep` it, keep what answers a `probe` of it, or drop it after a time such as `10m`.
    #[schemars(extend("default" = "keep"))]
    pub(super) stale: Option<At<StaleRule>>,
    /// VMs that have proven who they are may add themselves to it by registering at the agent.
    #[schemars(extend("default" = false))]
    pub(super) registered: Option<bool>,
    /// Who serves it. Default: nobody, and its names are refused with `no_endpoint`.
    pub(super) endpoints: Option<Vec<At<Endpoint>>>,
}

/// Whether endpoints get a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(super) enum SendProxy {
    /// Version 2.
    V2,
    /// None.
    Off,
}

/// Deadlines of one service.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceTimeouts {
    /// One attempt to connect.
    pub connect: Option<At<Time>>,
    /// All attempts to connect together.
    pub connect_total: Option<At<Time>>,
    /// No byte in either direction, or `off`.
    pub idle: Option<At<TimeOrOff>>,
    /// One side has closed and the other is silent, or `off`.
    pub half_closed: Option<At<TimeOrOff>>,
    /// From connect to the endpoint's first byte, or `off`.
    pub first_byte: Option<At<TimeOrOff>>,
    /// From accept to the end, or `off`.
    pub max_duration: Option<At<TimeOrOff>>,
}

/// One address that serves a service.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Endpoint {
    /// `IP:PORT`, `[IPV6]:PORT`, or `NAME:PORT`: then every address of the name is used, and the name is
    /// resolved again when its TTL ends. Unique in the service.
    #[schemars(required)]
    pub(super) address: Option<At<TargetAddress>>,
    /// Its stable name, one DNS label, unique in the service: makes `INSTANCE.HOST` a name of this endpoint.
    pub(super) instance: Option<At<Label>>,
    /// Its share among the endpoints; 0 takes no new connections while another lives.
    #[schemars(extend("default" = defaults::WEIGHT))]
    #[schemars(extend("minimum" = defaults::WEIGHTS.0, "maximum" = defaults::WEIGHTS.1))]
    pub(super) weight: Option<At<Count>>,
    /// Where it stands. Default: unknown.
    pub(super) locality: Option<Locality>,
    /// Other names of the instance. Default: none.
    pub(super) aliases: Option<Vec<At<Host>>>,
}
