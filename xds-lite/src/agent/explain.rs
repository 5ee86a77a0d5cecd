//! Explains a name: which host of the registry or of another cluster has it, whether that host is exported or imported,
//! and why not.

use std::collections::BTreeMap;
use std::sync::Arc;

use isthmus_health::mtls::MtlsCheck;
use isthmus_model::access::Caller;
use isthmus_model::admin::agent::{
    self, Explanation, Import, MtlsResult, OfferedPort, OwnOffer, PolicyOf, PortAccess, RegisteredEndpoint,
    RegisteredHost, RegisteredPort,
};
use isthmus_model::host::HostPattern;
use isthmus_model::services::Service;
use isthmus_model::slice::{Port, Slice};
use isthmus_model::sni;
use isthmus_model::traffic::Traffic;
use isthmus_registry::imports::{ImportStatus, Stale};

use crate::admin::{Asker, ExplainQuestion};

use super::Owners;
use super::own_services::HostReport;
use super::pages::unreached;
use super::peer::{Contact, seconds};

/// Note on a slice of another cluster: this agent does not see what its owner does not export.
const UNSEEN: &str =
    "its own cluster may have more ports and endpoints, not exported: run `isthmus-agent explain` there";
/// Note on an unknown name.
const UNKNOWN: &str = "no host of this registry and no slice of a peer has this name: its cluster may not export it, or may not be a peer; run `isthmus-agent explain` there, and see `peers` in the status";

/// Explains any name of a service: its host, an alias, an instance, or `outbound_.PORT_._.HOST`.
///
/// # Errors
/// It is not a name.
pub(super) fn explain(owners: &Owners, question: &ExplainQuestion) -> Result<Explanation, String> {
    let asked = question.host.as_str();
    let (name, port) = sni::split(asked);
    let name = HostPattern::parse(name).map_err(|error| format!("host: {error}"))?;
    let hosts = hosts(owners, &name);
    let (host, kind) = hosts.first_key_value().map_or((&name, None), |(host, kind)| (host, Some(*kind)));
    let imports = owners.peers.imports_of(host);
    let registry = owners.own.report_of(host);
    let note = match (&registry, imports.is_empty()) {
        (None, true) => Some(UNKNOWN),
        (_, false) => Some(UNSEEN),
        (Some(_), true) => None,
    };
    let contacts = owners.peers.summary(0).contacts;
    let imports =
        imports.iter().map(|(import, stale)| imported(import, stale.as_ref(), contacts.get(&import.cluster)));
    let own = owners.own.offer_of(host);
    Ok(Explanation {
        asked: asked.to_owned(),
        host: host.to_string(),
        named_by: kind.map(str::to_owned),
        port,
        others: hosts.keys().skip(1).map(ToString::to_string).collect(),
        registry: registry.as_ref().map(registered),
        offer: own.as_ref().map(offer),
        access: own.as_ref().zip(question.caller.as_ref()).map(access).unwrap_or_default(),
        traffic: policies(owners, host, registry.as_ref(), imports.len() > 0),
        imports: imports.collect(),
        note: note.map(str::to_owned),
    })
}

/// The hosts that have a name, and how; only the host of exactly that name where there is one.
fn hosts(owners: &Owners, name: &HostPattern) -> BTreeMap<HostPattern, &'static str> {
    if owners.own.contains(name) || !owners.peers.imports_of(name).is_empty() {
        return [(name.clone(), "host")].into();
    }
    let own = owners.own.search(|host, ports| Some((host.clone(), named_by(host, ports, name)?)));
    let theirs = owners.peers.hosts_of(name).into_iter().map(|host| (host, "alias"));
    own.into_iter().chain(theirs).collect()
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
fn registered(report: &HostReport) -> RegisteredHost {
    let HostReport { ports, export, why_not, checks } = report;
    let port = |port: &Service| {
        let is_trusted = port.skips_mtls_check();
        let is_checked = export.is_some() && !is_trusted;
        let endpoints = port.endpoints.iter().map(|endpoint| RegisteredEndpoint {
            address: (&endpoint.address).into(),
            instance: endpoint.instance.as_ref().map(ToString::to_string),
            mtls: checks.get(&endpoint.address).filter(|_| is_checked).map(mtls),
        });
        RegisteredPort { port: port.port, endpoints: endpoints.collect() }
    };
    RegisteredHost {
        chosen_by_an_export: export.is_some(),
        on_gateways: export.as_ref().map(|export| export.gateways.iter().cloned().collect()),
        why_not: why_not.clone(),
        ports: ports.iter().map(port).collect(),
    }
}

fn mtls(check: &MtlsCheck) -> MtlsResult {
    match check {
        MtlsCheck::Awaited => MtlsResult::Awaited,
        MtlsCheck::Required => MtlsResult::Required,
        MtlsCheck::NotRequired(seen) => MtlsResult::NotRequired(seen.clone()),
        MtlsCheck::Unreachable(why) => MtlsResult::Unreachable(why.clone()),
    }
}

/// Whether a slice of another cluster is imported, and by which rule it is kept while that cluster is unreachable.
fn imported(import: &ImportStatus, stale: Option<&Stale>, contact: Option<&Contact>) -> Import {
    let ImportStatus { cluster, host, quarantined } = import;
    let stale = stale.map(|Stale { rule, down }| agent::Stale {
        rule: rule.to_string(),
        since: contact.map(|contact| seconds(contact.since)),
        down: down.iter().map(unreached).collect(),
    });
    Import { cluster: cluster.to_string(), host: host.to_string(), held: quarantined.clone(), stale }
}

/// What the rules of each port say about a caller.
fn access((slice, asker): (&Slice, &Asker)) -> Vec<PortAccess> {
    let ports = slice.offer.iter().flat_map(|offer| &offer.ports);
    let decided = |port: &Port| {
        let Asker { identity, source } = asker;
        let caller = Caller { identity: identity.as_ref(), source: *source, port: port.number };
        PortAccess { port: port.number, decided: (&port.access.decide(&caller)).into() }
    };
    ports.map(decided).collect()
}

/// The policies of a host that anybody offers.
fn policies(
    owners: &Owners,
    host: &HostPattern,
    registry: Option<&HostReport>,
    is_imported: bool,
) -> Vec<PolicyOf> {
    let ports = registry.map(|report| report.ports.as_slice()).unwrap_or_default();
    let own = |service: &Service| {
        let policy = service.traffic.as_ref()?.to_string();
        Some(PolicyOf { port: Some(service.port), written: Some("registry".to_owned()), policy })
    };
    let mut policies: Vec<_> = ports.iter().filter_map(own).collect();
    if policies.len() < ports.len() || is_imported {
        let rules = owners.views.traffic.rules();
        let rule = rules.find(host);
        policies.push(PolicyOf {
            port: None,
            written: rule.map(|(place, _)| format!("traffic[{place}]")),
            policy: rule.map_or_else(Traffic::unwritten, |(_, policy)| Arc::clone(policy)).to_string(),
        });
    }
    policies
}

fn offer(slice: &Slice) -> OwnOffer {
    let port = |port: &Port| OfferedPort {
        port: port.number,
        exported: port.exported,
        endpoints: port.endpoints.len() as u64,
        exposed: port.endpoints.iter().filter(|endpoint| endpoint.exposed).count() as u64,
    };
    let gateways = slice.offer.iter().flat_map(|offer| &offer.gateways);
    OwnOffer {
        incarnation: slice.order.incarnation,
        revision: slice.order.revision,
        ports: slice.offer.as_ref().map(|offer| offer.ports.iter().map(port).collect()),
        gateways: gateways.map(|gateway| gateway.address.to_string()).collect(),
    }
}
