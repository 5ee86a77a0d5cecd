//! The agent's file exactly as it is written. Its comments are what the JSON Schema shows. Not what the values
//! mean or whether they fit together.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use isthmus_model::address::{Cidr, Host, ListenAddress, TargetAddress};
use isthmus_model::at::At;
use isthmus_model::locality::Locality;
use isthmus_model::units::{Count, Size, Time, show_duration};
use isthmus_model::values::PORTS;

use super::{ADDRESS, ADMIN, EAST_WEST, JOIN, LONGEST};

/// An agent's file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Isthmus agent")]
pub(super) struct File {
    /// The cluster it speaks for: 1 to 63 letters, digits, `-`, `_` or `.`.
    #[schemars(required)]
    pub(super) cluster: Option<At<String>>,
    /// The network that the cluster's endpoints stand in. Default: empty.
    pub(super) network: Option<At<String>>,
    /// Where the cluster's gateways stand, unless they say otherwise. Default: unknown.
    pub(super) locality: Option<Locality>,
    /// Its identity, an agent's of this cluster, and whom it believes.
    #[schemars(required)]
    pub(super) trust: Option<At<Trust>>,
    /// Where services are registered.
    #[schemars(required)]
    pub(super) registry: Option<At<Registry>>,
    /// A directory for what survives a restart. Default: none, and nothing does.
    pub(super) state: Option<At<String>>,
    /// The cluster's gateways: those that this agent serves. Default: none.
    pub(super) gateways: Option<Vec<At<Gateway>>>,
    /// Which services other clusters may see. Default: none.
    pub(super) exports: Option<Vec<At<Export>>>,
    /// What may come from other clusters. Default: what lies in a workspace that spans them.
    pub(super) imports: Option<Vec<At<Import>>>,
    /// Labels of networks, by the network's name, for `reachability`. Default: none.
    pub(super) networks: Option<BTreeMap<String, BTreeMap<String, String>>>,
    /// Which networks may know of services in which others. It limits knowledge, not access. Default: all.
    pub(super) reachability: Option<Vec<At<ReachabilityRule>>>,
    /// The agents of other clusters. Default: none.
    pub(super) peers: Option<Vec<At<Peer>>>,
    /// Where gateways and other clusters' agents come.
    pub(super) xds: Option<Xds>,
    /// Where clusters join by a token. Default: nowhere.
    pub(super) join: Option<At<Join>>,
    /// The intermediate that signs certificates for the cluster's gateways and workloads, and renews them; tokens
    /// for first ones are kept in `state`. Default: none, and no certificate is issued.
    pub(super) issuing: Option<At<Issuing>>,
    /// Where the agent tells of itself.
    pub(super) admin: Option<Admin>,
    /// Who may register VMs. Default: root and the agent's own user, on its own machine.
    pub(super) registration: Option<Registration>,
    /// What gateways and peers may take of this agent.
    pub(super) limits: Option<Limits>,
}

/// Who may register VMs.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Registration {
    /// The Unix socket that local processes register by, or `off`. Default: `agent.sock` in `state`; none without.
    pub(super) socket: Option<At<String>>,
    /// Numbers of the users that may use it, besides root and the agent's own. Default: none.
    pub(super) users: Option<Vec<u32>>,
    /// Files with one token each, by a name of the token; who shows one may register at the admin address. They are
    /// read when one is shown. Default: none.
    pub(super) tokens: Option<BTreeMap<String, At<String>>>,
}

/// What gateways and peers may take of this agent.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    /// Each gateway of the cluster.
    pub(super) gateways: Option<ClientLimits>,
    /// Each peer, all of its agents together.
    pub(super) peers: Option<PeerLimits>,
}

/// What each gateway may take. Defaults: 64 connections, 256 streams, requests of 64MiB, 200000 names.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ClientLimits {
    /// Connections at once.
    pub(super) connections: Option<At<Count>>,
    /// Requests at once, on all connections.
    pub(super) streams: Option<At<Count>>,
    /// What requests take that are not dealt with yet, decoded.
    pub(super) requests: Option<At<Size>>,
    /// Names that its streams subscribe to, together; one stream half of that.
    pub(super) names: Option<At<Count>>,
}

/// What each peer may take. Defaults: 16 connections, 8 streams, requests of 16MiB, 20000 names, 8000 slices of
/// 4MiB together.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PeerLimits {
    /// Connections at once.
    pub(super) connections: Option<At<Count>>,
    /// Requests at once, on all connections.
    pub(super) streams: Option<At<Count>>,
    /// What requests take that are not dealt with yet, decoded.
    pub(super) requests: Option<At<Size>>,
    /// Names that its streams subscribe to, together; one stream half of that.
    pub(super) names: Option<At<Count>>,
    /// Slices that it may offer, of names that it was granted.
    pub(super) slices: Option<At<Count>>,
    /// Bytes of these together, in memory and in `state`.
    pub(super) bytes: Option<At<Size>>,
}

/// Files, followed while the agent runs.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Trust {
    /// The trust domain that the certificate is of. Default: the one that it says.
    pub(super) domain: Option<At<String>>,
    /// The chain, leaf first, PEM.
    #[schemars(required)]
    pub(super) certificate: Option<At<String>>,
    /// Its key, PEM.
    #[schemars(required)]
    pub(super) key: Option<At<String>>,
    /// A directory with a bundle for each trust domain: `DOMAIN.json` (SPIFFE) or `DOMAIN.pem` (roots).
    #[schemars(required)]
    pub(super) bundles: Option<At<String>>,
    /// A directory with deny-lists: `DOMAIN.json`. Default: none.
    pub(super) deny: Option<At<String>>,
}

/// Where services are registered.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Registry {
    /// A directory of YAML files, each with `services:` as a gateway's file has them.
    #[schemars(required)]
    pub(super) files: Option<At<String>>,
}

/// One gateway of the cluster.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Gateway {
    /// The last part of its identity, `spiffe://TRUST-DOMAIN/isthmus/CLUSTER/gateway/NAME`.
    #[schemars(required)]
    pub(super) name: Option<At<String>>,
    /// Where other clusters reach it: IP addresses or host names. Default: nowhere.
    pub(super) address: Option<OneOrMore>,
    /// At which port.
    #[schemars(extend("default" = EAST_WEST))]
    #[schemars(extend("minimum" = PORTS.0, "maximum" = PORTS.1))]
    pub(super) port: Option<At<Count>>,
    /// Where it stands. Default: the agent's.
    pub(super) locality: Option<Locality>,
    /// It is a stock Envoy, which listens there: `IP:PORT` or `[IPV6]:PORT`. Default: it is one of ours.
    pub(super) envoy: Option<At<ListenAddress>>,
}

/// One text or several.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(super) enum OneOrMore {
    /// One.
    One(String),
    /// Several.
    More(Vec<String>),
}

/// Services that other clusters may see: those that meet every condition that is written; one is needed.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Export {
    /// Namespaces: `NAMESPACE` or `CLUSTER/NAMESPACE`; `*/NAMESPACE` is one workspace over all clusters, and
    /// what others export from it is imported, too.
    pub(super) workspace: Option<Vec<At<String>>>,
    /// Names, each exact or `*.suffix`.
    pub(super) hosts: Option<Vec<At<Host>>>,
    /// Labels, all of which a service has.
    pub(super) labels: Option<BTreeMap<String, String>>,
    /// The gateways that open them. Default: all of the cluster.
    pub(super) gateways: Option<Vec<At<String>>>,
    /// Instances that can be reached by name: their names, or `*` for all. Default: none.
    pub(super) instances: Option<Vec<At<String>>>,
}

/// What may come from one cluster.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Import {
    /// From which.
    #[schemars(required)]
    pub(super) cluster: Option<At<String>>,
    /// Names that its services may have here, aliases included: each exact or `*.suffix`. Default: none.
    pub(super) hosts: Option<Vec<At<Host>>>,
    /// Where its gateways may stand. Default: anywhere but loopback, link-local and multicast addresses.
    #[serde(rename = "gatewayCIDRs")]
    pub(super) gateway_cidrs: Option<Vec<At<Cidr>>>,
    /// Host names that its gateways may have. Default: any, or none where `gatewayCIDRs` is written.
    #[serde(rename = "gatewayHosts")]
    pub(super) gateway_hosts: Option<Vec<At<Host>>>,
    /// Where its endpoints may stand that are reached without a gateway, in a network that both share.
    /// Default: nowhere; all goes through its gateways.
    #[serde(rename = "endpointCIDRs")]
    pub(super) endpoint_cidrs: Option<Vec<At<Cidr>>>,
}

/// Services in one network may be known in another.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReachabilityRule {
    /// Where clients stand.
    #[schemars(required)]
    pub(super) from: Option<Network>,
    /// Where services stand.
    #[schemars(required)]
    pub(super) to: Option<Network>,
}

/// A network's name, `*` for every one, or labels that it has.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(super) enum Network {
    /// By name.
    Name(String),
    /// By labels.
    Labels(BTreeMap<String, String>),
}

/// The agent of another cluster.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Peer {
    /// Its cluster.
    #[schemars(required)]
    pub(super) cluster: Option<At<String>>,
    /// `IP:PORT` or `NAME:PORT`.
    #[schemars(required)]
    pub(super) address: Option<At<TargetAddress>>,
    /// Who vouches for it.
    #[serde(rename = "trustDomain")]
    #[schemars(required)]
    pub(super) trust_domain: Option<At<String>>,
    /// The network that its endpoints stand in. Default: one of its own.
    pub(super) network: Option<At<String>>,
}

/// Where gateways and other clusters' agents come.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Xds {
    /// `IP:PORT` or `[IPV6]:PORT`; port 0 picks a free one.
    #[schemars(extend("default" = ADDRESS))]
    pub(super) address: Option<At<ListenAddress>>,
    /// The same as other clusters reach it, `IP:PORT` or `NAME:PORT`: what who joins is told.
    pub(super) advertise: Option<At<TargetAddress>>,
}

/// Where clusters join by a token.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Join {
    /// `IP:PORT` or `[IPV6]:PORT`; port 0 picks a free one.
    #[schemars(extend("default" = JOIN))]
    pub(super) address: Option<At<ListenAddress>>,
    /// The same as other clusters reach it, `IP:PORT` or `NAME:PORT`: what tokens say. Default: the host of
    /// `xds.advertise`, and the port of `address`.
    pub(super) advertise: Option<At<TargetAddress>>,
}

/// What signs certificates: files, followed while the agent runs. The key stays in the agent.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Issuing {
    /// The certificate of the cluster's intermediate, PEM.
    #[schemars(required)]
    pub(super) certificate: Option<At<String>>,
    /// Its key, PEM.
    #[schemars(required)]
    pub(super) key: Option<At<String>>,
    /// How long a certificate lives: unless its holder asks for less, and at most. 1s to 168h.
    #[schemars(extend("default" = show_duration(LONGEST)))]
    pub(super) longest: Option<At<Time>>,
}

/// Where the agent tells of itself.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Admin {
    /// `IP:PORT` or `[IPV6]:PORT`; port 0 picks a free one.
    #[schemars(extend("default" = ADMIN))]
    pub(super) address: Option<At<ListenAddress>>,
}
