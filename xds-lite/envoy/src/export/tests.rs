//! Tests the export of slices to a stock Envoy, and what is left out.

mod grpc;

use bytes::Bytes;
use prost::Message as _;

use super::*;
use isthmus_model::access::Access;
use isthmus_model::host::HostName;
use isthmus_model::locality::Locality;
use isthmus_model::services::Balance;
use isthmus_model::slice::{Endpoint, Gateway, Health, Key, Offer, Order, Port, Tls};
use isthmus_proto::envoy::config::cluster::v3 as cds;
use isthmus_proto::envoy::config::core::v3::HealthStatus;
use isthmus_proto::envoy::config::endpoint::v3 as eds;
use isthmus_proto::envoy::config::listener::v3 as lds;

fn endpoint(address: &str) -> Endpoint {
    Endpoint::new(address.parse().unwrap())
}

fn port(number: u16, endpoints: Vec<Endpoint>) -> Port {
    Port { balance: Balance::RoundRobin, endpoints, exported: true, ..Port::new(number, Tls::Mutual) }
}

fn offer(ports: Vec<Port>) -> Offer {
    Offer::new("east-net", ports)
}

pub(crate) fn slice(key: &str, offer: Option<Offer>) -> Slice {
    let (cluster, host) = key.split_once('/').unwrap();
    let key = Key { cluster: cluster.parse().unwrap(), host: HostPattern::parse(host).unwrap() };
    Slice { key, order: Order { incarnation: 1, revision: 1 }, offer }
}

pub(crate) fn simple(key: &str, address: &str) -> Slice {
    slice(key, Some(offer(vec![port(443, vec![endpoint(address)])])))
}

fn adapter() -> Adapter {
    adapter_of(MAX_CHAINS)
}

fn adapter_of(most: usize) -> Adapter {
    let at = "0.0.0.0:15443".parse().unwrap();
    Adapter::with_at_most(most, "east".parse().unwrap(), vec!["east-gw".to_owned()], at)
}

fn names(adapter: &Adapter, type_url: &str) -> Vec<String> {
    let shared = adapter.view(type_url).unwrap();
    let mut names: Vec<_> = shared.view().iter().map(|(name, _)| name.to_string()).collect();
    names.sort();
    names
}

fn bytes(adapter: &Adapter, type_url: &str, name: &str) -> Bytes {
    adapter.view(type_url).unwrap().view().get(name).unwrap().bytes.clone()
}

fn east_west_listener(adapter: &Adapter) -> lds::Listener {
    lds::Listener::decode(bytes(adapter, LISTENER, EAST_WEST)).unwrap()
}

/// Clusters and their names.
fn led(adapter: &Adapter) -> Vec<(String, Vec<String>)> {
    let chains = east_west_listener(adapter).filter_chains;
    chains.into_iter().map(|chain| (chain.name, chain.filter_chain_match.unwrap().server_names)).collect()
}

fn is_led(adapter: &Adapter, cluster: &str, names: &[&str]) -> bool {
    led(adapter).iter().any(|(name, matches)| name == cluster && matches == names)
}

/// The chain that a stock Envoy finds for a name: exact, then the longest pattern.
fn found(adapter: &Adapter, name: &str) -> Option<String> {
    let led = led(adapter);
    let suffixes = std::iter::successors(Some(name), |name| name.split_once('.').map(|(_, rest)| rest));
    let patterns = suffixes.skip(1).map(|suffix| format!("*.{suffix}"));
    std::iter::once(name.to_owned())
        .chain(patterns)
        .find_map(|name| led.iter().find(|(_, names)| names.contains(&name)).map(|(chain, _)| chain.clone()))
}

#[test]
fn existing_name_has_its_own_chain_or_the_closing_one() {
    let adapter = adapter();
    let mut ports = [1, 2].map(|number| port(number, vec![endpoint("10.0.0.1:80")]));
    for port in &mut ports {
        port.default_port = false;
        port.endpoints[0].instance = Some(HostName::parse("db-0").unwrap());
    }
    let mut secret = port(443, vec![endpoint("10.0.0.2:80")]);
    secret.exported = false;
    adapter.change(&[
        slice("east/db.example", Some(offer(ports.into()))),
        slice("east/secret.example", Some(offer(vec![secret.clone()]))),
        slice("east/*.inner.example", Some(offer(vec![secret]))),
    ]);
    assert_eq!(found(&adapter, "db.example"), None, "no pattern matches it");
    adapter.change(&[simple("east/*.example", "10.0.0.3:80")]);
    let (wildcard, nowhere) =
        (Some("outbound_.443_._.*.example".to_owned()), Some("isthmus-nowhere".to_owned()));
    for name in ["db.example", "db-0.db.example", "secret.example", "a.inner.example"] {
        assert_eq!(found(&adapter, name), nowhere, "{name}");
    }
    assert_eq!(found(&adapter, "www.example"), wildcard);
    assert_eq!(found(&adapter, "outbound_.2_._.db.example").as_deref(), Some("outbound_.2_._.db.example"));
    let listener = east_west_listener(&adapter);
    let chain = |name: &Option<String>| {
        listener.filter_chains.iter().find(|chain| Some(&chain.name) == name.as_ref()).unwrap()
    };
    assert!(chain(&nowhere).filters.is_empty(), "Envoy closes connections of a chain without filters");
    let filters: Vec<_> = chain(&wildcard).filters.iter().map(|filter| filter.name.as_str()).collect();
    assert_eq!(filters, ["envoy.filters.network.rbac", "envoy.filters.network.tcp_proxy"]);
    // A host added later under the pattern, and removed again.
    let mut late = port(443, vec![]);
    late.exported = false;
    adapter.change(&[slice("east/late.example", Some(offer(vec![late])))]);
    assert_eq!(found(&adapter, "late.example"), nowhere);
    adapter.change(&[slice("east/late.example", None)]);
    assert_eq!(found(&adapter, "late.example"), wildcard);
}

#[test]
fn patterns_are_left_out_with_too_many_unrouted_names_below_them() {
    let adapter = adapter_of(2);
    let mut hidden = port(443, vec![]);
    hidden.exported = false;
    let slices: Vec<_> = (0..3)
        .map(|index| slice(&format!("east/h{index}.example"), Some(offer(vec![hidden.clone()]))))
        .collect();
    adapter.change(&slices);
    adapter.change(&[simple("east/*.example", "10.0.0.3:80"), simple("east/b", "10.0.0.4:80")]);
    assert_eq!(found(&adapter, "h0.example"), None);
    assert_eq!(found(&adapter, "b").as_deref(), Some("outbound_.443_._.b"));
    assert!(adapter.problems().iter().any(|problem| problem.contains("3 names below them have no route")));
}

#[test]
fn service_is_exported_as_chain_cluster_and_endpoints() {
    let adapter = adapter();
    let mut one = port(8080, vec![endpoint("10.0.0.2:80"), endpoint("10.0.0.1:80")]);
    one.endpoints[0].health = Health::Draining;
    one.endpoints[1].weight = 0;
    one.alpn = vec!["h2".to_owned(), "h2".to_owned()];
    one.sources = vec!["10.1.2.3/8".parse().unwrap(), "10.9.9.9/8".parse().unwrap()];
    one.max_connections = Some(7);
    one.balance = Balance::SourceHash;
    let mut two = port(9090, vec![]);
    two.default_port = false;
    let mut both = offer(vec![one, two]);
    both.aliases = vec![HostPattern::parse("*.b").unwrap(), HostPattern::parse("c").unwrap()];
    adapter.change(&[slice("east/a.b", Some(both))]);

    assert_eq!(adapter.problems(), [""; 0]);
    let clusters = ["outbound_.8080_._.a.b", "outbound_.9090_._.a.b"];
    assert_eq!(names(&adapter, CLUSTER), clusters);
    assert_eq!(names(&adapter, ENDPOINTS), clusters);
    assert!(is_led(
        &adapter,
        clusters[0],
        &["*.b", "a.b", "c", "outbound_.8080_._.a.b", "outbound_.8080_._.c"]
    ));
    assert!(is_led(&adapter, clusters[1], &["outbound_.9090_._.a.b", "outbound_.9090_._.c"]));

    let matches = east_west_listener(&adapter).filter_chains.remove(0).filter_chain_match.unwrap();
    assert_eq!(
        (matches.application_protocols, matches.transport_protocol.as_str()),
        (vec!["h2".to_owned()], "tls")
    );
    let [range] = &matches.source_prefix_ranges[..] else { panic!("one range") };
    assert_eq!((range.address_prefix.as_str(), range.prefix_len), ("10.0.0.0", Some(8)));

    let cluster = cds::Cluster::decode(bytes(&adapter, CLUSTER, clusters[0])).unwrap();
    assert_eq!(cluster.lb_policy(), cds::cluster::LbPolicy::Maglev);
    assert_eq!(cluster.circuit_breakers.unwrap().thresholds[0].max_connections, Some(7));
    assert_eq!(cluster.common_lb_config.unwrap().healthy_panic_threshold.unwrap().value, 0.0);

    let assignment = eds::ClusterLoadAssignment::decode(bytes(&adapter, ENDPOINTS, clusters[0])).unwrap();
    let [place] = &assignment.endpoints[..] else { panic!("one place") };
    let health: Vec<_> = place.lb_endpoints.iter().map(eds::LbEndpoint::health_status).collect();
    assert_eq!(health, [HealthStatus::Draining; 2], "a weight of zero drains");
    assert!(place.lb_endpoints.iter().all(|endpoint| endpoint.load_balancing_weight == Some(1)));
    let none = eds::ClusterLoadAssignment::decode(bytes(&adapter, ENDPOINTS, clusters[1])).unwrap();
    assert!(none.endpoints.is_empty() && none.cluster_name == clusters[1]);
}

#[test]
fn unexported_and_unexposed_services_are_left_out() {
    let adapter = adapter();
    let mut hidden = simple("east/hidden.b", "10.0.0.1:443");
    hidden.offer.as_mut().unwrap().ports[0].exported = false;
    let mut elsewhere = simple("east/elsewhere.b", "10.0.0.1:443");
    elsewhere.offer.as_mut().unwrap().exposed_on = vec!["another-gw".to_owned()];
    let mut here = simple("east/here.b", "10.0.0.1:443");
    here.offer.as_mut().unwrap().exposed_on = vec!["another-gw".to_owned(), "east-gw".to_owned()];
    let mut unproven = simple("east/unproven.b", "10.0.0.1:443");
    unproven.offer.as_mut().unwrap().ports[0].endpoints[0].exposed = false;
    adapter.change(&[hidden, elsewhere, here, unproven, simple("west/foreign.b", "10.0.0.1:443")]);
    assert_eq!(names(&adapter, CLUSTER), ["outbound_.443_._.here.b", "outbound_.443_._.unproven.b"]);
    let none = bytes(&adapter, ENDPOINTS, "outbound_.443_._.unproven.b");
    assert!(eds::ClusterLoadAssignment::decode(none).unwrap().endpoints.is_empty());
    assert_eq!(adapter.problems(), [""; 0], "none of it is a problem");
}

#[test]
fn exported_instance_is_a_cluster_of_one_endpoint() {
    let adapter = adapter();
    let label = |name: &str| Some(HostName::parse(name).unwrap());
    let mut endpoints = vec![endpoint("10.0.0.1:3306"), endpoint("10.0.0.2:3306"), endpoint("10.0.0.3:3306")];
    for (place, one) in endpoints.iter_mut().enumerate() {
        one.instance = label(&format!("db-{place}"));
        one.instance_exported = place > 0;
        one.exposed = place < 2;
    }
    endpoints[1].aliases = vec![HostName::parse("src-db").unwrap()];
    adapter.change(&[slice("east/db.pxc", Some(offer(vec![port(3306, endpoints)])))]);
    let one = "outbound_.3306_._.db-1.db.pxc";
    assert_eq!(names(&adapter, CLUSTER), [one, "outbound_.3306_._.db.pxc"]);
    assert!(is_led(&adapter, one, &["db-1.db.pxc", one, "outbound_.3306_._.src-db", "src-db"]));
    let only = eds::ClusterLoadAssignment::decode(bytes(&adapter, ENDPOINTS, one)).unwrap();
    assert_eq!(only.endpoints[0].lb_endpoints.len(), 1);
}

#[test]
fn name_conflict_is_won_by_the_first_and_reported() {
    let adapter = adapter();
    let mut thief = simple("east/a.b", "10.0.0.1:443");
    thief.offer.as_mut().unwrap().aliases =
        vec![HostPattern::parse("z.b").unwrap(), HostPattern::parse("db").unwrap()];
    let mut other = simple("east/m.b", "10.0.0.2:443");
    other.offer.as_mut().unwrap().aliases = vec![HostPattern::parse("db").unwrap()];
    adapter.change(&[other.clone(), simple("east/z.b", "10.0.0.3:443"), thief]);
    assert!(is_led(&adapter, "outbound_.443_._.z.b", &["outbound_.443_._.z.b", "z.b"]), "its own name");
    assert!(is_led(
        &adapter,
        "outbound_.443_._.a.b",
        &["a.b", "db", "outbound_.443_._.a.b", "outbound_.443_._.db"]
    ));
    assert!(is_led(&adapter, "outbound_.443_._.m.b", &["m.b", "outbound_.443_._.m.b"]));
    let problems = adapter.problems();
    assert_eq!(problems.len(), 4, "{problems:#?}");
    assert!(
        problems.iter().any(|problem| problem.starts_with("the name db of outbound_.443_._.m.b is left out"))
    );

    // Different conditions avoid the conflict, unless they overlap.
    let with = |alpn: &[&str]| {
        let mut slice = other.clone();
        slice.offer.as_mut().unwrap().ports[0].alpn = alpn.iter().map(|&it| it.to_owned()).collect();
        slice
    };
    adapter.change(&[with(&["mysql"])]);
    assert_eq!(adapter.problems().len(), 2);
    adapter.change(&[slice("east/a.b", None)]);
    assert_eq!(adapter.problems(), [""; 0]);
}

#[test]
fn source_range_of_all_addresses_conflicts_with_no_range() {
    let adapter = adapter();
    let mut one = simple("east/a.b", "10.0.0.1:443");
    one.offer.as_mut().unwrap().aliases = vec![HostPattern::parse("db").unwrap()];
    let mut other = simple("east/c.d", "10.0.0.1:443");
    other.offer.as_mut().unwrap().aliases = vec![HostPattern::parse("db").unwrap()];
    other.offer.as_mut().unwrap().ports[0].sources = vec!["0.0.0.0/0".parse().unwrap()];
    adapter.change(&[one, other]);
    assert_eq!(adapter.problems().len(), 2, "db, and its outbound name");
}

#[test]
fn unsupported_ports_and_endpoints_are_left_out_and_reported() {
    let adapter = adapter();
    let mut plain = simple("east/plain.b", "10.0.0.1:443");
    plain.offer.as_mut().unwrap().ports[0].tls = Tls::Terminated;
    let mut guarded = simple("east/guarded.b", "10.0.0.1:443");
    guarded.offer.as_mut().unwrap().ports[0].access = Access::closed();
    let mut mixed = simple("east/mixed.b", "10.0.0.1:443");
    let endpoints = &mut mixed.offer.as_mut().unwrap().ports[0].endpoints;
    endpoints.extend([endpoint("vm.example:443"), endpoint("10.0.0.2:443")]);
    endpoints[2].tls = Some(Tls::Terminated);
    let own = Gateway { address: "10.0.0.99:15443".parse().unwrap(), locality: Locality::default() };
    endpoints.push(endpoint("10.0.0.99:15443"));
    mixed.offer.as_mut().unwrap().gateways = vec![own];
    let mut suffix = simple("east/*.apps", "10.0.0.1:443");
    let mut second = port(444, vec![]);
    second.default_port = false;
    suffix.offer.as_mut().unwrap().ports.push(second);
    adapter.change(&[plain, guarded, mixed, suffix]);
    assert_eq!(names(&adapter, CLUSTER), ["outbound_.443_._.*.apps", "outbound_.443_._.mixed.b"]);
    assert!(is_led(&adapter, "outbound_.443_._.*.apps", &["*.apps"]));
    let left =
        eds::ClusterLoadAssignment::decode(bytes(&adapter, ENDPOINTS, "outbound_.443_._.mixed.b")).unwrap();
    assert_eq!(left.endpoints[0].lb_endpoints.len(), 1);
    let problems = adapter.problems().join("\n");
    for said in [
        "plain.b port 443 is left out",
        "guarded.b port 443 is left out of Envoy's tables: it has rules for callers",
        "endpoint vm.example:443 is left out",
        "endpoint 10.0.0.99:15443 is left out",
        "*.apps port 444 is left out",
    ] {
        assert!(problems.contains(said), "{problems}");
    }
}

#[test]
fn tables_are_deterministic_and_endpoint_change_touches_one_resource() {
    let slices: Vec<_> = (0..20).map(|it| simple(&format!("east/s{it}.b"), "10.0.0.1:443")).collect();
    let (one, other) = (adapter(), adapter());
    one.change(&slices);
    for slice in slices.iter().rev() {
        other.change(std::slice::from_ref(slice));
    }
    for type_url in [LISTENER, CLUSTER, ENDPOINTS] {
        assert_eq!(names(&one, type_url), names(&other, type_url));
        for name in names(&one, type_url) {
            assert_eq!(bytes(&one, type_url, &name), bytes(&other, type_url, &name));
        }
    }
    let last = |type_url: &str| one.view(type_url).unwrap().view().last();
    let before = [LISTENER, CLUSTER, ENDPOINTS].map(last);
    one.change(&[simple("east/s7.b", "10.0.0.9:443")]);
    assert_eq!([LISTENER, CLUSTER, ENDPOINTS].map(last), [before[0], before[1], before[2] + 1]);
}

#[test]
fn withdrawn_service_is_removed_and_the_listener_with_the_last() {
    let adapter = adapter();
    adapter.change(&[simple("east/a.b", "10.0.0.1:443"), simple("east/c.d", "10.0.0.1:443")]);
    adapter.change(&[slice("east/a.b", None)]);
    assert_eq!(names(&adapter, CLUSTER), ["outbound_.443_._.c.d"]);
    assert_eq!(led(&adapter).len(), 1);
    adapter.change(&[slice("east/c.d", None)]);
    for type_url in [LISTENER, CLUSTER, ENDPOINTS] {
        assert_eq!(names(&adapter, type_url), [""; 0]);
    }
    assert!(adapter.view("type.googleapis.com/other").is_none());
}

#[test]
fn chain_limit_keeps_live_services_and_adds_none() {
    let adapter = adapter_of(2);
    adapter.change(&[simple("east/m.b", "10.0.0.1:443"), simple("east/n.b", "10.0.0.1:443")]);
    adapter.change(&[simple("east/a.b", "10.0.0.1:443")]);
    assert_eq!(names(&adapter, CLUSTER), ["outbound_.443_._.m.b", "outbound_.443_._.n.b"]);
    assert!(adapter.problems()[0].starts_with("1 services and instances are left out"));
    adapter.change(&[simple("east/n.b", "10.0.0.2:443")]);
    let moved =
        eds::ClusterLoadAssignment::decode(bytes(&adapter, ENDPOINTS, "outbound_.443_._.n.b")).unwrap();
    assert_eq!(moved.endpoints[0].lb_endpoints[0], expected("10.0.0.2"), "they still change");
    adapter.change(&[slice("east/m.b", None)]);
    assert_eq!(names(&adapter, CLUSTER), ["outbound_.443_._.a.b", "outbound_.443_._.n.b"]);
    assert_eq!(adapter.problems(), [""; 0]);
}

fn expected(ip: &str) -> eds::LbEndpoint {
    use isthmus_proto::envoy::config::core::v3::{Address, SocketAddress, address, socket_address};
    let address = SocketAddress {
        address: ip.to_owned(),
        port_specifier: Some(socket_address::PortSpecifier::PortValue(443)),
        ..SocketAddress::default()
    };
    eds::LbEndpoint {
        host_identifier: Some(eds::lb_endpoint::HostIdentifier::Endpoint(eds::Endpoint {
            address: Some(Address { address: Some(address::Address::SocketAddress(address)) }),
            ..eds::Endpoint::default()
        })),
        health_status: HealthStatus::Healthy.into(),
        load_balancing_weight: Some(1),
        ..eds::LbEndpoint::default()
    }
}
