//! Listeners for gRPC clients without a proxy.

use super::*;

/// Listeners of proxyless gRPC clients, and their clusters.
fn direct(adapter: &Adapter) -> Vec<(String, String)> {
    use http::http_connection_manager::RouteSpecifier::RouteConfig;
    use isthmus_proto::envoy::config::route::v3 as rds;
    use isthmus_proto::envoy::extensions::filters::network::http_connection_manager::v3 as http;
    let shared = adapter.named(LISTENER).unwrap();
    let view = shared.view();
    let led = |(name, resource): (&Arc<str>, &isthmus_ads::view::Resource)| {
        let listener = lds::Listener::decode(&*resource.bytes).unwrap();
        assert_eq!(listener.name, **name);
        assert!(listener.address.is_none() && listener.filter_chains.is_empty());
        let manager = listener.api_listener.unwrap().api_listener.unwrap();
        assert!(manager.type_url.ends_with("http_connection_manager.v3.HttpConnectionManager"));
        let manager = http::HttpConnectionManager::decode(&*manager.value).unwrap();
        let RouteConfig(mut routes) = manager.route_specifier.unwrap();
        let rds::VirtualHost { domains, mut routes, .. } = routes.virtual_hosts.remove(0);
        assert_eq!((domains, routes.len()), (vec!["*".to_owned()], 1));
        let rds::route::Action::Route(action) = routes.remove(0).action.unwrap();
        let rds::route_action::ClusterSpecifier::Cluster(cluster) = action.cluster_specifier.unwrap();
        (name.to_string(), cluster)
    };
    let mut led: Vec<_> = view.iter().map(led).collect();
    led.sort();
    led
}

#[test]
fn grpc_listener_per_host_and_port_uses_the_same_clusters() {
    let adapter = adapter();
    let mut named = endpoint("10.0.0.1:443");
    named.instance = Some(HostName::parse("db-0").unwrap());
    named.instance_exported = true;
    let mut second = port(444, vec![endpoint("10.0.0.1:444")]);
    second.default_port = false;
    let mut both = offer(vec![port(443, vec![named]), second]);
    both.aliases = vec![HostPattern::parse("c").unwrap(), HostPattern::parse("*.d").unwrap()];
    adapter.change(&[slice("east/a.b", Some(both)), simple("east/*.apps", "10.0.0.1:443")]);
    let led = |name: &str, cluster: &str| (name.to_owned(), cluster.to_owned());
    let expected = [
        led("a.b:443", "outbound_.443_._.a.b"),
        led("a.b:444", "outbound_.444_._.a.b"),
        led("c:443", "outbound_.443_._.a.b"),
        led("c:444", "outbound_.444_._.a.b"),
        led("db-0.a.b:443", "outbound_.443_._.db-0.a.b"),
    ];
    assert_eq!(direct(&adapter), expected);
    assert_eq!(names(&adapter, LISTENER), [EAST_WEST], "an Envoy does not receive them");
    for type_url in [CLUSTER, ENDPOINTS] {
        assert!(adapter.named(type_url).is_none(), "it is the same for both");
    }
    adapter.change(&[slice("east/a.b", None)]);
    assert_eq!(direct(&adapter), []);
}

#[test]
fn grpc_listener_is_left_out_for_unsupported_settings() {
    let with = |change: &dyn Fn(&mut Port)| {
        let mut slice = simple("east/a.b", "10.0.0.1:443");
        change(&mut slice.offer.as_mut().unwrap().ports[0]);
        slice
    };
    type Change<'a> = &'a dyn Fn(&mut Port);
    let cases: [(Change<'_>, &str); 7] = [
        (&|port| port.balance = Balance::LeastConnections, "balance"),
        (&|port| port.balance = Balance::Random, "balance"),
        (&|port| port.balance = Balance::SourceHash, "balance"),
        (&|port| port.sources = vec!["10.0.0.0/8".parse().unwrap()], "sources"),
        (&|port| port.send_proxy = true, "proxy_protocol"),
        (&|port| port.max_connections = Some(7), "max_connections"),
        (&|port| port.alpn = vec!["mysql".to_owned()], "alpn"),
    ];
    let adapter = adapter();
    for (change, why) in cases {
        adapter.change(&[with(change)]);
        assert_eq!(names(&adapter, CLUSTER), ["outbound_.443_._.a.b"], "{why}");
        assert_eq!(direct(&adapter), [], "{why}");
        let said = adapter.problems_of_grpc().join("\n");
        assert!(said.starts_with("a.b:443 is left out for gRPC clients: ") && said.contains(why), "{said}");
        assert_eq!(adapter.problems(), [""; 0], "Envoy has it");
        adapter.change(&[with(&|port| port.alpn = vec!["mysql".to_owned(), "h2".to_owned()])]);
        assert_eq!(direct(&adapter).len(), 1, "it is back after {why}");
        assert_eq!(adapter.problems_of_grpc(), [""; 0]);
    }
}

/// Envoy chooses by protocol before it chooses by source; a gRPC client must not reach another service.
#[test]
fn grpc_listener_of_a_shared_name_is_the_one_envoy_would_choose() {
    let adapter = adapter();
    let with = |key: &str, alpn: &[&str], sources: &[&str]| {
        let mut slice = simple(key, "10.0.0.1:443");
        let offer = slice.offer.as_mut().unwrap();
        offer.aliases = vec![HostPattern::parse("db").unwrap()];
        offer.ports[0].alpn = alpn.iter().map(|&it| it.to_owned()).collect();
        offer.ports[0].sources = sources.iter().map(|it| it.parse().unwrap()).collect();
        slice
    };
    let db = || direct(&adapter).into_iter().find(|(name, _)| name == "db:443").map(|(_, cluster)| cluster);
    adapter.change(&[with("east/any", &[], &[]), with("east/two", &["h2"], &[])]);
    assert_eq!(db().as_deref(), Some("outbound_.443_._.two"));
    adapter.change(&[with("east/two", &["mysql"], &[])]);
    assert_eq!(db().as_deref(), Some("outbound_.443_._.any"));
    adapter.change(&[with("east/two", &["h2"], &["10.0.0.0/8"])]);
    assert_eq!(db(), None);
    adapter.change(&[with("east/two", &[], &["10.0.0.0/8"])]);
    assert_eq!(db(), None);
    assert_eq!(adapter.problems(), [""; 0]);
}
