//! Tests import with resources as istiod sends them. A field has Envoy's meaning, or what it restricts has no route.

use std::collections::BTreeSet;

use proptest::prelude::*;
use prost::Message;
use prost_types::Any;

use super::rbac::tests::from;
use super::*;
use isthmus_ads::client::{Refused, Resource, Update};
use isthmus_model::services::{Balance, Service};
use isthmus_proto::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use isthmus_proto::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbPolicy,
    common_lb_config::{LocalityConfigSpecifier, LocalityWeightedLbConfig},
};
use isthmus_proto::envoy::config::cluster::v3::{CircuitBreakers, Cluster};
use isthmus_proto::envoy::config::core::v3::socket_address::PortSpecifier;
use isthmus_proto::envoy::config::core::v3::{Address, CidrRange, SocketAddress, TransportSocket, address};
use isthmus_proto::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use isthmus_proto::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
};
use isthmus_proto::envoy::config::listener::v3::filter::ConfigType;
use isthmus_proto::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, listener_filter,
};
use isthmus_proto::envoy::extensions::filters::network::rbac::v3::Rbac;
use isthmus_proto::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use isthmus_proto::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::weighted_cluster::ClusterWeight;
use isthmus_proto::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, WeightedCluster,
};
use isthmus_proto::type_url::{CLUSTER, ENDPOINTS, LISTENER};

const WEB: &str = "outbound_.8080_._.web.shop.svc.cluster.local";
const ISTIO: [&str; 5] = ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];

fn typed(name: &str, bytes: Vec<u8>) -> Option<Any> {
    Some(Any { type_url: format!("type.googleapis.com/{name}"), value: bytes })
}

fn filter(kind: &str, bytes: Vec<u8>) -> Filter {
    let config = typed(kind, bytes).map(ConfigType::TypedConfig);
    Filter { name: format!("any name for {kind}"), config_type: config }
}

fn stats() -> Filter {
    filter("stats.PluginConfig", b"\x0a\x00".to_vec())
}

fn proxy(proxy: &TcpProxy) -> Filter {
    filter("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", proxy.encode_to_vec())
}

fn to(cluster: &str) -> TcpProxy {
    let cluster_specifier = Some(ClusterSpecifier::Cluster(cluster.to_owned()));
    TcpProxy { stat_prefix: cluster.to_owned(), cluster_specifier, ..TcpProxy::default() }
}

/// One chain of an east-west gateway, as istiod makes it.
fn chain(name: &str) -> FilterChain {
    FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            server_names: vec![name.to_owned()],
            application_protocols: ISTIO.map(str::to_owned).to_vec(),
            ..FilterChainMatch::default()
        }),
        filters: vec![stats(), proxy(&to(name))],
        name: name.to_owned(),
        ..FilterChain::default()
    }
}

fn socket(ip: &str, port: u32) -> Option<Address> {
    let socket = SocketAddress {
        address: ip.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(port)),
        ..SocketAddress::default()
    };
    Some(Address { address: Some(address::Address::SocketAddress(socket)) })
}

fn listener(chains: Vec<FilterChain>) -> Listener {
    let inspector = typed("envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector", Vec::new());
    Listener {
        name: "0.0.0.0_15443".to_owned(),
        address: socket("0.0.0.0", 15443),
        filter_chains: chains,
        listener_filters: vec![ListenerFilter {
            name: "envoy.filters.listener.tls_inspector".to_owned(),
            config_type: inspector.map(listener_filter::ConfigType::TypedConfig),
            ..ListenerFilter::default()
        }],
        traffic_direction: 2,
        continue_on_listener_filters_timeout: true,
        ..Listener::default()
    }
}

fn cluster(name: &str) -> Cluster {
    let unlimited = Thresholds { max_connections: Some(u32::MAX), ..Thresholds::default() };
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig { service_name: name.to_owned(), ..Default::default() }),
        connect_timeout: Some(prost_types::Duration { seconds: 10, nanos: 0 }),
        circuit_breakers: Some(CircuitBreakers { thresholds: vec![unlimited], ..Default::default() }),
        lb_policy: LbPolicy::LeastRequest.into(),
        ..Cluster::default()
    }
}

fn endpoint(ip: &str, weight: u32, health: i32) -> LbEndpoint {
    let endpoint = Endpoint { address: socket(ip, 80), ..Endpoint::default() };
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
        health_status: health,
        load_balancing_weight: Some(weight),
        ..LbEndpoint::default()
    }
}

fn assignment(name: &str, endpoints: Vec<LbEndpoint>) -> ClusterLoadAssignment {
    let group = LocalityLbEndpoints { lb_endpoints: endpoints, ..LocalityLbEndpoints::default() };
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![group],
        ..ClusterLoadAssignment::default()
    }
}

/// Appends a message as a field.
fn append(number: u8, message: &[u8], to: &mut Vec<u8>) {
    to.push(number << 3 | 2);
    prost::encode_length_delimiter(message.len(), to).unwrap();
    to.extend(message);
}

/// The state of an import, and requests to it.
struct World {
    state: State,
}

impl World {
    fn new() -> World {
        World { state: State::new(15443) }
    }

    /// A world in which `WEB` has one endpoint.
    fn with_web() -> World {
        let mut world = World::new();
        world.good(CLUSTER, WEB, &cluster(WEB));
        world.good(ENDPOINTS, WEB, &assignment(WEB, vec![endpoint("10.0.0.1", 1, 0)]));
        world
    }

    fn send(&mut self, kind: &str, sent: &[(&str, Vec<u8>)], removed: &[&str]) -> Vec<String> {
        let resources = sent.iter().map(|(name, bytes)| Resource {
            name: (*name).to_owned(),
            version: "1".to_owned(),
            bytes: bytes.clone().into(),
        });
        let removed = removed.iter().map(|name| (*name).to_owned()).collect();
        let refused = self.state.apply(&Update::new(kind, resources.collect(), removed));
        refused.into_iter().map(|Refused { name, why }| format!("{name}: {why}")).collect()
    }

    #[track_caller]
    fn good(&mut self, kind: &str, name: &str, message: &impl Message) {
        assert_eq!(self.send(kind, &[(name, message.encode_to_vec())], &[]), [""; 0]);
    }

    /// The refusal of a message.
    #[track_caller]
    fn bad(&mut self, kind: &str, name: &str, message: &impl Message) -> String {
        let refused = self.send(kind, &[(name, message.encode_to_vec())], &[]);
        let [why] = refused.as_slice() else { panic!("{refused:?}") };
        why.clone()
    }

    fn listen(&mut self, chains: Vec<FilterChain>) -> Vec<String> {
        self.send(LISTENER, &[("0.0.0.0_15443", listener(chains).encode_to_vec())], &[])
    }

    /// The service whose host and port these are.
    fn find(&mut self, host: &str, port: u16) -> Option<Service> {
        let services = self.state.services();
        services
            .iter()
            .find(|one| one.host.to_string() == host && one.port == port)
            .map(|one| (**one).clone())
    }

    /// The endpoints of `WEB` with their weights.
    #[track_caller]
    fn web(&mut self) -> Vec<(String, u32)> {
        let web = self.find("web.shop.svc.cluster.local", 8080).expect("the name is there");
        web.endpoints.iter().map(|one| (one.address.to_string(), one.weight)).collect()
    }

    /// Whether any name has an endpoint for new connections.
    fn is_reachable(&mut self) -> bool {
        self.state.services().iter().any(|one| one.endpoints.iter().any(|endpoint| endpoint.weight > 0))
    }
}

fn one(address: &str) -> Vec<(String, u32)> {
    vec![(address.to_owned(), 1)]
}

#[test]
fn istiod_chain_becomes_a_service() {
    let mut world = World::new();
    assert!(!world.state.is_whole());
    assert_eq!(world.listen(vec![chain(WEB)]), [""; 0]);
    assert!(!world.state.is_whole(), "no cluster received yet");
    world.good(CLUSTER, WEB, &cluster(WEB));
    assert_eq!(world.state.names(ENDPOINTS), Some(&BTreeSet::from([WEB.to_owned()])));
    assert_eq!(world.state.names(CLUSTER), None);
    assert!(!world.state.is_whole(), "its endpoints are missing");
    world.good(
        ENDPOINTS,
        WEB,
        &assignment(WEB, vec![endpoint("10.0.0.1", 3, 0), endpoint("10.0.0.2", 1, 2)]),
    );
    assert!(world.state.is_whole());
    let service = world.find("web.shop.svc.cluster.local", 8080).unwrap();
    assert!(!service.default_port && service.aliases.is_empty() && service.sources.is_empty());
    assert_eq!(service.alpn, ISTIO);
    assert_eq!((service.balance, service.max_connections), (Balance::LeastConnections, None));
    assert_eq!(service.timeouts.connect.as_secs(), 10);
    assert_eq!(world.web(), [("10.0.0.1:80".to_owned(), 3), ("10.0.0.2:80".to_owned(), 0)]);
}

#[test]
fn server_names_other_than_istios_are_hosts_without_port() {
    let mut world = World::with_web();
    let subset = "outbound_.8080_.v1_.web.shop.svc.cluster.local";
    let mut all = chain("*.Apps.example");
    all.filters = vec![proxy(&to(WEB))];
    all.filter_chain_match
        .as_mut()
        .unwrap()
        .server_names
        .extend(["plain.example".to_owned(), subset.to_owned()]);
    all.filter_chain_match.as_mut().unwrap().transport_protocol = "tls".to_owned();
    assert_eq!(world.listen(vec![all]), [""; 0]);
    for name in ["*.apps.example", "plain.example", subset] {
        let service = world.find(name, 0).unwrap_or_else(|| panic!("{name}"));
        assert!(service.default_port && service.endpoints.len() == 1, "{name}");
    }
    for name in ["*", "a*.example", "*.*.example", "a b", ""] {
        let why = world.listen(vec![chain(name)]).concat();
        assert!(why.contains(&format!("server_names has {name:?}")), "{why}");
        assert!(!world.is_reachable());
    }
}

#[test]
fn removed_assignment_keeps_endpoints_and_empty_one_drops_them() {
    let mut world = World::with_web();
    world.listen(vec![chain(WEB)]);
    assert_eq!(world.web(), one("10.0.0.1:80"));
    world.send(ENDPOINTS, &[], &[WEB]);
    assert_eq!(world.web(), one("10.0.0.1:80"), "a removed assignment leaves the endpoints, as in Envoy");
    world.good(ENDPOINTS, WEB, &ClusterLoadAssignment { cluster_name: WEB.to_owned(), ..Default::default() });
    assert_eq!(world.web(), []);
    world.good(ENDPOINTS, WEB, &assignment(WEB, vec![endpoint("10.0.0.2", 1, 0)]));
    world.send(CLUSTER, &[], &[WEB]);
    assert_eq!(world.web(), [], "the name stays, without a cluster");
    assert_eq!(world.state.names(ENDPOINTS), Some(&BTreeSet::new()));
    world.good(CLUSTER, WEB, &cluster(WEB));
    assert_eq!(world.web(), [], "the earlier endpoints are forgotten");
    world.send(LISTENER, &[], &["0.0.0.0_15443"]);
    assert_eq!(world.find("web.shop.svc.cluster.local", 8080), None);
}

#[test]
fn unchanged_service_keeps_its_arc() {
    let mut world = World::with_web();
    world.listen(vec![chain(WEB), chain("other.example")]);
    let before = world.state.services();
    world.good(ENDPOINTS, WEB, &assignment(WEB, vec![endpoint("10.0.0.9", 1, 0)]));
    let after = world.state.services();
    let same: Vec<_> = before.iter().zip(&after).map(|(a, b)| std::sync::Arc::ptr_eq(a, b)).collect();
    assert_eq!(same, [true, false], "in the order of names");
}

#[test]
fn listener_with_overlapping_chains_is_refused_and_the_last_one_stays() {
    let mut world = World::with_web();
    world.listen(vec![chain(WEB)]);
    let mut shared = chain("other.example");
    let rules = shared.filter_chain_match.as_mut().unwrap();
    rules.server_names.push(WEB.to_ascii_uppercase());
    rules.application_protocols = vec!["h2".to_owned(), "istio".to_owned()];
    let why = world.listen(vec![chain(WEB), shared]).concat();
    assert!(why.contains("chain \"other.example\" match the same connections"), "{why}");
    assert_eq!(world.web(), one("10.0.0.1:80"));
    assert_eq!(world.find("other.example", 0), None);
}

#[test]
fn chains_that_differ_only_in_protocol_are_refused_without_a_route() {
    let mut world = World::with_web();
    let mut other = chain(WEB);
    other.filter_chain_match.as_mut().unwrap().application_protocols = vec!["h2".to_owned()];
    let why = world.listen(vec![chain(WEB), other]).concat();
    assert_eq!(why.matches("another chain has the name web.shop.svc.cluster.local too").count(), 2, "{why}");
    assert_eq!(world.web(), []);
    let mut plain = chain(WEB);
    plain.filter_chain_match.as_mut().unwrap().transport_protocol = "raw_buffer".to_owned();
    let why = world.listen(vec![chain(WEB), plain]).concat();
    assert!(why.contains("transport_protocol is \"raw_buffer\""), "{why}");
    assert_eq!(world.web(), one("10.0.0.1:80"), "the other chain never gets a TLS connection");
}

#[test]
fn refused_chain_does_not_fall_back_to_a_wider_one() {
    let mut world = World::with_web();
    let mut wide = chain("*.shop.example");
    wide.filters = vec![proxy(&to(WEB))];
    let mut narrow = chain("a.shop.example");
    narrow.transport_socket =
        Some(TransportSocket { name: "envoy.transport_sockets.tls".to_owned(), ..Default::default() });
    let why = world.listen(vec![wide, narrow]).concat();
    assert!(
        why.contains("chain \"a.shop.example\": transport_socket \"envoy.transport_sockets.tls\""),
        "{why}"
    );
    assert_eq!(world.find("*.shop.example", 0).unwrap().endpoints.len(), 1);
    assert_eq!(world.find("a.shop.example", 0).unwrap().endpoints, []);
}

/// As in Envoy, which checks the destination before the name and does not backtrack.
#[test]
fn chain_that_matches_the_destination_takes_all_connections() {
    let others = |set: fn(&mut FilterChainMatch)| {
        let mut world = World::with_web();
        let mut odd = chain("odd.example");
        set(odd.filter_chain_match.as_mut().unwrap());
        let why = world.listen(vec![chain(WEB), odd]).concat();
        assert!(why.contains("chain \"odd.example\": filter_chain_match."), "{why}");
        (!world.web().is_empty(), why)
    };
    for set in [(|rules| rules.destination_port = Some(15443)) as fn(&mut FilterChainMatch), |rules| {
        rules.prefix_ranges = vec![CidrRange { address_prefix: "0.0.0.0".to_owned(), prefix_len: None }]
    }] {
        let (reachable, why) = others(set);
        assert!(!reachable && why.contains("matches by destination, before names"), "{why}");
    }
    assert!(others(|rules| rules.destination_port = Some(443)).0, "the gateway does not listen on that port");
}

/// Each of these restricts or changes routing; none may be overlooked.
#[test]
fn unsupported_chain_field_is_named_and_leaves_no_route() {
    type Set = fn(&mut FilterChain);
    fn rules(chain: &mut FilterChain) -> &mut FilterChainMatch {
        chain.filter_chain_match.get_or_insert_default()
    }
    let cases: &[(&str, Set)] = &[
        ("destination_port", |chain| rules(chain).destination_port = Some(15443)),
        ("prefix_ranges", |chain| rules(chain).prefix_ranges = vec![CidrRange::default()]),
        ("address_suffix", |chain| rules(chain).address_suffix = "1".to_owned()),
        ("suffix_len", |chain| rules(chain).suffix_len = Some(8)),
        ("direct_source_prefix_ranges", |chain| {
            rules(chain).direct_source_prefix_ranges = vec![CidrRange::default()];
        }),
        ("source_type", |chain| rules(chain).source_type = 1),
        ("source_ports", |chain| rules(chain).source_ports = vec![1]),
        ("server_names is empty", |chain| rules(chain).server_names.clear()),
        ("server_names is empty", |chain| chain.filter_chain_match = None),
        ("is not an address range", |chain| rules(chain).source_prefix_ranges = vec![CidrRange::default()]),
        ("not a protocol name", |chain| rules(chain).application_protocols = vec![String::new()]),
        ("use_proxy_proto", |chain| chain.use_proxy_proto = Some(true)),
        ("no filters", |chain| chain.filters.clear()),
        ("only TcpProxy", |chain| chain.filters.truncate(1)),
        ("\"envoy.echo\"", |chain| chain.filters.insert(0, filter("envoy.echo", Vec::new()))),
        ("no typed_config", |chain| chain.filters[0].config_type = None),
        ("\"envoy.echo\"", |chain| {
            // A filter's name is arbitrary; Envoy goes by the type of the settings.
            chain.filters[0] = Filter { name: "istio.stats".to_owned(), ..filter("envoy.echo", Vec::new()) };
        }),
        ("names no cluster", |chain| chain.filters[1] = proxy(&TcpProxy::default())),
        ("tunneling_config", |chain| {
            chain.filters[1] = proxy(&TcpProxy { tunneling_config: Some(Default::default()), ..to(WEB) });
        }),
        ("metadata_match", |chain| {
            chain.filters[1] = proxy(&TcpProxy { metadata_match: Some(Default::default()), ..to(WEB) });
        }),
        ("field 99 of TcpProxy", |chain| {
            let mut bytes = to(WEB).encode_to_vec();
            bytes.extend([0x98, 0x06, 1]);
            chain.filters[1] = filter("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", bytes);
        }),
    ];
    for (word, set) in cases {
        let mut world = World::with_web();
        let mut chain = chain(WEB);
        set(&mut chain);
        let why = world.listen(vec![chain]).concat();
        // An unsupported field is named, or given by its number.
        let number = ["tunneling_config", "metadata_match"].contains(word);
        assert!(why.contains(word) || (number && why.contains("of TcpProxy")), "{word}: {why}");
        assert!(!world.is_reachable(), "{word}");
    }
}

#[test]
fn unknown_chain_field_refuses_its_chain() {
    let mut world = World::with_web();
    let good = chain("good.example");
    let mut bytes = listener(vec![good]).encode_to_vec();
    let mut odd = chain(WEB);
    // A match with an unknown field beside the name.
    let mut rules = odd.filter_chain_match.take().unwrap().encode_to_vec();
    rules.extend([0xf8, 0x01, 1]);
    let mut chain = odd.encode_to_vec();
    append(1, &rules, &mut chain);
    append(3, &chain, &mut bytes);
    let why = world.send(LISTENER, &[("0.0.0.0_15443", bytes)], &[]).concat();
    assert!(why.contains(&format!("chain {WEB:?}: field 31 of FilterChainMatch is not supported")), "{why}");
    assert!(world.find("good.example", 0).is_some());
    assert_eq!(world.web(), []);
}

#[test]
fn default_filter_chain_is_refused_alone() {
    let mut world = World::with_web();
    let mut whole = listener(vec![chain(WEB)]);
    whole.default_filter_chain = Some(chain("x"));
    let why = world.bad(LISTENER, "0.0.0.0_15443", &whole);
    assert!(why.contains("default_filter_chain: is not supported"), "{why}");
    assert_eq!(world.web(), one("10.0.0.1:80"));
}

#[test]
fn refused_listener_changes_nothing() {
    let mut world = World::with_web();
    world.listen(vec![chain(WEB)]);
    let good = listener(vec![chain(WEB)]);
    let proxied =
        ListenerFilter { name: "envoy.filters.listener.proxy_protocol".to_owned(), ..Default::default() };
    let cases = [
        (
            "\"envoy.filters.listener.proxy_protocol\"",
            Listener { listener_filters: vec![proxied], ..good.clone() },
        ),
        ("filter_chain_matcher", Listener { filter_chain_matcher: Some(Default::default()), ..good.clone() }),
        ("use_original_dst", Listener { use_original_dst: Some(true), ..good.clone() }),
        ("has the name \"x\"", Listener { name: "x".to_owned(), ..good.clone() }),
    ];
    for (word, wrong) in cases {
        let why = world.bad(LISTENER, "0.0.0.0_15443", &wrong);
        assert!(why.contains(word), "{word}: {why}");
        assert_eq!(world.web(), one("10.0.0.1:80"), "{word}");
    }
    let twin = Listener { name: "twin".to_owned(), ..good.clone() };
    assert!(world.bad(LISTENER, "twin", &twin).contains("has the port 15443 of Listener \"0.0.0.0_15443\""));
    let other = Listener { name: "other".to_owned(), address: socket("0.0.0.0", 80), ..good };
    world.good(LISTENER, "other", &other);
    assert_eq!(world.web(), one("10.0.0.1:80"));
}

#[test]
fn sources_are_the_intersection_of_match_and_rbac() {
    let range =
        |prefix: &str, length| CidrRange { address_prefix: prefix.to_owned(), prefix_len: Some(length) };
    let sources = |rules: &[(&str, u32)], matching: &[(&str, u32)]| {
        let mut world = World::with_web();
        let mut chain = chain(WEB);
        chain.filter_chain_match.as_mut().unwrap().source_prefix_ranges =
            matching.iter().map(|(prefix, length)| range(prefix, *length)).collect();
        for (prefix, length) in rules {
            let rules = Rbac { rules: Some(from(&[(prefix, *length)])), ..Rbac::default() };
            let rules = filter("envoy.extensions.filters.network.rbac.v3.RBAC", rules.encode_to_vec());
            chain.filters.insert(0, rules);
        }
        assert_eq!(world.listen(vec![chain]), [""; 0]);
        let service = world.find("web.shop.svc.cluster.local", 8080).unwrap();
        let text: Vec<_> = service.sources.iter().map(ToString::to_string).collect();
        (text.join(" "), !service.endpoints.is_empty())
    };
    let only = |text: &str| (text.to_owned(), true);
    assert_eq!(sources(&[], &[("10.1.2.3", 8), ("::ffff:192.0.2.0", 120)]), only("10.0.0.0/8 192.0.2.0/24"));
    assert_eq!(sources(&[("10.1.0.0", 16)], &[("10.0.0.0", 8)]), only("10.1.0.0/16"));
    assert_eq!(sources(&[("10.0.0.0", 8), ("10.1.0.0", 16)], &[]), only("10.1.0.0/16"));
    // An empty intersection admits no client; it is not the same as no condition.
    assert_eq!(sources(&[("10.0.0.0", 8)], &[("192.0.2.0", 24)]), (String::new(), false));
}

#[test]
fn refused_cluster_keeps_the_last_accepted_one() {
    let mut world = World::with_web();
    world.listen(vec![chain(WEB)]);
    let tls =
        TransportSocket { name: "envoy.transport_sockets.tls".to_owned(), ..TransportSocket::default() };
    let cases = [
        (
            "transport_socket \"envoy.transport_sockets.tls\"",
            Cluster { transport_socket: Some(tls), ..cluster(WEB) },
        ),
        (
            "transport_socket_matches",
            Cluster { transport_socket_matches: vec![Default::default()], ..cluster(WEB) },
        ),
        ("health_checks", Cluster { health_checks: vec![Default::default()], ..cluster(WEB) }),
        ("lb_subset_config", Cluster { lb_subset_config: Some(Default::default()), ..cluster(WEB) }),
        (
            "lb_policy CLUSTER_PROVIDED",
            Cluster { lb_policy: LbPolicy::ClusterProvided.into(), ..cluster(WEB) },
        ),
        ("lb_policy 99", Cluster { lb_policy: 99, ..cluster(WEB) }),
        (
            "ORIGINAL_DST",
            Cluster {
                cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into())),
                ..cluster(WEB)
            },
        ),
        (
            "connect_timeout is negative",
            Cluster {
                connect_timeout: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
                ..cluster(WEB)
            },
        ),
        ("has the name \"x\"", cluster("x")),
    ];
    for (word, wrong) in cases {
        let why = world.bad(CLUSTER, WEB, &wrong);
        assert!(why.contains(word), "{word}: {why}");
        assert_eq!(world.web(), one("10.0.0.1:80"), "{word}");
    }
    let mut bytes = cluster(WEB).encode_to_vec();
    bytes.extend([0xaa, 0x01, 0]); // upstream_bind_config
    let why = world.send(CLUSTER, &[(WEB, bytes)], &[]).concat();
    assert!(why.contains("field 21 of Cluster"), "{why}");
}

#[test]
fn cluster_with_inline_endpoints_accepts_host_names_for_dns_types() {
    let mut world = World::new();
    let named = LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: socket("db.example.", 3306),
            ..Endpoint::default()
        })),
        ..LbEndpoint::default()
    };
    let mut dns = cluster(WEB);
    dns.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::StrictDns.into()));
    dns.load_assignment = Some(assignment(WEB, vec![named.clone()]));
    world.good(CLUSTER, WEB, &dns);
    world.listen(vec![chain(WEB)]);
    assert!(world.state.is_whole());
    assert_eq!(world.web(), one("db.example:3306"));
    dns.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into()));
    assert!(world.bad(CLUSTER, WEB, &dns).contains("\"db.example.\" is not an IP address"));
    world.good(CLUSTER, WEB, &cluster(WEB));
    let mixed = assignment(WEB, vec![named, endpoint("10.0.0.7", 1, 0)]);
    let why = world.bad(ENDPOINTS, WEB, &mixed);
    assert!(why.contains("\"db.example.\" is not an IP address"), "{why}");
    assert_eq!(world.web(), one("10.0.0.7:80"), "the others are accepted");
}

#[test]
fn weighted_clusters_and_localities_split_connections_by_weight() {
    let mut world = World::with_web();
    let mut other = cluster("other");
    other.common_lb_config = Some(CommonLbConfig {
        locality_config_specifier: Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(
            LocalityWeightedLbConfig {},
        )),
        ..CommonLbConfig::default()
    });
    let group = |weight, endpoints| LocalityLbEndpoints {
        lb_endpoints: endpoints,
        load_balancing_weight: Some(weight),
        ..LocalityLbEndpoints::default()
    };
    world.good(CLUSTER, "other", &other);
    let groups = vec![
        group(3, vec![endpoint("10.0.1.1", 1, 0), endpoint("10.0.1.2", 1, 0)]),
        group(1, vec![endpoint("10.0.1.3", 9, 0)]),
    ];
    let shared = ClusterLoadAssignment { endpoints: groups, ..assignment("other", vec![]) };
    world.good(ENDPOINTS, "other", &shared);
    let weight =
        |name: &str, weight| ClusterWeight { name: name.to_owned(), weight, ..ClusterWeight::default() };
    let clusters = WeightedCluster { clusters: vec![weight(WEB, 20), weight("other", 80)] };
    let mut chain = chain(WEB);
    let cluster_specifier = Some(ClusterSpecifier::WeightedClusters(clusters));
    chain.filters[1] = proxy(&TcpProxy { cluster_specifier, ..TcpProxy::default() });
    assert_eq!(world.listen(vec![chain]), [""; 0]);
    let weights: Vec<u32> = world.web().iter().map(|(_, weight)| *weight).collect();
    assert_eq!(weights, [20, 30, 30, 20]);
}

proptest! {
    #[test]
    fn import_of_any_bytes_never_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        at in 0..400_usize,
        kind in prop_oneof![Just(LISTENER), Just(CLUSTER), Just(ENDPOINTS)],
    ) {
        let mut world = World::with_web();
        // Valid bytes with random ones in the middle get further than random ones alone.
        let good = match kind {
            LISTENER => listener(vec![chain(WEB)]).encode_to_vec(),
            CLUSTER => cluster(WEB).encode_to_vec(),
            _ => assignment(WEB, vec![endpoint("10.0.0.1", 1, 0)]).encode_to_vec(),
        };
        let (head, tail) = good.split_at(at.min(good.len()));
        for sent in [bytes.clone(), [head, &bytes, tail].concat()] {
            for name in ["", WEB, "0.0.0.0_15443"] {
                world.send(kind, &[(name, sent.clone())], &[]);
                world.state.services();
            }
        }
    }

    /// A field of any number anywhere in a chain is known to have no effect, or the chain has no route.
    #[test]
    fn additional_chain_field_is_harmless_or_leaves_no_route(number in 1..2_000_u32, inside in any::<bool>(), value in 0..3_u8) {
        let mut field = Vec::new();
        prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut field);
        field.extend([1, value]);
        let mut rest = chain(WEB);
        let mut rules = rest.filter_chain_match.take().unwrap().encode_to_vec();
        let mut bytes = rest.encode_to_vec();
        if inside { &mut rules } else { &mut bytes }.extend(field);
        append(1, &rules, &mut bytes);
        let mut whole = listener(Vec::new()).encode_to_vec();
        append(3, &bytes, &mut whole);
        let mut world = World::with_web();
        let refused = world.send(LISTENER, &[("0.0.0.0_15443", whole)], &[]);
        // Of the chain: metadata, name and handshake timeout; of the match: one more item of a list.
        let harmless: &[u32] = if inside { &[10, 11] } else { &[5, 7, 9] };
        if !harmless.contains(&number) {
            prop_assert!(!refused.is_empty(), "{number}");
            prop_assert!(!world.is_reachable(), "{number}");
        }
    }
}
