//! Clusters and their endpoints.

use super::*;

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
