//! Explains a name: which host of the registry or of another cluster has it, whether that host is exported or imported,
//! and why not.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use isthmus_health::mtls::Subject;
use isthmus_model::host::HostPattern;
use isthmus_model::services::Service;
use isthmus_model::slice::{Offer, Port, Slice};
use isthmus_model::sni;
use isthmus_registry::imports::{ImportStatus, Stale};
use serde_json::{Value, json};

use super::pages::unreached;
use super::peer::seconds;
use super::state::State;

/// Note on a slice of another cluster: this agent does not see what its owner does not export.
const UNSEEN: &str =
    "its own cluster may have more ports and endpoints, not exported: run `isthmus-agent explain` there";
/// Note on an unknown name.
const UNKNOWN: &str = "no host of this registry and no slice of a peer has this name: its cluster may not export it, or may not be a peer; run `isthmus-agent explain` there, and see `peers` in the status";

/// Explains any name of a service: its host, an alias, an instance, or `outbound_.PORT_._.HOST`.
///
/// # Errors
/// It is not a name.
pub(super) fn explain(state: &State, asked: &str) -> Result<Value, String> {
    let (name, port) = sni::split(asked);
    let name = HostPattern::parse(name).map_err(|error| format!("host: {error}"))?;
    let owners = owners(state, &name);
    let (host, kind) = owners.first_key_value().map_or((&name, None), |(host, kind)| (host, Some(*kind)));
    let imports = state.imports.shown_of(host);
    let registry = state.services.get(host);
    let note = match (registry, imports.is_empty()) {
        (None, true) => Some(UNKNOWN),
        (_, false) => Some(UNSEEN),
        (Some(_), true) => None,
    };
    Ok(json!({
        "asked": asked,
        "host": host,
        "named_by": kind,
        "port": port,
        "others": owners.keys().skip(1).collect::<Vec<_>>(),
        "registry": registry.map(|ports| registered(state, host, ports)),
        "offer": state.offer_of(host).map(offer),
        "imports": imports.iter().map(|import| imported(state, import)).collect::<Vec<_>>(),
        "note": note,
    }))
}

/// The hosts that have a name, and how; only the host of exactly that name where there is one.
fn owners(state: &State, name: &HostPattern) -> BTreeMap<HostPattern, &'static str> {
    if state.services.contains_key(name) || !state.imports.shown_of(name).is_empty() {
        return [(name.clone(), "host")].into();
    }
    let kind =
        |(host, ports): (&HostPattern, &Vec<Service>)| Some((host.clone(), named_by(host, ports, name)?));
    let own = state.services.iter().filter_map(kind);
    let theirs = state.imports.hosts_of(name).map(|host| (host.clone(), "alias"));
    own.chain(theirs).collect()
}

/// Whether a name is an alias or an instance of a host.
fn named_by(host: &HostPattern, ports: &[Service], name: &HostPattern) -> Option<&'static str> {
    let mut endpoints = ports.iter().flat_map(|port| &port.endpoints);
    let is_alias = |port: &Service| port.aliases.contains(name);
    let mut is_instance = || {
        endpoints.any(|endpoint| {
            let by_host = endpoint.instance.as_ref().map(|instance| format!("{instance}.{host}"));
            by_host.is_some_and(|full| name.to_string() == full)
                || endpoint.aliases.iter().any(|alias| *name == HostPattern::Exact(alias.clone()))
        })
    };
    if ports.iter().any(is_alias) { Some("alias") } else { is_instance().then_some("instance") }
}

/// A host in the registry, and why it is not exported.
fn registered(state: &State, host: &HostPattern, ports: &[Service]) -> Value {
    let export = state.export_of(host, ports);
    let proofs = |port: &Service| -> Vec<Value> {
        let proof = |address| state.mtls_checks.of(&Subject { host: host.clone(), address });
        let is_trusted = port.skips_mtls_check();
        let endpoints = port.endpoints.iter().map(|endpoint| {
            let seen = export.as_ref().filter(|_| !is_trusted).map(|_| proof(endpoint.address.clone()));
            json!({ "address": endpoint.address, "instance": endpoint.instance, "mtls": seen })
        });
        endpoints.collect()
    };
    json!({
        "chosen_by_an_export": export.is_some(),
        "on_gateways": export.as_ref().map(|export| &export.gateways),
        "why_not": state.why_held(host, ports),
        "ports": ports.iter().map(|port| json!({ "port": port.port, "endpoints": proofs(port) })).collect::<Vec<_>>(),
    })
}

/// Whether a slice of another cluster is imported, and by which rule it is kept while that cluster is unreachable.
fn imported(state: &State, import: &ImportStatus) -> Value {
    let ImportStatus { cluster, host, quarantined } = import;
    let stale = state.imports.stale(cluster, host, Instant::now(), SystemTime::now());
    let stale = stale.map(|Stale { rule, down }| {
        json!({
            "rule": rule.to_string(),
            "since": state.peers.get(cluster).map(|contact| seconds(contact.since)),
            "down": down.iter().map(unreached).collect::<Vec<_>>(),
        })
    });
    json!({ "cluster": cluster, "host": host, "held": quarantined, "stale": stale })
}

fn offer(slice: &Slice) -> Value {
    let ports = |offer: &Offer| -> Vec<Value> {
        let port = |port: &Port| {
            let exposed = port.endpoints.iter().filter(|endpoint| endpoint.exposed).count();
            json!({ "port": port.number, "exported": port.exported, "endpoints": port.endpoints.len(), "exposed": exposed })
        };
        offer.ports.iter().map(port).collect()
    };
    json!({
        "incarnation": slice.order.incarnation,
        "revision": slice.order.revision,
        "ports": slice.offer.as_ref().map(ports),
        "gateways": slice.offer.iter().flat_map(|offer| &offer.gateways)
            .map(|gateway| gateway.address.to_string()).collect::<Vec<_>>(),
    })
}

impl State {
    /// Why a host is not exported; none: it is.
    fn why_held(&self, host: &HostPattern, ports: &[Service]) -> Option<String> {
        match self.export_of(host, ports) {
            None => Some("no export rule selects it".to_owned()),
            Some(_) => self.why_unfit(host, ports),
        }
    }
}
