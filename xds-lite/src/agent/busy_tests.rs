//! Pages in the middle of changes: the locks of every owner are held, as by a change that never ends.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use isthmus_ads::client::Resource;
use isthmus_certs::{Authority, SpiffeId, Trust, TrustBundles, TrustDomain};
use isthmus_grpc::budget::Budgets;
use isthmus_model::registry_file;
use isthmus_model::slice::{Gateway, Key, Offer, Order, Port, Slice, Tls};
use isthmus_registry::files::{Part, Summary};
use isthmus_trust::join::Party;

use super::bundles::Bundles;
use super::config::{Settings, parse};
use super::local_bindings::LocalBindings;
use super::pages::AdminPages;
use super::{Owners, Views};
use crate::admin::Pages as _;

pub(super) const FILE: &str = "\
cluster: east
network: east-net
trust: { certificate: tls.crt, key: tls.key, bundles: bundles }
registry: { files: ./registry }
gateways: [{ name: gw-1, address: 203.0.113.1, port: 15443 }]
xds: { address: '127.0.0.1:0' }
exports: [{ hosts: ['*.own'] }]
imports: [{ cluster: west, hosts: ['*.shop'] }]
peers: [{ cluster: west, address: '127.0.0.1:1', trustDomain: west.example, network: west-net }]
";

pub(super) fn trust() -> Trust {
    let root = Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap();
    let id = SpiffeId::parse("spiffe://east.example/isthmus/east/agent/a").unwrap();
    let mut bundles = TrustBundles::new();
    bundles.add_root(root.trust_domain().clone(), root.certificate()).unwrap();
    Trust::new(root.issue(&id, &[], Duration::from_secs(60)).unwrap(), bundles)
}

pub(super) fn owners(settings: &Arc<Settings>, trust: &Trust) -> Owners {
    let trust_domain = trust.current().identity.id().trust_domain().clone();
    let party = Party { cluster: settings.cluster.clone(), trust_domain };
    let told = (Bundles::new(party, None), LocalBindings::new(&settings.callers, Vec::new()));
    let views = Views::new(settings.cluster.clone(), HashSet::new(), None, told);
    Owners::open(settings, Arc::new(views), None)
}

/// Two hosts, of which one is exported.
pub(super) fn part() -> Part {
    let text = "services:\n\
        - { host: a.own, allow_unauthenticated: true, endpoints: [{ address: '10.0.0.1:443' }] }\n\
        - { host: b.own, endpoints: [{ address: '10.0.0.2:443' }] }\n";
    let services = registry_file(text, Path::new("r.yaml")).unwrap().into_iter();
    let hosts = services.map(|service| (service.host.clone(), vec![Arc::new(service)])).collect();
    Part { hosts, summary: Some(Summary { problems: vec!["odd".to_owned()], is_whole: true }) }
}

/// One slice that is imported, and one whose name was not granted.
pub(super) fn resources() -> [Resource; 2] {
    ["west/a.shop", "west/a.bank"].map(|name| {
        let key: Key = name.parse().unwrap();
        let gateway = Gateway { address: "203.0.113.7:15443".parse().unwrap(), locality: Default::default() };
        let port = Port { exported: true, ..Port::new(443, Tls::Mutual) };
        let offer = Offer { gateways: vec![gateway], ..Offer::new("west-net", vec![port]) };
        let slice = Slice { key, order: Order { incarnation: 1, revision: 1 }, offer: Some(offer) };
        Resource { name: name.to_owned(), version: String::new(), bytes: slice.encode().into() }
    })
}

#[test]
fn pages_are_answered_in_the_middle_of_every_change() {
    let (settings, trust) = (Arc::new(parse(FILE, Path::new("agent.yaml")).unwrap()), trust());
    let owners = owners(&settings, &trust);
    owners.own.apply_part(part(), Instant::now());
    let west = "west".parse().unwrap();
    assert_eq!(owners.peers.apply(&west, &resources(), &[]).len(), 0);
    owners.peers.contact(&west, None);
    let pages = AdminPages {
        budgets: Arc::new(Budgets::default()),
        settings,
        owners: owners.clone(),
        is_ready: Arc::new(AtomicBool::new(true)),
        issuing: None,
        trust,
        dns: None,
    };
    let _changes = (owners.own.hold(), owners.peers.hold());
    assert!(pages.ready());
    let status = pages.status();
    assert_eq!((status.registry.hosts, &*status.registry.problems[0]), (2, "odd"));
    assert_eq!((status.exports.count, &*status.exports.held_back[0].host), (1, "b.own"));
    assert_eq!((status.imports.count, &*status.imports.imported[0].host), (1, "a.shop"));
    assert_eq!(status.imports.held_back[0].host, "a.bank");
    let of_west = &status.peers["west"];
    assert!(of_west.connected);
    assert_eq!(of_west.offers.as_ref().unwrap().slices.used, 1);
    let metrics = pages.metrics();
    for line in [
        "isthmus_agent_hosts 2",
        "isthmus_agent_exported 1",
        "isthmus_agent_exports_held_back 1",
        "isthmus_agent_imported 1",
        "isthmus_agent_imports_held_back 1",
        "isthmus_agent_peer_slices{cluster=\"west\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} in {metrics}");
    }
}

#[test]
fn registration_waits_until_the_registry_is_read() {
    let (settings, trust) = (Arc::new(parse(FILE, Path::new("agent.yaml")).unwrap()), trust());
    let pages = AdminPages {
        budgets: Arc::new(Budgets::default()),
        owners: owners(&settings, &trust),
        settings,
        is_ready: Arc::default(),
        issuing: None,
        trust,
        dns: None,
    };
    let refusal = pages.heartbeat(b"{}").unwrap_err();
    assert_eq!(refusal.status.as_u16(), 503);
    assert!(!pages.ready() && refusal.why.contains("still reading its registry"), "{}", refusal.why);
}
