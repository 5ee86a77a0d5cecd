//! Builds upstreams (a Cluster, its endpoints and its filter chain) of one slice. Name conflicts with other services are
//! settled in `claims`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;

use isthmus_model::address::Target;
use isthmus_model::host::{HostName, HostPattern};
use isthmus_model::services::Balance;
use isthmus_model::slice::{Endpoint, Offer, Port};

use super::encode::{assignment, cluster};
use super::exposure::{is_named, is_offered, serves, unserved};
use super::grpc::unfit;

/// One of Envoy's clusters, and its chain.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) chain: Chain,
    /// The encoded Cluster.
    pub(super) settings: Bytes,
    /// The encoded ClusterLoadAssignment.
    pub(super) endpoints: Bytes,
}

/// The filter chain of one of Envoy's clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// The cluster's name.
    pub(super) cluster: String,
    /// Names in the order of their claim: its own, aliases, instances'.
    pub(super) names: [Vec<String>; 3],
    /// Protocols of which the client offers one; empty: any.
    pub(super) alpn: BTreeSet<String>,
    /// Admitted client addresses; empty: any.
    pub(super) sources: BTreeSet<IpNet>,
    pub(super) idle: Option<Duration>,
    pub(super) max_duration: Option<Duration>,
    /// The client's address chooses the endpoint.
    pub(super) by_source: bool,
    /// Why it is left out for gRPC clients, if it is.
    pub(super) unfit: Option<&'static str>,
}

/// An endpoint in Envoy's tables.
pub(super) struct At<'a> {
    pub(super) address: SocketAddr,
    pub(super) endpoint: &'a Endpoint,
}

/// The upstreams of a host on these gateways, and what is left out, with the reasons.
pub(super) fn upstreams(
    host: &HostPattern,
    offer: &Offer,
    gateways: &[String],
) -> (Vec<Upstream>, Vec<String>) {
    let (mut found, mut wrong) = (Vec::new(), Vec::new());
    for port in offer.ports.iter().filter(|port| is_offered(offer, port, gateways)) {
        if let Some(why) = unserved(port) {
            wrong.push(format!(
                "{host} port {} is left out of Envoy's tables: {why}; use isthmus-gateway for it",
                port.number
            ));
            continue;
        }
        let endpoints = reachable(host, offer, port, &mut wrong);
        let names = names(host, offer, port);
        if names.iter().all(Vec::is_empty) {
            wrong.push(format!(
                "{host} port {} is left out of Envoy's tables: Envoy has no `outbound_` names for a suffix; make it the port of the bare host name with `sni_port`",
                port.number
            ));
            continue;
        }
        found.push(upstream(port, format!("outbound_.{}_._.{host}", port.number), names, &endpoints));
        found.extend(instances(host, port, &endpoints));
    }
    (found, wrong)
}

/// Endpoints by address, without gateways: a connection to one would come back.
fn reachable<'a>(host: &HostPattern, offer: &Offer, port: &'a Port, wrong: &mut Vec<String>) -> Vec<At<'a>> {
    let mut found = Vec::new();
    for endpoint in port.endpoints.iter().filter(|endpoint| serves(endpoint, port)) {
        let is_gateway = offer.gateways.iter().any(|gateway| gateway.address == endpoint.address);
        let why = match endpoint.address {
            Target::Address(address) if !is_gateway => {
                found.push(At { address, endpoint });
                continue;
            }
            Target::Address(_) => "it is a gateway of this cluster; register the endpoint behind it",
            Target::Name { .. } => "Envoy's endpoint discovery accepts no host names; register its address",
        };
        wrong.push(format!(
            "{host} port {}: endpoint {} is left out of Envoy's tables: {why}",
            port.number, endpoint.address
        ));
    }
    found
}

fn names(host: &HostPattern, offer: &Offer, port: &Port) -> [Vec<String>; 3] {
    let mut own = Vec::new();
    if let HostPattern::Exact(host) = host {
        own.push(outbound(port, host.as_str()));
    }
    let mut aliases = Vec::new();
    if port.default_port {
        own.push(host.to_string());
        aliases.extend(offer.aliases.iter().map(ToString::to_string));
    }
    // One for each port, as for the host: `outbound_.PORT_._.ALIAS`.
    for alias in &offer.aliases {
        if let HostPattern::Exact(alias) = alias {
            aliases.push(outbound(port, alias.as_str()));
        }
    }
    [own, aliases, Vec::new()]
}

fn outbound(port: &Port, host: &str) -> String {
    format!("outbound_.{}_._.{host}", port.number)
}

/// Instances with their own names: each is a cluster of one endpoint. An instance never fails over.
fn instances(host: &HostPattern, port: &Port, endpoints: &[At<'_>]) -> Vec<Upstream> {
    let HostPattern::Exact(host) = host else { return Vec::new() };
    let named = endpoints.iter().filter(|at| is_named(at.endpoint));
    let instance = |at: &At<'_>| {
        // An over-long name is left out.
        let name = HostName::parse(format!("{}.{host}", at.endpoint.instance.as_ref()?)).ok()?;
        let only = [At { address: at.address, endpoint: at.endpoint }];
        let mut names = Vec::new();
        for name in std::iter::once(&name).chain(&at.endpoint.aliases) {
            names.push(outbound(port, name.as_str()));
            if port.default_port {
                names.push(name.to_string());
            }
        }
        Some(upstream(port, outbound(port, name.as_str()), [Vec::new(), Vec::new(), names], &only))
    };
    named.filter_map(instance).collect()
}

fn upstream(port: &Port, name: String, names: [Vec<String>; 3], endpoints: &[At<'_>]) -> Upstream {
    Upstream {
        settings: cluster(&name, port),
        endpoints: assignment(&name, endpoints),
        chain: Chain {
            cluster: name,
            names,
            alpn: port.alpn.iter().cloned().collect(),
            sources: port.sources.iter().map(IpNet::trunc).collect(),
            idle: port.timeouts.idle,
            max_duration: port.timeouts.max_duration,
            by_source: port.balance == Balance::SourceHash,
            unfit: unfit(port),
        },
    }
}
