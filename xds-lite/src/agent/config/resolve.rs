//! Resolves an agent's file: raw values to settings, with every problem reported at its place.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use isthmus_certs::TrustDomain;

use isthmus_model::address::{ListenAddress, Target};
use isthmus_model::at::{At, Spot};
use isthmus_model::host::HostName;
use isthmus_model::locality::Locality;
use isthmus_model::problem::{Place, Quoted, Report};
use isthmus_model::slice::Cluster;
use isthmus_registry::exports::{Instances, Namespaces, Rule};
use isthmus_registry::reachability::{self, Networks, Reachability};

use super::access::wider_rules;
use super::callers::callers;
use super::identities;
use super::issuing::issuing;
use super::limits::limits;
use super::names::{dns, ranges};
use super::registration::registration;
use super::traffic::{Clusters, traffic_settings};
use super::trust::{domain, trust_files};
use super::{ADDRESS, ADMIN, EAST_WEST, Gateway, Import, JOIN, Join, Peer, Settings, raw};

pub(super) fn settings(report: &mut Report, file: raw::File) -> Option<Settings> {
    identities::check(report, &file);
    let cluster = needed(report, Place::Root, Spot::START, "cluster", file.cluster.as_ref());
    let cluster = cluster.and_then(|written| cluster_name(report, Place::Root.key("cluster"), written));
    let trust = needed(report, Place::Root, Spot::START, "trust", file.trust.as_ref());
    let domain = trust.and_then(|trust| TrustDomain::new(&trust.value.domain.as_ref()?.value).ok());
    let callers = callers(report, file.callers.as_deref(), domain.as_ref());
    let trust = trust.and_then(|trust| trust_files(report, trust));
    let registry = registry(report, file.registry.as_ref());
    let locality = file.locality.unwrap_or_default();
    let gateways = gateways(report, file.gateways.as_deref().unwrap_or_default(), &locality);
    let peers = peers(report, file.peers.as_deref().unwrap_or_default());
    let reachability = reachability(report, file.networks, file.reachability.as_deref());
    let xds = file.xds.unwrap_or_default();
    let place = Place::Root.key("xds");
    let address = listen(report, place, "address", xds.address.as_ref(), ADDRESS);
    let advertise = report.value(xds.advertise.as_ref(), place.key("advertise"));
    let join =
        file.join.as_ref().map(|join| join_settings(report, join, file.state.is_some(), advertise.is_some()));
    let issuing = file.issuing.as_ref().map(|raw| issuing(report, raw, file.state.is_some()));
    let admin = file.admin.and_then(|admin| admin.address);
    let admin = listen(report, Place::Root.key("admin"), "address", admin.as_ref(), ADMIN);
    let limits = limits(report, file.limits);
    let names = ranges(report, file.virtual_addresses.as_ref(), file.originate_ports.as_ref(), &gateways);
    let dns = file.dns.as_ref().map(|raw| dns(report, raw, names.addresses, &callers));
    // The checks below compare names with the own cluster's.
    let cluster = cluster?;
    let exports = exports(report, file.exports.as_deref().unwrap_or_default(), &cluster, &gateways);
    let imports = imports(report, file.imports.as_deref().unwrap_or_default());
    let known = Clusters { own: &cluster, peers: &peers, imports: &imports, are_open: file.join.is_some() };
    let traffic = traffic_settings(report, file.traffic.as_deref(), &known);
    let network = file.network.map(|network| network.value).unwrap_or_default();
    check_peers(report, (&cluster, &network), &file.peers, &peers, &reachability);
    let written = (file.access.as_ref(), file.namespaces.as_deref(), file.workspaces.as_deref());
    let access = wider_rules(report, written, &cluster, &peers);
    let state: Option<PathBuf> = file.state.map(|state| state.value.into());
    Some(Settings {
        registration: registration(report, file.registration, state.as_ref()),
        cluster,
        network,
        locality,
        trust: trust?,
        registry: registry?,
        state,
        gateways,
        exports,
        access,
        traffic,
        imports,
        reachability,
        peers,
        address: address?,
        advertise,
        join: join.map_or(Some(None), |join| join.map(Some))?,
        issuing: issuing.map_or(Some(None), |issuing| issuing.map(Some))?,
        admin: admin?,
        limits,
        names,
        callers,
        dns: dns.map_or(Some(None), |dns| dns.map(Some))?,
        warnings: report.warnings().to_vec(),
    })
}

fn registry(report: &mut Report, raw: Option<&At<raw::Registry>>) -> Option<PathBuf> {
    let registry = needed(report, Place::Root, Spot::START, "registry", raw)?;
    let place = Place::Root.key("registry");
    let files = needed(report, place, registry.spot, "files", registry.value.files.as_ref())?;
    Some(files.value.clone().into())
}

pub(super) fn listen(
    report: &mut Report,
    place: Place<'_>,
    key: &'static str,
    written: Option<&At<ListenAddress>>,
    default: &str,
) -> Option<std::net::SocketAddr> {
    match written {
        Some(written) => report.value(Some(written), place.key(key)),
        None => default.parse().ok(),
    }
}

/// Needs a state directory for joined peers, and the address that other clusters reach this agent at.
fn join_settings(
    report: &mut Report,
    raw: &At<raw::Join>,
    has_state: bool,
    is_advertised: bool,
) -> Option<Join> {
    let place = Place::Root.key("join");
    if !has_state {
        report.add(raw.spot, format_args!("{place} needs a state directory"), "add 'state: DIRECTORY'");
    }
    if !is_advertised {
        let what = format_args!("{place} needs xds.advertise: joined clusters could not find this agent");
        report.add(
            raw.spot,
            what,
            "add 'xds: { advertise: NAME:15012 }' with the address that other clusters reach",
        );
    }
    let address = listen(report, place, "address", raw.value.address.as_ref(), JOIN);
    let advertise = report.value(raw.value.advertise.as_ref(), place.key("advertise"));
    Some(Join { address: address?, advertise })
}

fn cluster_name(report: &mut Report, place: Place<'_>, written: &At<String>) -> Option<Cluster> {
    let cluster = written.value.parse::<Cluster>();
    if let Err(error) = &cluster {
        report.add(written.spot, format_args!("{place}: {} cannot be used", Quoted(&written.value)), error);
    }
    cluster.ok()
}

fn gateways(report: &mut Report, list: &[At<raw::Gateway>], locality: &Locality) -> Vec<Gateway> {
    let place = Place::Root.key("gateways");
    let mut gateways: Vec<Gateway> = Vec::new();
    for (index, whole) in list.iter().enumerate() {
        let (place, raw) = (place.item(index), &whole.value);
        let port = report.port(raw.port.as_ref(), place.key("port")).unwrap_or(EAST_WEST);
        let written: &[String] = match &raw.address {
            None => &[],
            Some(raw::OneOrMore::One(one)) => std::slice::from_ref(one),
            Some(raw::OneOrMore::More(more)) => more,
        };
        let mut addresses = Vec::new();
        for text in written {
            match target(text, port) {
                Some(target) => addresses.push(target),
                None => report.add(
                    whole.spot,
                    format_args!("{}: {} is not an address", place.key("address"), Quoted(text)),
                    "write an IP address or a host name; write the port under 'port'",
                ),
            }
        }
        let Some(name) = needed(report, place, whole.spot, "name", raw.name.as_ref()) else { continue };
        if gateways.iter().any(|known| known.name == name.value) {
            let what = format_args!("{}: {} is listed twice", place.key("name"), Quoted(&name.value));
            report.add(name.spot, what, "give each gateway its own name");
        }
        let envoy = report.value(raw.envoy.as_ref(), place.key("envoy"));
        if let Some(envoy) = envoy
            && let Some(other) =
                gateways.iter().filter_map(|known: &Gateway| known.envoy).find(|at| *at != envoy)
        {
            let what = format_args!("{}: {envoy} differs from another Envoy's {other}", place.key("envoy"));
            report.add(whole.spot, what, "write the same address for each: all Envoys get the same tables");
        }
        gateways.push(Gateway {
            name: name.value.clone(),
            addresses,
            locality: raw.locality.clone().unwrap_or_else(|| locality.clone()),
            envoy,
            identities: report.values(raw.identities.as_ref(), place.key("identities")),
        });
    }
    gateways
}

/// An IP address or a host name, at a port.
fn target(text: &str, port: u16) -> Option<Target> {
    match text.parse::<std::net::IpAddr>() {
        Ok(ip) => Some(Target::Address((ip.to_canonical(), port).into())),
        Err(_) if text.contains(':') => None,
        Err(_) => format!("{text}:{port}").parse().ok(),
    }
}

fn exports(report: &mut Report, list: &[At<raw::Export>], own: &Cluster, gateways: &[Gateway]) -> Vec<Rule> {
    let place = Place::Root.key("exports");
    let mut rules = Vec::new();
    for (index, whole) in list.iter().enumerate() {
        let (place, raw) = (place.item(index), &whole.value);
        let rule = Rule {
            workspace: namespaces(
                report,
                place.key("workspace"),
                raw.workspace.as_deref().unwrap_or_default(),
                own,
            ),
            hosts: report.values(raw.hosts.as_ref(), place.key("hosts")),
            labels: raw.labels.clone().unwrap_or_default(),
            gateways: chosen_gateways(report, place.key("gateways"), raw, gateways),
            instances: instances(report, place.key("instances"), raw),
        };
        let is_empty = |list: Option<usize>| list.is_none_or(|length| length == 0);
        if is_empty(raw.workspace.as_ref().map(Vec::len))
            && is_empty(raw.hosts.as_ref().map(Vec::len))
            && rule.labels.is_empty()
        {
            let remedy =
                "add workspace, hosts or labels; hosts: ['*.svc.cluster.local'] selects all of those";
            report.add(whole.spot, format_args!("{place} selects no service"), remedy);
        }
        rules.push(rule);
    }
    rules
}

pub(super) fn namespaces(
    report: &mut Report,
    place: Place<'_>,
    list: &[At<String>],
    own: &Cluster,
) -> Vec<Namespaces> {
    let mut parts = Vec::new();
    for (index, part) in list.iter().enumerate() {
        match Namespaces::parse(&part.value, own) {
            Ok(namespaces) => parts.push(namespaces),
            Err(error) => report.add(
                part.spot,
                format_args!("{}: {} {error}", place.item(index), Quoted(&part.value)),
                "write NAMESPACE, CLUSTER/NAMESPACE or */NAMESPACE",
            ),
        }
    }
    parts
}

fn chosen_gateways(
    report: &mut Report,
    place: Place<'_>,
    raw: &raw::Export,
    gateways: &[Gateway],
) -> Vec<String> {
    let list = raw.gateways.as_deref().unwrap_or_default();
    for (index, name) in list.iter().enumerate() {
        if !gateways.iter().any(|known| known.name == name.value) {
            let what = format_args!("{}: unknown gateway {}", place.item(index), Quoted(&name.value));
            report.add(name.spot, what, "write the name of a gateway listed under 'gateways'");
        }
    }
    list.iter().map(|name| name.value.clone()).collect()
}

fn instances(report: &mut Report, place: Place<'_>, raw: &raw::Export) -> Instances {
    let mut names = BTreeSet::new();
    for (index, written) in raw.instances.iter().flatten().enumerate() {
        if written.value == "*" {
            return Instances::All;
        }
        match HostName::parse(&written.value).ok().filter(|name| !name.as_str().contains('.')) {
            Some(name) => _ = names.insert(name),
            None => report.add(
                written.spot,
                format_args!("{}: {} is not an instance name", place.item(index), Quoted(&written.value)),
                "write an instance's name, one DNS label, or '*' for all",
            ),
        }
    }
    Instances::Named(names)
}

fn imports(report: &mut Report, list: &[At<raw::Import>]) -> Vec<Import> {
    let place = Place::Root.key("imports");
    let mut imports: Vec<Import> = Vec::new();
    for (index, whole) in list.iter().enumerate() {
        let (place, raw) = (place.item(index), &whole.value);
        let cluster = needed(report, place, whole.spot, "cluster", raw.cluster.as_ref());
        let cluster = cluster.and_then(|written| cluster_name(report, place.key("cluster"), written));
        let hosts = report.values(raw.hosts.as_ref(), place.key("hosts"));
        let gateways = report.values(raw.gateway_cidrs.as_ref(), place.key("gatewayCIDRs"));
        let gateway_hosts = report.values(raw.gateway_hosts.as_ref(), place.key("gatewayHosts"));
        let endpoints = report.values(raw.endpoint_cidrs.as_ref(), place.key("endpointCIDRs"));
        let Some(cluster) = cluster else { continue };
        if imports.iter().any(|known| known.cluster == cluster) {
            let what = format_args!("{}: {cluster} is listed twice", place.key("cluster"));
            report.add(whole.spot, what, "merge its entries into one");
        }
        imports.push(Import { cluster, hosts, gateways, gateway_hosts, endpoints });
    }
    imports
}

fn peers(report: &mut Report, list: &[At<raw::Peer>]) -> Vec<Peer> {
    let place = Place::Root.key("peers");
    let mut peers: Vec<Peer> = Vec::new();
    for (index, whole) in list.iter().enumerate() {
        let (place, raw) = (place.item(index), &whole.value);
        let cluster = needed(report, place, whole.spot, "cluster", raw.cluster.as_ref());
        let cluster = cluster.and_then(|written| cluster_name(report, place.key("cluster"), written));
        let address = report.required(raw.address.as_ref(), whole, place, "address");
        let written = needed(report, place, whole.spot, "trustDomain", raw.trust_domain.as_ref());
        let domain = written.and_then(|written| domain(report, place.key("trustDomain"), written));
        let (Some(cluster), Some(address), Some(domain)) = (cluster, address, domain) else { continue };
        if peers.iter().any(|known| known.cluster == cluster) {
            let what = format_args!("{}: {cluster} is listed twice", place.key("cluster"));
            report.add(whole.spot, what, "keep one entry for each cluster");
        }
        let network = raw.network.as_ref().map(|network| network.value.clone());
        peers.push(Peer { cluster, address, within: None, domain, network });
    }
    peers
}

fn reachability(
    report: &mut Report,
    networks: Option<BTreeMap<String, BTreeMap<String, String>>>,
    list: Option<&[At<raw::ReachabilityRule>]>,
) -> Reachability {
    let place = Place::Root.key("reachability");
    let mut side =
        |place: Place<'_>, whole: &At<raw::ReachabilityRule>, key, written: Option<&raw::Network>| {
            if written.is_none() {
                report.add(whole.spot, format_args!("{place} has no {key}"), format_args!("add '{key}: …'"));
            }
            match written? {
                raw::Network::Name(name) if name == "*" => Some(Networks::All),
                raw::Network::Name(name) => Some(Networks::Named(name.clone())),
                raw::Network::Labels(labels) => Some(Networks::Labelled(labels.clone())),
            }
        };
    let rules = list.map(|list| {
        let rule = |(index, whole): (usize, &At<raw::ReachabilityRule>)| {
            let place = place.item(index);
            let from = side(place, whole, "from", whole.value.from.as_ref());
            let to = side(place, whole, "to", whole.value.to.as_ref());
            Some(reachability::Rule { from: from?, to: to? })
        };
        list.iter().enumerate().filter_map(rule).collect()
    });
    Reachability { networks: networks.unwrap_or_default(), rules }
}

/// Checks peers against the other sections.
fn check_peers(
    report: &mut Report,
    own: (&Cluster, &str),
    written: &Option<Vec<At<raw::Peer>>>,
    peers: &[Peer],
    reachability: &Reachability,
) {
    let (cluster, network) = own;
    let place = Place::Root.key("peers");
    for (index, whole) in written.iter().flatten().enumerate() {
        let place = place.item(index);
        if whole.value.cluster.as_ref().is_some_and(|named| named.value == cluster.as_str()) {
            let what = format_args!("{}: {cluster} is this cluster itself", place.key("cluster"));
            report.add(whole.spot, what, "write the other agent's cluster");
        }
        let theirs = peers.get(index).and_then(|peer| peer.network.as_deref());
        let is_reachable =
            reachability.allows(Some(network), theirs) || reachability.allows(theirs, Some(network));
        if whole.value.network.is_none() && !is_reachable {
            let what = format_args!("{place} has no network, so no reachability rule matches it");
            report.warn(whole.spot, what, "add 'network: …'; without it nothing is exchanged with this peer");
        }
    }
}

/// A required key's value; `whole` is the place of the mapping that must have it.
pub(super) fn needed<'a, T>(
    report: &mut Report,
    place: Place<'_>,
    whole: Spot,
    key: &'static str,
    written: Option<&'a At<T>>,
) -> Option<&'a At<T>> {
    if written.is_none() {
        report.add(whole, format_args!("{place} has no {key}"), format_args!("add '{key}: …'"));
    }
    written
}
