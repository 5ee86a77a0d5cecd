//! Chains that cannot be used as they are: what each costs.

use super::*;

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
