//! Tests import with resources as istiod sends them. A field has Envoy's meaning, or what it restricts has no route.

mod chains;
mod clusters;
mod fuzz;

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
