//! Names keep their addresses and ports, whatever happens to other names, the file and the ranges.

use std::path::Path;

use isthmus_model::allotment::QUARANTINE;
use isthmus_model::host::HostPattern;
use isthmus_model::slice::{Endpoint, Instance, Offer, Order, Port, Ready, Tls};
use isthmus_store::Expect;

use super::*;
use crate::agent::config::parse;

const RANGES: &str =
    "virtual_addresses: { ipv6: 'fd00:1:2:3::/64', ipv4: 240.15.0.0/16 }\noriginate_ports: 20000-29999\n";

fn settings(more: &str) -> Settings {
    let text = "cluster: east\n\
        trust: { certificate: tls.crt, key: tls.key, bundles: bundles }\n\
        registry: { files: ./registry }\n\
        gateways: [{ name: gw-1, address: 10.0.0.1 }]\n";
    parse(&format!("{text}{more}"), Path::new("agent.yaml")).unwrap_or_else(|error| panic!("{error}"))
}

fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

fn host(name: &str) -> HostName {
    HostName::parse(name).unwrap()
}

fn registry(state: &Path, ranges: &str) -> NameRegistry {
    NameRegistry::open(&settings(&format!("state: {}\n{ranges}", state.display())))
}

/// A slice with one exported port.
fn slice(key: &str, change: impl FnOnce(&mut Offer)) -> Slice {
    let mut offer = Offer::new("net", vec![Port { exported: true, ..Port::new(9080, Tls::Mutual) }]);
    change(&mut offer);
    Slice { key: key.parse().unwrap(), order: Order { incarnation: 1, revision: 1 }, offer: Some(offer) }
}

fn own(host: &str) -> Slice {
    slice(&format!("east/{host}"), |_| {})
}

fn gone(host: &str) -> Slice {
    Slice { offer: None, ..own(host) }
}

/// Allots at a time. Returns all names.
fn allotted(registry: &NameRegistry, now: SystemTime) -> Arc<Names> {
    registry.allot(now);
    let names = Arc::clone(&registry.subscribe().borrow());
    let mut seen = BTreeSet::new();
    for (host, name) in &names.names {
        let ports = name.ports.iter().filter_map(|port| port.listener_port).map(|port| port.to_string());
        for place in name.addresses.iter().map(|address| address.to_string()).chain(ports) {
            assert!(seen.insert(place.clone()), "{host} shares {place}");
        }
    }
    names
}

fn restarted(state: &Path) -> NameRegistry {
    let registry = registry(state, RANGES);
    registry.allot(start());
    registry
}

#[test]
fn virtual_addresses_of_a_thousand_services_survive_rename_delete_reorder_reload_and_restart() {
    let state = tempfile::tempdir().unwrap();
    let registry = registry(state.path(), RANGES);
    let mut slices: Vec<_> = (0..1_000).map(|number| own(&format!("s{number}.shop"))).collect();
    registry.set_own(&slices);
    let mut before = allotted(&registry, start()).names.clone();
    assert_eq!(before.len(), 1_000);
    assert!(before.values().all(|name| name.addresses.iter().count() == 2));

    registry.set_own(&[gone("s500.shop"), gone("s7.shop"), own("renamed.shop")]);
    let mut after = allotted(&registry, start()).names.clone();
    let renamed = after.remove(&host("renamed.shop")).unwrap();
    let freed = before.remove(&host("s7.shop")).unwrap();
    assert_ne!(renamed.addresses, freed.addresses);
    before.remove(&host("s500.shop"));
    assert_eq!(before, after);

    slices.retain(|slice| before.keys().any(|host| slice.key.host == HostPattern::Exact(host.clone())));
    slices.reverse();
    let again = restarted(state.path());
    let remembered = Arc::clone(&again.subscribe().borrow());
    assert_eq!(remembered.names.len(), 999, "names are known before any slice is");
    again.set_own(&slices);
    again.forget_before();
    assert_eq!(allotted(&again, start()).names, before);
}

#[test]
fn freed_virtual_address_waits_for_its_own_name_across_restarts() {
    let state = tempfile::tempdir().unwrap();
    let small = "virtual_addresses: { ipv4: 240.15.0.0/29 }\n";
    let registry = registry(state.path(), small);
    registry.set_own(&[own("a.shop"), own("b.shop")]);
    let before = allotted(&registry, start()).names.clone();
    let (a, b) = (before[&host("a.shop")].addresses, before[&host("b.shop")].addresses);
    registry.set_own(&[gone("a.shop"), own("c.shop")]);
    let after = allotted(&registry, start()).names.clone();
    assert_ne!(after[&host("c.shop")].addresses, a);
    assert_eq!(after[&host("b.shop")].addresses, b);
    drop(registry);

    let registry = self::registry(state.path(), small);
    registry.set_own(&[own("b.shop"), own("c.shop"), own("d.shop"), own("e.shop"), own("f.shop")]);
    registry.forget_before();
    let later = start() + QUARANTINE - Duration::from_secs(1);
    assert!(allotted(&registry, later).names.values().all(|name| name.addresses != a));
    registry.set_own(&[own("a.shop")]);
    assert_eq!(allotted(&registry, later).names[&host("a.shop")].addresses, a, "its own name gets it");
    registry.set_own(&[gone("a.shop"), own("g.shop")]);
    allotted(&registry, later);
    assert_eq!(registry.summary().exhausted_count, 1, "six addresses, one of them quarantined");
    let end = later + QUARANTINE;
    assert_eq!(allotted(&registry, end).names[&host("g.shop")].addresses, a);
}

#[test]
fn exhausted_range_costs_only_the_newcomers() {
    let registry = NameRegistry::open(&settings(
        "virtual_addresses: { ipv6: 'fd00::/64', ipv4: 240.15.0.0/30 }\noriginate_ports: 20000-20001\n",
    ));
    registry.set_own(&[own("a.shop"), own("b.shop")]);
    let before = allotted(&registry, start()).names.clone();
    registry.set_own(&[own("0.shop")]);
    let mut after = allotted(&registry, start()).names.clone();
    let newcomer = after.remove(&host("0.shop")).unwrap();
    assert_eq!(after, before);
    assert!(newcomer.addresses.v6.is_some() && newcomer.addresses.v4.is_none());
    assert_eq!(newcomer.ports, [NamePort { port: 9080, listener_port: None }]);
    let summary = registry.summary();
    assert_eq!((summary.names, summary.exhausted_count), (3, 2));
    let lines: Vec<_> = summary.exhausted.values().collect();
    assert!(lines.iter().any(|line| line.starts_with("no place is left for 0.shop:9080 in 20000-20001")));
    assert!(
        lines.iter().any(|line| line.starts_with("no place is left for 0.shop in 240.15.0.1-240.15.0.2"))
    );
}

#[test]
fn stored_address_outside_an_edited_range_is_replaced() {
    let state = tempfile::tempdir().unwrap();
    let registry = restarted(state.path());
    registry.set_own(&[own("a.shop")]);
    let before = Arc::clone(&allotted(&registry, start()).names[&host("a.shop")]);
    let edited = "virtual_addresses: { ipv6: 'fd00:1:2:3::/64', ipv4: 240.16.0.0/16 }\n";
    let registry = self::registry(state.path(), edited);
    registry.set_own(&[own("a.shop")]);
    let after = Arc::clone(&allotted(&registry, start()).names[&host("a.shop")]);
    assert_eq!(after.addresses.v6, before.addresses.v6);
    assert_eq!(after.addresses.v4.unwrap().octets()[1], 16);
    assert_eq!(after.ports, [NamePort { port: 9080, listener_port: None }]);
}

#[test]
fn aliases_and_ports_come_with_hosts_and_exported_instances() {
    let registry = NameRegistry::open(&settings(RANGES));
    let east = slice("east/db.shop.svc.cluster.local", |offer| {
        offer.aliases = ["db", "*.db"].map(|alias| HostPattern::parse(alias).unwrap()).into();
        let mut more = Port::new(3306, Tls::Mutual);
        let instance = |name: &str, exported| Endpoint {
            instance: Some(host(name)),
            instance_exported: exported,
            aliases: vec![host(&format!("{name}.pxc"))],
            ..Endpoint::new("10.0.0.9:3306".parse().unwrap())
        };
        more.endpoints = vec![instance("db-0", true), instance("db-1", false)];
        offer.ports.push(more);
    });
    registry.set_own(&[east, own("*.wild.shop")]);
    let west = slice("west/page.shop", |offer| {
        // A port of another cluster is not exported from here.
        offer.ports[0].exported = false;
        offer.ports[0].ready = vec![Ready {
            locality: Default::default(),
            ready: 1,
            instances: vec![Instance { name: host("p-0"), aliases: vec![host("first.page")] }],
        }];
    });
    registry.set_imports(&[(west.key.clone(), Verdict::Imported(west))]);
    let names = allotted(&registry, start());
    let hosts: Vec<_> = names.names.keys().map(HostName::as_str).collect();
    let instance = "db-0.db.shop.svc.cluster.local";
    assert_eq!(hosts, [instance, "db.shop.svc.cluster.local", "p-0.page.shop", "page.shop"]);
    let shown = |name: &str| {
        let name = &names.names[&host(name)];
        let aliases: Vec<_> = name.aliases.iter().map(ToString::to_string).collect();
        (aliases.join(" "), name.ports.iter().map(|port| port.port).collect::<Vec<_>>(), name.is_own)
    };
    assert_eq!(shown("db.shop.svc.cluster.local"), ("db".to_owned(), vec![3306, 9080], true));
    assert_eq!(shown(instance), ("db-0.pxc".to_owned(), vec![3306], true));
    assert_eq!(shown("page.shop"), (String::new(), vec![9080], false));
    assert_eq!(shown("p-0.page.shop"), ("first.page".to_owned(), vec![9080], false));
}

#[test]
fn names_that_do_not_change_cause_no_work() {
    let registry = NameRegistry::open(&settings(RANGES));
    let is_due = |registry: &NameRegistry| {
        let mut notified = std::pin::pin!(registry.changed.notified());
        notified.as_mut().enable()
    };
    registry.set_own(&[own("a.shop")]);
    assert!(is_due(&registry));
    allotted(&registry, start());
    let mut published = registry.subscribe();
    // Endpoints and revisions are no business of names.
    let other = slice("east/a.shop", |offer| {
        offer.ports[0].endpoints = vec![Endpoint::new("10.0.0.7:1".parse().unwrap())];
    });
    registry.set_own(&[other]);
    assert!(!is_due(&registry));
    registry.allot(start());
    assert!(!published.has_changed().unwrap());
    registry.set_own(&[gone("a.shop")]);
    assert!(is_due(&registry));
    registry.allot(start());
    assert!(published.borrow_and_update().names.is_empty());
}

#[test]
fn slices_that_are_not_used_are_recorded_for_service_names_only() {
    let registry = NameRegistry::open(&settings(RANGES));
    let refuse = |name: &str| (name.parse::<Key>().unwrap(), Verdict::Quarantined("no consent".to_owned()));
    registry.set_imports(&[refuse("west/secret.bank.svc.cluster.local"), refuse("west/www.example.com")]);
    let unused = |registry: &NameRegistry| -> Vec<String> {
        allotted(registry, start()).unused.iter().map(ToString::to_string).collect()
    };
    assert_eq!(unused(&registry), ["secret.bank.svc.cluster.local"]);
    let used = slice("west/secret.bank.svc.cluster.local", |_| {});
    registry.set_imports(&[(used.key.clone(), Verdict::Imported(used.clone()))]);
    assert_eq!(unused(&registry), [""; 0]);
    registry.set_imports(&[refuse("west/secret.bank.svc.cluster.local"), (used.key, Verdict::Withdrawn)]);
    assert_eq!(unused(&registry), [""; 0]);
}

#[test]
fn virtual_range_with_an_address_in_use_is_named() {
    let registry = NameRegistry::open(&settings(
        "virtual_addresses: { ipv4: 10.0.0.0/24 }\n\
         peers: [{ cluster: west, address: '10.0.0.2:15012', trustDomain: west.example }]\n\
         dns: { listen: '10.0.0.3:53', clients: [10.0.0.0/8], upstreams: ['10.0.0.4:53', '10.1.0.4:53'] }\n",
    ));
    registry.set_own(&[slice("east/a.shop", |offer| {
        offer.ports[0].endpoints = vec![Endpoint::new("10.0.0.5:1".parse().unwrap())];
    })]);
    allotted(&registry, start());
    let lines = Vec::from_iter(registry.summary().collisions);
    let expected = [
        "10.0.0.1, the address of gateway gw-1",
        "10.0.0.2, the agent of cluster west",
        "10.0.0.3, a listener of this agent",
        "10.0.0.4, a server of dns.upstreams",
        "10.0.0.5, an endpoint or gateway of a.shop of cluster east",
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(&format!("virtual_addresses contains {expected};")), "{line}");
    }
}

#[test]
fn agents_that_share_a_store_allot_the_same_addresses() {
    let state = tempfile::tempdir().unwrap();
    let (one, other) = (registry(state.path(), RANGES), registry(state.path(), RANGES));
    let all: Vec<_> = (0..200).map(|number| own(&format!("s{number}.shop"))).collect();
    one.set_own(&all[..150]);
    other.set_own(&all);
    let first = allotted(&one, start()).names.clone();
    let second = allotted(&other, start()).names.clone();
    assert!(first.iter().all(|(host, name)| second[host] == *name));
    one.set_own(&all);
    assert_eq!(allotted(&one, start()).names, second);
    assert_eq!((one.summary().unsaved, other.summary().unsaved), (None, None));
}

#[test]
fn names_are_allotted_while_the_disk_refuses_and_persisted_once_it_does_not() {
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().join("state");
    std::fs::write(&folder, "a file in place of the directory").unwrap();
    let registry = registry(&folder, RANGES);
    registry.set_own(&[own("a.shop")]);
    let before = allotted(&registry, start()).names.clone();
    assert!(before[&host("a.shop")].addresses.v4.is_some());
    assert!(registry.summary().unsaved.is_some() && !registry.report().unwrap().usable);
    std::fs::remove_file(&folder).unwrap();
    assert_eq!(allotted(&registry, start()).names, before);
    assert_eq!(registry.summary().unsaved, None);
    assert_eq!(restarted(&folder).subscribe().borrow().names.len(), 1);
}

#[test]
fn invalid_record_of_allotted_addresses_is_ignored_and_written_again() {
    let state = tempfile::tempdir().unwrap();
    let registry = restarted(state.path());
    registry.set_own(&[own("a.shop")]);
    let before = allotted(&registry, start()).names.clone();
    let store = Embedded::new("names", state.path(), "names.db");
    let [record] = &store.list("names/").unwrap().entries[..] else { panic!("one name is in one record") };
    store.put(&record.key, b"[]", Expect::Anything).unwrap();
    let registry = restarted(state.path());
    registry.set_own(&[own("a.shop")]);
    assert_eq!(allotted(&registry, start()).names, before, "addresses follow from names");
    assert_eq!(restarted(state.path()).subscribe().borrow().names.len(), 1);
}

#[test]
fn ten_thousand_names_are_allotted_persisted_and_restored() {
    let state = tempfile::tempdir().unwrap();
    let registry = registry(state.path(), "virtual_addresses: { ipv6: 'fd00::/64', ipv4: 240.15.0.0/16 }\n");
    let slices: Vec<_> =
        (0..10_000).map(|number| own(&format!("s{number}.shop.svc.cluster.local"))).collect();
    registry.set_own(&slices);
    let before = allotted(&registry, start()).names.clone();
    assert_eq!((before.len(), registry.summary()), (10_000, Summary { names: 10_000, ..Summary::default() }));
    drop(registry);
    let again =
        self::registry(state.path(), "virtual_addresses: { ipv6: 'fd00::/64', ipv4: 240.15.0.0/16 }\n");
    again.set_own(&slices);
    assert_eq!(allotted(&again, start()).names, before);
}
