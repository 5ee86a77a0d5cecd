//! Tests the tables: built from a file, built from previous tables, and the cost of a change.

use std::collections::BTreeMap;
use std::path::Path;

use isthmus_model::HostName;
use isthmus_model::address::Ranges;
use proptest::prelude::*;

use super::*;
use crate::config::settings;

fn live(text: &str) -> Live {
    crate::config::parse(text, Path::new("test.yaml")).unwrap().live
}

fn service(tables: &Snapshot, index: usize) -> &Arc<Service> {
    tables.services().nth(index).unwrap()
}

fn compile(settings: &Live, before: Option<&Snapshot>) -> Snapshot {
    Snapshot::compile(settings.clone(), &Resolved::new(), before, &|_| false)
}

const LISTENER: &str = "listeners: [{ address: '127.0.0.1:0' }]\n";
const ONE: &str = "listeners: [{ address: '127.0.0.1:0' }]\nservices:\n\
    - { host: a.example, endpoints: [{ address: '10.0.0.1:80' }, { address: '10.0.0.2:80' }] }\n";

#[test]
fn state_survives_a_swap_by_service_and_address() {
    let before = compile(&live(ONE), None);
    let after = ONE.replace("{ address: '10.0.0.1:80' }, ", "{ address: '10.0.0.3:80' }, ");
    let after = compile(&live(&after), Some(&before));
    let (old, new) = (service(&before, 0), service(&after, 0));
    assert_eq!(after.epoch, before.epoch + 1);
    assert!(Arc::ptr_eq(&old.state, &new.state));
    assert!(Arc::ptr_eq(&old.endpoints[1].state, &new.endpoints[1].state));
    assert!(!Arc::ptr_eq(&old.endpoints[0].state, &new.endpoints[0].state));
}

#[test]
fn unchanged_services_are_shared_between_snapshots() {
    let text = ONE.to_owned() + "- { host: b.example, endpoints: [{ address: '10.0.0.3:80' }] }\n";
    let text = text + "- { host: c.example, endpoints: [{ address: 'd.example:80' }] }\n";
    let settings = live(&text);
    let before = compile(&settings, None);
    let mut edit = live(&text);
    Arc::make_mut(&mut edit.services[1]).endpoints[0].weight = 7;
    let after = compile(&edit, Some(&before));
    let same: Vec<_> = before.services().zip(after.services()).map(|(a, b)| Arc::ptr_eq(a, b)).collect();
    assert_eq!(same, [true, false, true]);
    assert!(Arc::ptr_eq(&service(&before, 1).state, &service(&after, 1).state));
    let mut renamed = edit.clone();
    Arc::make_mut(&mut renamed.services[1]).aliases.push(HostPattern::parse("e.example").unwrap());
    let named = compile(&renamed, Some(&after));
    assert!(after.names.exact("e.example").is_empty());
    assert!(Arc::ptr_eq(&named.names.exact("e.example")[0].service, service(&named, 1)));
    // One service is removed and added again, at either end and in the middle.
    for gone in 0..3 {
        let mut fewer = settings.clone();
        let host = fewer.services.remove(gone).host.to_string();
        let fewer = compile(&fewer, Some(&before));
        assert_eq!((fewer.len(), fewer.names.exact(&host).len()), (2, 0));
        let again = compile(&settings, Some(&fewer));
        let kept = again.services().filter(|one| fewer.services().any(|other| Arc::ptr_eq(one, other)));
        assert_eq!((kept.count(), again.names.exact(&host).len()), (2, 1));
    }
}

#[test]
fn host_name_expands_to_all_addresses_except_own() {
    let text = ONE.replace("'10.0.0.1:80'", "'db.example:3306'");
    let unresolved = compile(&live(&text), None);
    assert_eq!(service(&unresolved, 0).endpoints.len(), 1);
    let name = HostName::parse("db.example").unwrap();
    let ips = ["10.1.0.1", "10.1.0.2", "2001:db8::1"].map(|ip| ip.parse().unwrap());
    let resolved = Resolved::from([(name, ips.to_vec())]);
    let is_own = |address: SocketAddr| address.ip() == ips[1];
    let tables = Snapshot::compile(live(&text), &resolved, None, &is_own);
    let addresses: Vec<_> =
        service(&tables, 0).endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
    assert_eq!(addresses, ["10.1.0.1:3306", "[2001:db8::1]:3306", "10.0.0.2:80"]);
    assert!(service(&tables, 0).leads_back);
}

#[test]
fn huge_weights_are_scaled_to_one_schedule() {
    let text = ONE.replace("'10.0.0.1:80'", "'10.0.0.1:80', weight: 65535");
    let tables = compile(&live(&text), None);
    let schedule = service(&tables, 0).nearest.schedule.as_ref().unwrap();
    assert!(schedule.len() <= 4100, "{}", schedule.len());
    assert_eq!(schedule.iter().filter(|index| **index == 1).count(), 1);
}

#[test]
fn file_service_hides_learned_one_and_restores_it() {
    let (resolved, mut state) = (Resolved::new(), CompilerState::default());
    let own = &|_| false;
    let before = compile(&live(LISTENER), None);
    let mut next = SnapshotBuilder::after(&before, &mut state, (&resolved, own));
    let learned = live(&ONE.replace("10.0.0.1", "10.9.9.9")).services;
    next.learn_all(&learned);
    let before = next.done();
    let first = Arc::clone(service(&before, 0));
    let mut next = SnapshotBuilder::after(&before, &mut state, (&resolved, own));
    next.read(Arc::new(live(ONE)));
    let both = next.done();
    assert_eq!((both.len(), both.names.exact("a.example").len()), (1, 1));
    assert_eq!(service(&both, 0).endpoints[0].address.to_string(), "10.0.0.1:80");
    assert!(Arc::ptr_eq(&first.state, &service(&both, 0).state));
    let mut next = SnapshotBuilder::after(&both, &mut state, (&resolved, own));
    next.learn_all(&learned);
    assert!(!next.is_news());
    next.read(Arc::new(live(LISTENER)));
    assert!(Arc::ptr_eq(service(&next.done(), 0), &first));
}

#[test]
fn resolved_name_rebuilds_only_its_services() {
    let (mut resolved, mut state) = (Resolved::new(), CompilerState::default());
    let before = compile(&live(LISTENER), None);
    let text = ONE.to_owned() + "- { host: c.example, endpoints: [{ address: 'd.example:80' }] }\n";
    let mut next = SnapshotBuilder::after(&before, &mut state, (&resolved, &|_| false));
    next.learn_all(&live(&text).services);
    let before = next.done();
    let name = HostName::parse("d.example").unwrap();
    assert_eq!(state.take_new_targets().unwrap(), std::slice::from_ref(&name));
    resolved.insert(name, vec!["10.0.0.7".parse().unwrap()]);
    let mut next = SnapshotBuilder::after(&before, &mut state, (&resolved, &|_| false));
    next.resolve();
    let after = next.done();
    assert!(Arc::ptr_eq(service(&before, 0), service(&after, 0)));
    assert_eq!(service(&after, 1).endpoints[0].address.to_string(), "10.0.0.7:80");
    assert!(Arc::ptr_eq(&after.names.exact("c.example")[0].service, service(&after, 1)));
    assert_eq!(state.take_new_targets(), None, "the names are the same");
    let mut next = SnapshotBuilder::after(&after, &mut state, (&resolved, &|_| false));
    next.learn(&HostPattern::parse("c.example").unwrap(), Vec::new());
    assert_eq!((next.done().len(), state.take_new_targets()), (1, Some(Vec::new())));
}

/// A service with few possible names, so that many share one.
fn text(host: u8, port: u8, kind: u8) -> String {
    let hosts = ["a.x", "b.x", "'*.x'", "c.a.x", "d.x"];
    let extra = ["", "alpn: [h2], ", "sources: [10.0.0.0/8], ", "aliases: [n.x, '*.x'], ", "sni_port: 9, "];
    let endpoint = match kind % 3 {
        0 => "{ address: '10.0.0.1:80', instance: i, aliases: [w.x] }",
        1 => "{ address: 'd.example:80' }",
        _ => "{ address: '10.0.0.2:80' }",
    };
    let (host, extra) = (hosts[usize::from(host) % 5], extra[usize::from(kind) % 5]);
    format!("- {{ host: {host}, port: {}, {extra}endpoints: [{endpoint}] }}\n", 1 + port % 3)
}

/// Each service is parsed by itself: several sources may have what one file may not.
fn one(host: u8, port: u8, kind: u8) -> Option<settings::Service> {
    let text = format!("{LISTENER}services:\n{}", text(host, port, kind));
    let settings = crate::config::parse(&text, Path::new("test.yaml")).ok()?;
    Some((*settings.live.services[0]).clone())
}

fn content(tables: &Snapshot) -> Vec<(String, Vec<String>)> {
    let claims = |claims: &[Claim]| {
        claims.iter().map(|claim| format!("{:?}", claim.service.name().to_string())).collect()
    };
    let names = ["a.x", "b.x", "x", "c.a.x", "d.x", "n.x", "w.x"];
    let mut all: Vec<(String, Vec<String>)> = names
        .iter()
        .flat_map(|name| {
            let tables = &tables.names;
            [tables.exact(name), tables.suffix(name), tables.instance(name)]
                .map(|found| ((*name).to_owned(), claims(found)))
        })
        .collect();
    let services = tables.services().map(|service| {
        let endpoints = service.endpoints.iter().map(|endpoint| endpoint.address.to_string());
        (service.name().to_string(), endpoints.chain([format!("{:?}", service.rules)]).collect())
    });
    all.extend(services);
    all
}

#[derive(Clone, Debug)]
enum Event {
    Learn(u8, Vec<(u8, u8)>),
    File(Vec<(u8, u8, u8)>),
    Resolve(u8),
}

fn event() -> impl Strategy<Value = Event> {
    let few = proptest::collection::vec((0..3_u8, any::<u8>()), 0..3);
    let file = proptest::collection::vec((0..5_u8, 0..3_u8, any::<u8>()), 0..3);
    prop_oneof![
        6 => (0..5_u8, few).prop_map(|(host, ports)| Event::Learn(host, ports)),
        1 => file.prop_map(Event::File),
        1 => (0..4_u8).prop_map(Event::Resolve),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Tables built step by step equal tables built at once from the final state.
    #[test]
    fn snapshot_depends_on_services_not_on_their_history(events in proptest::collection::vec(event(), 1..30)) {
        let own = &|address: SocketAddr| address.ip().to_string() == "10.0.0.3";
        let mut state = CompilerState::default();
        let mut tables = compile(&live(LISTENER), None);
        let (mut file, mut learned, mut resolved) = (Arc::clone(&tables.live), BTreeMap::new(), Resolved::new());
        for event in events {
            let mut next = SnapshotBuilder::after(&tables, &mut state, (&resolved, own));
            match event {
                Event::Learn(host, ports) => {
                    let ports: BTreeMap<_, _> = ports.into_iter().collect();
                    let services: Vec<_> = ports.iter().filter_map(|(port, kind)| one(host, *port, *kind)).collect();
                    let Some(first) = one(host, 0, 2) else { continue };
                    next.learn(&first.host, services.clone());
                    learned.insert(first.host, services);
                    tables = next.done();
                }
                Event::File(services) => {
                    let services: String = services.iter().map(|(host, port, kind)| text(*host, *port, *kind)).collect();
                    let text = format!("{LISTENER}services:\n{services}");
                    let Ok(settings) = crate::config::parse(&text, Path::new("test.yaml")) else { continue };
                    file = Arc::new(settings.live);
                    next.read(Arc::clone(&file));
                    tables = next.done();
                }
                Event::Resolve(last) => {
                    let name = HostName::parse("d.example").unwrap();
                    let resolved_now = Resolved::from([(name, vec![std::net::Ipv4Addr::new(10, 0, 0, last).into()])]);
                    let mut next = SnapshotBuilder::after(&tables, &mut state, (&resolved_now, own));
                    next.resolve();
                    tables = next.done();
                    resolved = resolved_now;
                }
            }
            let all: Vec<_> = learned.values().flatten().cloned().map(Arc::new).collect();
            let mut fresh = CompilerState::default();
            let nothing = compile(&live(LISTENER), None);
            let mut next = SnapshotBuilder::after(&nothing, &mut fresh, (&resolved, own));
            next.learn_all(&all);
            next.read(Arc::clone(&file));
            let anew = next.done();
            prop_assert_eq!(content(&tables), content(&anew));
            prop_assert_eq!(tables.len(), tables.services().count());
            prop_assert_eq!(tables.endpoints(), tables.services().map(|service| service.endpoints.len()).sum::<usize>());
            prop_assert_eq!(state.targets(), fresh.targets());
        }
    }
}

/// Tables with this many learned services.
fn many(count: usize) -> (Snapshot, CompilerState, settings::Service) {
    let pattern = one(0, 0, 2).unwrap();
    let named = |number: usize| HostPattern::parse(&format!("s{number}.x")).unwrap();
    let settings = |number| Arc::new(settings::Service { host: named(number), ..pattern.clone() });
    let services: Vec<_> = (0..count).map(|number| settings(2 * number)).collect();
    let (resolved, mut state) = (Resolved::new(), CompilerState::default());
    let before = compile(&live(LISTENER), None);
    let mut next = SnapshotBuilder::after(&before, &mut state, (&resolved, &|_| false));
    next.learn_all(&services);
    (next.done(), state, settings::Service { host: named(count | 1), ..pattern })
}

#[test]
fn single_change_copies_bounded_amount_in_large_tables() {
    let touched = |count: usize| {
        let (before, mut state, new) = many(count);
        let resolved = Resolved::new();
        let mut next = SnapshotBuilder::after(&before, &mut state, (&resolved, &|_| false));
        next.learn(&new.host.clone(), vec![new.clone()]);
        assert_eq!(next.rebuilt(), 1);
        let after = next.done();
        assert_eq!(after.len(), count + 1);
        let added = after.names.copied(&before.names) + after.learned.copied(&before.learned);
        let mut next = SnapshotBuilder::after(&after, &mut state, (&resolved, &|_| false));
        next.learn(&new.host, Vec::new());
        assert_eq!(next.rebuilt(), 1);
        let gone = next.done();
        assert_eq!(gone.len(), count);
        (added, gone.names.copied(&after.names) + gone.learned.copied(&after.learned))
    };
    let (few, many) = (touched(1_000), touched(40_000));
    // Two arrays of 64 and a page for the names, some pieces of 64 for the list.
    let most = 64 + 64 + 40 + 4 * 64;
    assert!(few.0 <= most && many.0 <= most && few.1 <= most && many.1 <= most, "{few:?} {many:?}");
    assert!(few.0 > 0 && few.1 > 0, "{few:?}");
}

/// Memory of a typical service in the tables, without the endpoint's state.
#[test]
fn service_size_is_bounded() {
    assert!(size_of::<Service>() <= 104, "{}", size_of::<Service>());
    assert!(size_of::<Endpoint>() <= 56, "{}", size_of::<Endpoint>());
    assert!(size_of::<Claim>() <= 32, "{}", size_of::<Claim>());
    let (tables, ..) = many(100);
    let all: Vec<_> = tables.services().collect();
    assert!(all.iter().all(|service| Arc::ptr_eq(&service.rules, &all[0].rules)), "rules are shared");
    let traits = |service: &Service| Arc::as_ptr(&service.endpoints[0].traits);
    assert!(all.iter().all(|service| traits(service) == traits(all[0])), "properties are shared");
}

/// The name of another cluster's gateway is checked at each resolution; a local service may resolve anywhere.
#[test]
fn peer_gateway_name_outside_its_ranges_is_not_an_endpoint() {
    let text = LISTENER.to_owned()
        + "services:\n- { host: far.test, endpoints: [{ address: 'gw.east.example:15443' }] }\n\
                - { host: near.test, endpoints: [{ address: 'gw.east.example:443' }] }\n";
    let ips = ["127.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "203.0.113.7", "198.51.100.1"];
    let ips = ips.map(|ip| ip.parse().unwrap());
    let resolved = Resolved::from([(HostName::parse("gw.east.example").unwrap(), ips.to_vec())]);
    for (ranges, expected) in [
        (Ranges::default(), vec!["203.0.113.7:15443", "198.51.100.1:15443"]),
        (Ranges(vec!["203.0.113.0/24".parse().unwrap()]), vec!["203.0.113.7:15443"]),
        (Ranges(vec!["127.0.0.0/8".parse().unwrap()]), vec!["127.0.0.1:15443", "[::ffff:127.0.0.1]:15443"]),
    ] {
        let mut settings = live(&text);
        let beyond = settings::RemoteGateway {
            cluster: "east".parse().unwrap(),
            instances: Vec::new(),
            ranges,
            terminates: false,
        };
        let reach = settings::Scope::RemoteGateway(Arc::new(beyond));
        Arc::make_mut(&mut settings.services[0]).endpoints[0].reach = reach;
        let tables = Snapshot::compile(settings, &resolved, None, &|_| false);
        let addresses = |index| -> Vec<String> {
            let endpoints = service(&tables, index).endpoints.iter();
            endpoints.map(|endpoint| endpoint.address.to_string()).collect()
        };
        assert_eq!(addresses(0), expected);
        assert_eq!(addresses(1).len(), ips.len(), "local names may resolve anywhere");
    }
}
