//! The agent's file as written. Its doc comments are the descriptions in the JSON Schema. Meaning and consistency are
//! checked in `resolve`.

pub(super) mod names;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use isthmus_model::access;
use isthmus_model::address::{Cidr, Host, Label, ListenAddress, TargetAddress};
use isthmus_model::at::At;
use isthmus_model::identity::{Identity, IdentityPattern};
use isthmus_model::locality::Locality;
use isthmus_model::port_range::Ports;
use isthmus_model::traffic::raw::HostsTraffic;
use isthmus_model::units::{Count, Size, Time, show_duration};
use isthmus_model::values::PORTS;
use isthmus_model::yaml::present;

use super::{ADDRESS, ADMIN, EAST_WEST, JOIN, LONGEST};

/// An agent's file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Isthmus agent")]
pub(super) struct File {
    /// The agent's cluster: 1 to 63 letters, digits, `-`, `_` or `.`.
    #[schemars(required)]
    pub(super) cluster: Option<At<String>>,
    /// The network of the cluster's endpoints. Default: empty.
    pub(super) network: Option<At<String>>,
    /// The default locality of the cluster's gateways. Default: unknown.
    pub(super) locality: Option<Locality>,
    /// The agent's certificate, which must be an agent's of this cluster, and the bundles that it trusts.
    #[schemars(required)]
    pub(super) trust: Option<At<Trust>>,
    /// The service registry.
    #[schemars(required)]
    pub(super) registry: Option<At<Registry>>,
    /// A directory for state that survives a restart. Default: none, and nothing is persisted.
    pub(super) state: Option<At<String>>,
    /// The cluster's gateways, which this agent serves. Default: none.
    pub(super) gateways: Option<Vec<At<Gateway>>>,
    /// Services that are exported to other clusters. Default: none.
    pub(super) exports: Option<Vec<At<Export>>>,
    /// Rules for callers of every service of the cluster. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(super) access: Option<At<access::raw::Access>>,
    /// Rules for callers of every service of a namespace. Default: none.
    pub(super) namespaces: Option<Vec<At<Namespace>>>,
    /// Workspaces with rules for callers. Default: none.
    pub(super) workspaces: Option<Vec<At<Workspace>>>,
    /// Policies of traffic by host, own and imported: which endpoints callers of this cluster use. The first entry that has
    /// a host applies; `traffic` of a service in the registry precedes it. An edit takes effect while the agent runs.
    /// Default: none.
    pub(super) traffic: Option<Vec<At<HostsTraffic>>>,
    /// What is accepted from other clusters. Default: services of a workspace that spans the clusters.
    pub(super) imports: Option<Vec<At<Import>>>,
    /// Labels of networks by network name, for `reachability`. Default: none.
    pub(super) networks: Option<BTreeMap<String, BTreeMap<String, String>>>,
    /// Which networks may know services of which others. This limits knowledge, not access. Default: all.
    pub(super) reachability: Option<Vec<At<ReachabilityRule>>>,
    /// The agents of other clusters. Default: none.
    pub(super) peers: Option<Vec<At<Peer>>>,
    /// The xDS server for gateways and other clusters' agents.
    pub(super) xds: Option<Xds>,
    /// The endpoint where clusters join with a token. Default: none.
    pub(super) join: Option<At<Join>>,
    /// The intermediate that issues and renews certificates of the cluster's gateways and workloads; tokens for first
    /// certificates are stored in `state`. Default: none, and no certificate is issued.
    pub(super) issuing: Option<At<Issuing>>,
    /// The admin server: status, metrics, registration.
    pub(super) admin: Option<Admin>,
    /// Who may register VMs. Default: root and the agent's own user, on the agent's machine.
    pub(super) registration: Option<Registration>,
    /// Resource limits of gateways and peers.
    pub(super) limits: Option<Limits>,
    /// Ranges of virtual addresses: each host and each exported instance gets one of each range. Default: none.
    pub(super) virtual_addresses: Option<At<names::VirtualAddresses>>,
    /// A range of ports for the gateways' originating listeners, `FROM-TO`: each port of a host gets one. Default: none.
    pub(super) originate_ports: Option<At<Ports>>,
    /// The DNS server for applications. Default: none.
    pub(super) dns: Option<At<names::Dns>>,
    /// Whose identity applications without TLS have, by their addresses, on the gateways' originating listeners that name
    /// none themselves; the longest prefix decides. Default: nobody's.
    pub(super) callers: Option<Vec<At<Caller>>>,
}

/// Applications with one identity.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Caller {
    /// Their addresses.
    #[schemars(required)]
    pub(super) sources: Option<Vec<At<Cidr>>>,
    /// Their identity, of the agent's own trust domain.
    #[schemars(required)]
    pub(super) identity: Option<At<Identity>>,
}

/// Who may register VMs.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Registration {
    /// The Unix socket for local processes, or `off`. Default: `agent.sock` in `state`; none without `state`.
    pub(super) socket: Option<At<String>>,
    /// IDs of users that may use the socket, besides root and the agent's own. Default: none.
    pub(super) users: Option<Vec<u32>>,
    /// Token files by token name, one token each; its holder may register at the admin address. The files are read
    /// whenever a client presents a token. Default: none.
    pub(super) tokens: Option<BTreeMap<String, At<String>>>,
}

/// Resource limits of gateways and peers.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    /// Limits of each gateway.
    pub(super) gateways: Option<ClientLimits>,
    /// Limits of each peer, all of its agents together.
    pub(super) peers: Option<PeerLimits>,
}

/// Limits of each gateway. Defaults: 64 connections, 256 streams, requests of 64MiB, 200000 names.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ClientLimits {
    /// Connections at once.
    pub(super) connections: Option<At<Count>>,
    /// Requests at once, on all connections.
    pub(super) streams: Option<At<Count>>,
    /// Decoded size of requests in progress.
    pub(super) requests: Option<At<Size>>,
    /// Names that all streams subscribe to, together; one stream at most half of that.
    pub(super) names: Option<At<Count>>,
}

/// Limits of each peer. Defaults: 16 connections, 8 streams, requests of 16MiB, 20000 names, 8000 slices of
/// 4MiB together.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PeerLimits {
    /// Connections at once.
    pub(super) connections: Option<At<Count>>,
    /// Requests at once, on all connections.
    pub(super) streams: Option<At<Count>>,
    /// Decoded size of requests in progress.
    pub(super) requests: Option<At<Size>>,
    /// Names that all streams subscribe to, together; one stream at most half of that.
    pub(super) names: Option<At<Count>>,
    /// Slices of the peer, under names that it was granted.
    pub(super) slices: Option<At<Count>>,
    /// Size of these slices together, in memory and in `state`.
    pub(super) bytes: Option<At<Size>>,
}

/// Files, reloaded when they change.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Trust {
    /// The trust domain of the certificate. Default: the one in the certificate.
    pub(super) domain: Option<At<String>>,
    /// The certificate chain, leaf first, PEM.
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

/// The service registry.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Registry {
    /// A directory of YAML files, each with `services:` as in a gateway's file.
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
    /// Addresses that other clusters reach it at: IP addresses or host names. Default: none.
    pub(super) address: Option<OneOrMore>,
    /// The port of these addresses.
    #[schemars(extend("default" = EAST_WEST))]
    #[schemars(extend("minimum" = PORTS.0, "maximum" = PORTS.1))]
    pub(super) port: Option<At<Count>>,
    /// Its locality. Default: the agent's `locality`.
    pub(super) locality: Option<Locality>,
    /// The listen address of a stock Envoy: `IP:PORT` or `[IPV6]:PORT`. Default: none, it is an isthmus-gateway.
    pub(super) envoy: Option<At<ListenAddress>>,
    /// Workloads whose certificates it may request, for its callers and the services behind it: each a SPIFFE ID of the
    /// own trust domain under `/ns`, or `…/*` for all under whole path segments. Default: none.
    pub(super) identities: Option<Vec<At<IdentityPattern>>>,
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

/// Exports the services that meet all conditions given; at least one is needed.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Export {
    /// Namespaces: `NAMESPACE` or `CLUSTER/NAMESPACE`; `*/NAMESPACE` is one workspace over all clusters: what other
    /// clusters export from it is imported, too.
    pub(super) workspace: Option<Vec<At<String>>>,
    /// Host names, each exact or `*.suffix`.
    pub(super) hosts: Option<Vec<At<Host>>>,
    /// Labels that a service must have, all of them.
    pub(super) labels: Option<BTreeMap<String, String>>,
    /// The gateways that expose the services. Default: all of the cluster.
    pub(super) gateways: Option<Vec<At<String>>>,
    /// Instances that other clusters can reach by name: their names, or `*` for all. Default: none.
    pub(super) instances: Option<Vec<At<String>>>,
}

/// Rules for callers of every service of a namespace.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Namespace {
    /// Its name.
    #[schemars(required)]
    pub(super) name: Option<At<Label>>,
    /// The rules.
    #[schemars(required)]
    #[serde(default, deserialize_with = "present")]
    pub(super) access: Option<At<access::raw::Access>>,
}

/// Namespaces whose services belong together, also those of several clusters.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Workspace {
    /// Its name.
    #[schemars(required)]
    pub(super) name: Option<At<Label>>,
    /// Its namespaces: `NAMESPACE`, `CLUSTER/NAMESPACE`, or `*/NAMESPACE` for that of every cluster.
    #[schemars(required, length(min = 1))]
    pub(super) namespaces: Option<Vec<At<String>>>,
    /// Rules for callers of its services. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(super) access: Option<At<access::raw::Access>>,
}

/// What is accepted from one cluster.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Import {
    /// The cluster.
    #[schemars(required)]
    pub(super) cluster: Option<At<String>>,
    /// Host names that its services may have here, aliases included: each exact or `*.suffix`. Default: none.
    pub(super) hosts: Option<Vec<At<Host>>>,
    /// Allowed addresses of its gateways. Default: all but loopback, link-local and multicast addresses.
    #[serde(rename = "gatewayCIDRs")]
    pub(super) gateway_cidrs: Option<Vec<At<Cidr>>>,
    /// Allowed host names of its gateways. Default: any, or none where `gatewayCIDRs` is given.
    #[serde(rename = "gatewayHosts")]
    pub(super) gateway_hosts: Option<Vec<At<Host>>>,
    /// Allowed addresses of its endpoints that are reached without a gateway, in a shared network. Default: none; all
    /// connections go through its gateways.
    #[serde(rename = "endpointCIDRs")]
    pub(super) endpoint_cidrs: Option<Vec<At<Cidr>>>,
}

/// Clients in one network may know services in another.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReachabilityRule {
    /// The network of the clients.
    #[schemars(required)]
    pub(super) from: Option<Network>,
    /// The network of the services.
    #[schemars(required)]
    pub(super) to: Option<Network>,
}

/// A network's name, `*` for all networks, or labels of networks.
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
    /// The xDS address of its agent: `IP:PORT` or `NAME:PORT`.
    #[schemars(required)]
    pub(super) address: Option<At<TargetAddress>>,
    /// Its trust domain.
    #[serde(rename = "trustDomain")]
    #[schemars(required)]
    pub(super) trust_domain: Option<At<String>>,
    /// The network of its endpoints. Default: a network of its own.
    pub(super) network: Option<At<String>>,
}

/// The xDS server for gateways and other clusters' agents.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Xds {
    /// `IP:PORT` or `[IPV6]:PORT`; port 0 picks a free one.
    #[schemars(extend("default" = ADDRESS))]
    pub(super) address: Option<At<ListenAddress>>,
    /// The address that other clusters reach, `IP:PORT` or `NAME:PORT`; joined clusters are given it.
    pub(super) advertise: Option<At<TargetAddress>>,
}

/// The endpoint where clusters join with a token.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Join {
    /// `IP:PORT` or `[IPV6]:PORT`; port 0 picks a free one.
    #[schemars(extend("default" = JOIN))]
    pub(super) address: Option<At<ListenAddress>>,
    /// The address that other clusters reach, `IP:PORT` or `NAME:PORT`; tokens carry it. Default: the host of
    /// `xds.advertise` with the port of `address`.
    pub(super) advertise: Option<At<TargetAddress>>,
}

/// The intermediate that signs certificates: files, reloaded when they change. The key never leaves the agent.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Issuing {
    /// The certificate of the cluster's intermediate, PEM.
    #[schemars(required)]
    pub(super) certificate: Option<At<String>>,
    /// Its key, PEM.
    #[schemars(required)]
    pub(super) key: Option<At<String>>,
    /// The lifetime of a certificate, unless its holder requests less: 1s to 168h.
    #[schemars(extend("default" = show_duration(LONGEST)))]
    pub(super) longest: Option<At<Time>>,
}

/// The admin server.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Admin {
    /// `IP:PORT` or `[IPV6]:PORT`; port 0 picks a free one.
    #[schemars(extend("default" = ADMIN))]
    pub(super) address: Option<At<ListenAddress>>,
}
