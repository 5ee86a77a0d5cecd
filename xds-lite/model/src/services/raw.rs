//! The written form of `services:`. Its comments are the descriptions in the JSON Schema. Values are resolved
//! elsewhere.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::access;
use crate::address::{Cidr, Host, Label, TargetAddress};
use crate::at::{At, Spot};
use crate::identity::Identity;
use crate::locality::Locality;
use crate::traffic;
use crate::units::{Count, CountOrOff, Time, TimeOrOff};
use crate::values::PORTS;
use crate::yaml::present;

use super::scope::{ClientCertificate, StaleRule};
use super::{Balance, TlsMode, defaults, health};

/// One service: a host, a port, and its endpoints. It always answers to `outbound_.PORT_._.HOST`; and to
/// HOST, its aliases and `INSTANCE.HOST` if the host has one entry in the file or `sni_port` names this port.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The host name, or `*.suffix` for every name under a suffix.
    #[schemars(required)]
    pub(super) host: Option<At<Host>>,
    /// The port, unique for the host.
    #[schemars(extend("default" = defaults::PORT))]
    #[schemars(extend("minimum" = PORTS.0, "maximum" = PORTS.1))]
    pub(super) port: Option<At<Count>>,
    /// The port that the bare host, the aliases and `INSTANCE.HOST` mean. Required in one entry if the host
    /// has several. Default: the port of the only entry.
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
    /// Limit of concurrent connections to this service, or `off`.
    #[schemars(extend("default" = "off"))]
    #[schemars(extend("minimum" = defaults::CONNECTION_COUNTS.0, "maximum" = defaults::CONNECTION_COUNTS.1))]
    pub(super) max_connections: Option<At<CountOrOff>>,
    /// `v2` sends a PROXY v2 header with the client's address, and the SNI as TLV 0x02, to the endpoints.
    #[schemars(extend("default" = "off"))]
    pub(super) proxy_protocol: Option<SendProxy>,
    /// Deadlines of this service. Default: the general ones.
    pub(super) timeouts: Option<Box<ServiceTimeouts>>,
    /// Which endpoints the cluster's own callers use: own ones first, nearer ones first, parts of a split. Default: for an
    /// agent the first entry of its `traffic` that has the host, otherwise every default.
    pub(super) traffic: Option<Box<traffic::raw::Traffic>>,
    /// How gateways learn whether the endpoints are healthy. Default: in a registry file a ClientHello every 3 s where
    /// TLS passes through; otherwise connects alone.
    pub(super) health: Option<Box<At<Health>>>,
    /// The namespace for the exports and workspaces of an agent. Default: for
    /// `NAME.NAMESPACE.svc.…` the second label, otherwise none.
    pub(super) namespace: Option<At<Label>>,
    /// Labels that the exports of an agent select by. Default: none.
    pub(super) labels: Option<BTreeMap<String, String>>,
    /// How the agent knows that the endpoints require a client certificate, before it exports them: it checks by a
    /// handshake (`probed`), the file says so (`declared`), or they require none (`none`).
    #[schemars(extend("default" = "probed"))]
    pub(super) client_certificate: Option<At<ClientCertificate>>,
    /// Older name of `client_certificate: none`.
    #[schemars(extend("default" = false))]
    pub(super) allow_unauthenticated: Option<At<bool>>,
    /// Merge it with the same host of other clusters that also set this.
    #[schemars(extend("default" = false))]
    pub(super) merge: Option<bool>,
    /// What other clusters, and gateways without their agent, do while this cluster is unreachable: `keep`
    /// it, `probe` it and keep what answers, or drop it after a time such as `10m`.
    #[schemars(extend("default" = "keep"))]
    pub(super) stale: Option<At<StaleRule>>,
    /// VMs may add themselves by registering at the agent with a proof of who they are.
    #[schemars(extend("default" = false))]
    pub(super) registered: Option<bool>,
    /// The identities of its endpoints: a gateway that begins TLS for an application (a listener with `mode: originate`)
    /// accepts no other server. With `tls: terminate` the gateway presents the first one. Default: none, and nobody can
    /// originate to it.
    pub(super) identities: Option<Vec<At<Identity>>>,
    /// `terminate`: the gateway ends the TLS of clients, whose certificate it requires, and passes plaintext to the
    /// endpoints; nobody may connect unless `access` allows it. `passthrough` passes TLS on as it is.
    #[schemars(extend("default" = "passthrough"))]
    pub(super) tls: Option<At<TlsMode>>,
    /// With `tls: terminate`: the service's certificate chain, leaf first, PEM. Default: the agent issues one for the
    /// first of `identities`.
    pub(super) certificate: Option<At<String>>,
    /// With `tls: terminate`: the certificate's private key, PEM.
    pub(super) key: Option<At<String>>,
    /// Who may connect. Default: with `tls: terminate` nobody, otherwise everybody.
    #[serde(default, deserialize_with = "present")]
    pub(super) access: Option<Box<At<access::raw::Access>>>,
    /// The endpoints. Default: none, and connections are refused with `no_endpoint`.
    pub(super) endpoints: Option<Vec<At<Endpoint>>>,
}

impl Service {
    /// Its policy of traffic as written.
    #[must_use]
    pub fn traffic(&self) -> Option<&traffic::raw::Traffic> {
        self.traffic.as_deref()
    }

    /// Returns the first key that only a gateway's own file may have, with the remedy.
    pub(crate) fn gateway_key(&self) -> Option<(&'static str, Spot, &'static str)> {
        const ISSUED: &str = "remove it and name the service's identity in 'identities': gateways get its certificate from the agent";
        let spot = |text: &Option<At<String>>| text.as_ref().map(|text| text.spot);
        [("certificate", spot(&self.certificate), ISSUED), ("key", spot(&self.key), ISSUED)]
            .into_iter()
            .find_map(|(key, spot, remedy)| Some((key, spot?, remedy)))
    }
}

/// Whether endpoints get a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(super) enum SendProxy {
    /// Version 2.
    V2,
    /// No header.
    Off,
}

/// Deadlines of one service.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceTimeouts {
    /// One connect attempt.
    pub connect: Option<At<Time>>,
    /// All connect attempts together.
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

/// How gateways learn whether endpoints are healthy.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// What is sent to each endpoint: a ClientHello with the service's name (`tls`), `GET path` without TLS (`http`), a
    /// connect alone (`tcp`), or nothing (`none`). Default: in a gateway's own file and with `tls: terminate` `none`,
    /// otherwise `tls`.
    pub(super) probe: Option<At<Probe>>,
    /// The port that `http` and `tcp` connect to. Default: the endpoint's; required where that one speaks TLS, and for
    /// `tcp` with `tls: terminate`.
    #[schemars(extend("minimum" = PORTS.0, "maximum" = PORTS.1))]
    pub(super) port: Option<At<Count>>,
    /// The path that `http` asks for. A status from 200 to 399 is healthy.
    #[schemars(extend("default" = health::PATH))]
    pub(super) path: Option<At<String>>,
    /// Time between two probes of one endpoint, 1s to 1h. A gateway with too many endpoints for 500 probes a second
    /// stretches it.
    #[schemars(extend("default" = "3s"))]
    pub(super) interval: Option<At<Time>>,
    /// Time for an answer, the connect included, 100ms to 30s.
    #[schemars(extend("default" = "2s"))]
    pub(super) timeout: Option<At<Time>>,
    /// Failed probes in a row after which an endpoint is unhealthy.
    #[schemars(extend("default" = health::DOWN_AFTER))]
    #[schemars(extend("minimum" = health::COUNTS.0, "maximum" = health::COUNTS.1))]
    pub(super) down_after: Option<At<Count>>,
    /// Answered probes in a row after which it is healthy again; more after each return that did not last 30 s.
    #[schemars(extend("default" = health::UP_AFTER))]
    #[schemars(extend("minimum" = health::COUNTS.0, "maximum" = health::COUNTS.1))]
    pub(super) up_after: Option<At<Count>>,
    /// The time in which the share of an endpoint that is new or returns grows to its whole, 1s to 1h, or `off`.
    #[schemars(extend("default" = "off"))]
    pub(super) slow_start: Option<At<TimeOrOff>>,
    /// Close the open connections of an endpoint that turns unhealthy, spread over this time of 1s to 1h; `off` keeps
    /// them.
    #[schemars(extend("default" = "off"))]
    pub(super) close_on_unhealthy: Option<At<TimeOrOff>>,
}

/// How endpoints are probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(super) enum Probe {
    /// A ClientHello.
    Tls,
    /// A request.
    Http,
    /// A connect.
    Tcp,
    /// Nothing.
    None,
}

/// One address that serves a service.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Endpoint {
    /// `IP:PORT`, `[IPV6]:PORT`, or `NAME:PORT`, which stands for every address of the name and is
    /// resolved again when its TTL ends. Unique in the service.
    #[schemars(required)]
    pub(super) address: Option<At<TargetAddress>>,
    /// Its stable name, one DNS label, unique in the service: makes `INSTANCE.HOST` a name of this endpoint.
    pub(super) instance: Option<At<Label>>,
    /// Its share of connections; 0 gets no new connections while another endpoint is healthy.
    #[schemars(extend("default" = defaults::WEIGHT))]
    #[schemars(extend("minimum" = defaults::WEIGHTS.0, "maximum" = defaults::WEIGHTS.1))]
    pub(super) weight: Option<At<Count>>,
    /// Its locality. Default: unknown.
    pub(super) locality: Option<Locality>,
    /// Other names of the instance. Default: none.
    pub(super) aliases: Option<Vec<At<Host>>>,
    /// Its labels, which a split selects by: keys and values as in Kubernetes, at most 32. Other clusters that reach it
    /// directly see them. Default: none.
    pub(super) labels: Option<At<BTreeMap<String, String>>>,
}
