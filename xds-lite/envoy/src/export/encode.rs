//! Encodes chains and endpoints as Envoy's messages. The same input is always the same bytes, whose hash is the version.
//! Never uses `sni_cluster`: with it, a client's SNI selects any cluster, the control plane's included.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;
use prost::Message;
use prost_types::Any;

use isthmus_model::locality::Locality;
use isthmus_model::services::Balance;
use isthmus_model::slice::{Health, Port};
use isthmus_proto::envoy::config::cluster::v3 as cds;
use isthmus_proto::envoy::config::core::v3 as core;
use isthmus_proto::envoy::config::endpoint::v3 as eds;
use isthmus_proto::envoy::config::listener::v3 as lds;
use isthmus_proto::envoy::config::rbac::v3 as rbac;
use isthmus_proto::envoy::config::route::v3 as rds;
use isthmus_proto::envoy::extensions::filters::network::http_connection_manager::v3 as http;
use isthmus_proto::envoy::extensions::filters::network::rbac::v3 as network_rbac;
use isthmus_proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use isthmus_proto::envoy::extensions::transport_sockets::proxy_protocol::v3 as proxy;
use isthmus_proto::envoy::r#type::matcher::v3 as matcher;
use isthmus_proto::envoy::r#type::v3 as kind;

use super::EAST_WEST;
use super::chain::{At, Chain};
use super::claims::NamedChain;
use super::refused::is_pattern;

const TYPES: &str = "type.googleapis.com/envoy.extensions";
/// From accept to the end of the ClientHello.
const HELLO: Duration = Duration::from_secs(5);
const CONNECT_ATTEMPTS: u32 = 3;
/// The chain of names without a route.
const NOWHERE: &str = "isthmus-nowhere";
/// The prefix of names with a port.
const OUTBOUND: &str = "outbound_.";
/// Seconds and probes, as the gateway's own.
const KEEPALIVE: (u32, u32) = (180, 9);

/// The Listener, of at least one chain. Connections to names in `nowhere` are closed.
pub(super) fn listener(address: SocketAddr, chains: &[NamedChain<'_>], nowhere: &BTreeSet<&str>) -> Bytes {
    let inspector = any("filters.listener.tls_inspector.v3.TlsInspector", &());
    let listener = lds::Listener {
        name: EAST_WEST.to_owned(),
        address: Some(socket_address(address)),
        filter_chains: chains.iter().map(filter_chain).chain(closing_chain(nowhere)).collect(),
        listener_filters: vec![lds::ListenerFilter {
            name: "envoy.filters.listener.tls_inspector".to_owned(),
            config_type: Some(lds::listener_filter::ConfigType::TypedConfig(inspector)),
            filter_disabled: None,
        }],
        listener_filters_timeout: duration(HELLO),
        traffic_direction: core::TrafficDirection::Inbound.into(),
        ..lds::Listener::default()
    };
    listener.encode_to_vec().into()
}

/// A chain without filters: Envoy closes its connections.
fn closing_chain(names: &BTreeSet<&str>) -> Option<lds::FilterChain> {
    let chain = lds::FilterChain {
        filter_chain_match: Some(lds::FilterChainMatch {
            server_names: names.iter().map(|name| (*name).to_owned()).collect(),
            transport_protocol: "tls".to_owned(),
            ..lds::FilterChainMatch::default()
        }),
        name: NOWHERE.to_owned(),
        ..lds::FilterChain::default()
    };
    (!names.is_empty()).then_some(chain)
}

/// For a chain with a `*.suffix`: refuses `outbound_` names that are not its own. They are another service's, an unknown
/// port's or a subset's.
fn no_outbound_names(chain: &NamedChain<'_>) -> Option<lds::Filter> {
    use matcher::string_matcher::MatchPattern;
    use rbac::permission::{Rule, Set};
    if !chain.names.iter().any(|name| is_pattern(name)) {
        return None;
    }
    let permission = |rule| rbac::Permission { rule: Some(rule) };
    let asked = |pattern| {
        let name = matcher::StringMatcher { match_pattern: Some(pattern), ignore_case: false };
        permission(Rule::RequestedServerName(name))
    };
    let own = chain.names.iter().filter(|name| name.starts_with(OUTBOUND));
    let not_own =
        own.map(|name| permission(Rule::NotRule(Box::new(asked(MatchPattern::Exact((*name).to_owned()))))));
    let rules = std::iter::once(asked(MatchPattern::Prefix(OUTBOUND.to_owned()))).chain(not_own).collect();
    let policy = rbac::Policy {
        permissions: vec![permission(Rule::AndRules(Set { rules }))],
        principals: vec![rbac::Principal { identifier: Some(rbac::principal::Identifier::Any(true)) }],
        ..rbac::Policy::default()
    };
    let rules = rbac::Rbac {
        action: rbac::rbac::Action::Deny.into(),
        policies: std::iter::once((NOWHERE.to_owned(), policy)).collect(),
        ..rbac::Rbac::default()
    };
    let filter = network_rbac::Rbac {
        rules: Some(rules),
        stat_prefix: EAST_WEST.to_owned(),
        ..network_rbac::Rbac::default()
    };
    let config = any("filters.network.rbac.v3.RBAC", &filter);
    Some(lds::Filter {
        name: "envoy.filters.network.rbac".to_owned(),
        config_type: Some(lds::filter::ConfigType::TypedConfig(config)),
    })
}

fn filter_chain(chain: &NamedChain<'_>) -> lds::FilterChain {
    let proxy = any("filters.network.tcp_proxy.v3.TcpProxy", &tcp_proxy(chain));
    let proxy = lds::Filter {
        name: "envoy.filters.network.tcp_proxy".to_owned(),
        config_type: Some(lds::filter::ConfigType::TypedConfig(proxy)),
    };
    lds::FilterChain {
        filter_chain_match: Some(lds::FilterChainMatch {
            server_names: chain.names.iter().map(|name| (*name).to_owned()).collect(),
            transport_protocol: "tls".to_owned(),
            application_protocols: chain.alpn.iter().cloned().collect(),
            source_prefix_ranges: chain.sources.iter().map(range).collect(),
            ..lds::FilterChainMatch::default()
        }),
        filters: no_outbound_names(chain).into_iter().chain([proxy]).collect(),
        name: chain.cluster.clone(),
        ..lds::FilterChain::default()
    }
}

fn tcp_proxy(chain: &Chain) -> tcp::TcpProxy {
    use kind::hash_policy::{PolicySpecifier, SourceIp};
    let by_source = kind::HashPolicy { policy_specifier: Some(PolicySpecifier::SourceIp(SourceIp {})) };
    tcp::TcpProxy {
        // Not the service's name: each would add a set of counters, and its cluster has one already.
        stat_prefix: EAST_WEST.to_owned(),
        cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(chain.cluster.clone())),
        // Unset means an hour, zero no limit.
        idle_timeout: duration(chain.idle.unwrap_or_default()),
        max_downstream_connection_duration: chain.max_duration.and_then(duration),
        max_connect_attempts: Some(CONNECT_ATTEMPTS),
        hash_policy: if chain.by_source { vec![by_source] } else { Vec::new() },
        ..tcp::TcpProxy::default()
    }
}

/// A Listener for proxyless gRPC clients, which routes every call to a cluster.
pub(super) fn api_listener(name: &str, cluster: &str) -> Bytes {
    use http::http_connection_manager::RouteSpecifier;
    let action = rds::RouteAction {
        cluster_specifier: Some(rds::route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
    };
    let every = rds::route_match::PathSpecifier::Prefix(String::new());
    let route = rds::Route {
        r#match: Some(rds::RouteMatch { path_specifier: Some(every) }),
        action: Some(rds::route::Action::Route(action)),
    };
    let host =
        rds::VirtualHost { name: cluster.to_owned(), domains: vec!["*".to_owned()], routes: vec![route] };
    let routes = rds::RouteConfiguration { name: cluster.to_owned(), virtual_hosts: vec![host] };
    // gRPC refuses a Listener without it.
    let router = any("filters.http.router.v3.Router", &());
    let manager = http::HttpConnectionManager {
        stat_prefix: cluster.to_owned(),
        route_specifier: Some(RouteSpecifier::RouteConfig(routes)),
        http_filters: vec![http::HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            config_type: Some(http::http_filter::ConfigType::TypedConfig(router)),
        }],
    };
    let manager = any("filters.network.http_connection_manager.v3.HttpConnectionManager", &manager);
    let listener = lds::Listener {
        name: name.to_owned(),
        api_listener: Some(lds::ApiListener { api_listener: Some(manager) }),
        ..lds::Listener::default()
    };
    listener.encode_to_vec().into()
}

/// The Cluster of a port, without endpoints.
pub(super) fn cluster(name: &str, port: &Port) -> Bytes {
    use cds::cluster::{ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig};
    let ads = core::ConfigSource {
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        resource_api_version: core::ApiVersion::V3.into(),
        ..core::ConfigSource::default()
    };
    let cluster = cds::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(ads), ..EdsClusterConfig::default() }),
        connect_timeout: duration(port.timeouts.connect),
        lb_policy: policy(port.balance).into(),
        circuit_breakers: Some(limits(port.max_connections)),
        common_lb_config: Some(CommonLbConfig {
            // No panic mode: without a healthy endpoint, connections fail.
            healthy_panic_threshold: Some(kind::Percent { value: 0.0 }),
            ..CommonLbConfig::default()
        }),
        transport_socket: port.send_proxy.then(proxy_v2),
        upstream_connection_options: Some(cds::UpstreamConnectionOptions {
            tcp_keepalive: Some(core::TcpKeepalive {
                keepalive_probes: Some(KEEPALIVE.1),
                keepalive_time: Some(KEEPALIVE.0),
                keepalive_interval: Some(KEEPALIVE.0),
            }),
        }),
        ..cds::Cluster::default()
    };
    cluster.encode_to_vec().into()
}

fn policy(balance: Balance) -> cds::cluster::LbPolicy {
    use cds::cluster::LbPolicy;
    match balance {
        Balance::RoundRobin => LbPolicy::RoundRobin,
        Balance::LeastConnections => LbPolicy::LeastRequest,
        Balance::Random => LbPolicy::Random,
        Balance::SourceHash => LbPolicy::Maglev,
    }
}

/// Envoy's default limits are 1 024 each.
fn limits(max_connections: Option<u32>) -> cds::CircuitBreakers {
    cds::CircuitBreakers {
        thresholds: vec![cds::circuit_breakers::Thresholds {
            max_connections: Some(max_connections.unwrap_or(u32::MAX)),
            max_pending_requests: Some(u32::MAX),
            ..Default::default()
        }],
        per_host_thresholds: Vec::new(),
    }
}

fn proxy_v2() -> core::TransportSocket {
    let raw = transport_socket(
        "envoy.transport_sockets.raw_buffer",
        "transport_sockets.raw_buffer.v3.RawBuffer",
        &(),
    );
    let config = core::ProxyProtocolConfig { version: core::proxy_protocol_config::Version::V2.into() };
    transport_socket(
        "envoy.transport_sockets.upstream_proxy_protocol",
        "transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
        &proxy::ProxyProtocolUpstreamTransport {
            config: Some(config),
            transport_socket: Some(raw),
            ..proxy::ProxyProtocolUpstreamTransport::default()
        },
    )
}

fn transport_socket(name: &str, kind: &str, message: &impl Message) -> core::TransportSocket {
    let config = core::transport_socket::ConfigType::TypedConfig(any(kind, message));
    core::TransportSocket { name: name.to_owned(), config_type: Some(config) }
}

/// The endpoints of a cluster. It is sent even if empty: when the resource is removed, Envoy keeps the last endpoints.
pub(super) fn assignment(name: &str, endpoints: &[At<'_>]) -> Bytes {
    let mut places: BTreeMap<[&str; 3], Vec<&At<'_>>> = BTreeMap::new();
    for at in endpoints {
        let Locality { region, zone, sub_zone } = &at.endpoint.locality;
        places.entry([region, zone, sub_zone]).or_default().push(at);
    }
    let assignment = eds::ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: places.into_iter().map(place).collect(),
        ..eds::ClusterLoadAssignment::default()
    };
    // The message has no maps, so its encoding is deterministic.
    assignment.encode_to_vec().into()
}

fn place((place, mut endpoints): ([&str; 3], Vec<&At<'_>>)) -> eds::LocalityLbEndpoints {
    endpoints.sort_by_key(|at| at.address);
    let weight = endpoints.iter().map(|at| weight(at)).fold(0, u32::saturating_add);
    let [region, zone, sub_zone] = place.map(str::to_owned);
    eds::LocalityLbEndpoints {
        locality: Some(core::Locality { region, zone, sub_zone }),
        lb_endpoints: endpoints.into_iter().map(endpoint).collect(),
        load_balancing_weight: Some(weight),
        ..eds::LocalityLbEndpoints::default()
    }
}

fn endpoint(at: &At<'_>) -> eds::LbEndpoint {
    let health = match at.endpoint.health {
        // Envoy has no weight of zero. Such an endpoint receives no new connections, as a draining one.
        Health::Ready if at.endpoint.weight == 0 => core::HealthStatus::Draining,
        Health::Ready => core::HealthStatus::Healthy,
        Health::NotReady => core::HealthStatus::Unhealthy,
        Health::Draining => core::HealthStatus::Draining,
    };
    eds::LbEndpoint {
        host_identifier: Some(eds::lb_endpoint::HostIdentifier::Endpoint(eds::Endpoint {
            address: Some(socket_address(at.address)),
            ..eds::Endpoint::default()
        })),
        health_status: health.into(),
        load_balancing_weight: Some(weight(at)),
        ..eds::LbEndpoint::default()
    }
}

fn weight(at: &At<'_>) -> u32 {
    u32::from(at.endpoint.weight.max(1))
}

fn socket_address(address: SocketAddr) -> core::Address {
    let address = core::SocketAddress {
        address: address.ip().to_string(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(address.port().into())),
        ..core::SocketAddress::default()
    };
    core::Address { address: Some(core::address::Address::SocketAddress(address)) }
}

fn range(range: &IpNet) -> core::CidrRange {
    core::CidrRange {
        address_prefix: range.network().to_string(),
        prefix_len: Some(range.prefix_len().into()),
    }
}

/// None for a duration beyond the message's range of some 10 000 years.
fn duration(time: Duration) -> Option<prost_types::Duration> {
    time.try_into().ok()
}

fn any(kind: &str, message: &impl Message) -> Any {
    Any { type_url: format!("{TYPES}.{kind}"), value: message.encode_to_vec() }
}
