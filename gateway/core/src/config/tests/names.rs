//! Names and endpoints of a configuration file: unique, distinguishable, and no loop.

use super::*;

#[test]
fn listeners_do_not_share_names_or_addresses() {
    bad(
        "listeners:\n- {name: a, address: 10.0.0.1:1}\n- {name: a, address: \"[::ffff:10.0.0.1]:1\"}\n",
        &[
            "3:10: listeners[1]: the name 'a' is already used by listeners[0]; give each listener a name of its own",
            "3:22: listeners[1]: 10.0.0.1:1 is already the address of listeners[0]; give each listener an address of its own",
        ],
    );
    bad(
        "listeners:\n- {name: listener-2, address: 127.0.0.1:0}\n- {address: 127.0.0.1:0}\n",
        &[
            "3:3: listeners[1]: the name 'listener-2' is already used by listeners[0]; give each listener a name of its own",
        ],
    );
    bad(
        "listeners:\n- address: 127.0.0.1:15020\nadmin: {address: 127.0.0.1:15021}\n",
        &[
            "2:12: metrics.address 0.0.0.0:15020 and listeners[0] 127.0.0.1:15020 cannot both be bound; give each a \
             port of its own",
            "3:18: health.address 0.0.0.0:15021 and admin.address 127.0.0.1:15021 cannot both be bound; give each a \
             port of its own",
        ],
    );
    bad(
        "listeners:\n- {address: 127.0.0.1:0, ipv6_only: true}\n",
        &["2:37: listeners[0].ipv6_only: 127.0.0.1:0 is not an IPv6 address; remove ipv6_only"],
    );
    bad(
        "listeners:\n- address: 127.0.0.1:0\n  proxy_protocol: {}\n",
        &[
            "3:19: listeners[0].proxy_protocol has no from; add 'from: [CIDR, …]' with the sources that must send a \
             PROXY header",
        ],
    );
    bad(
        "listeners:\n- address: 127.0.0.1:0\n  proxy_protocol: {from: [10.1.2.3/8]}\n",
        &[
            "3:27: listeners[0].proxy_protocol.from[0]: '10.1.2.3/8' has bits set after its prefix; write the range's \
           first address, or the single address without a prefix",
        ],
    );
}

#[test]
fn listener_default_is_a_service_of_the_file() {
    let file = |default: &str| {
        format!(
            "listeners: [{{address: 127.0.0.1:0, default: {default}}}]\nservices:\n- {{host: a, port: 1}}\n\
             - {{host: a, port: 2}}\n- {{host: b, port: 3}}\n- {{host: c, port: 1, sni_port: 2}}\n\
             - {{host: c, port: 2}}\n- host: \"*.d\"\n"
        )
    };
    for (default, index) in [("a:2", 1), ("A.:1", 0), ("b", 2), ("b:3", 2), ("c", 4), ("\"*.d\"", 5)] {
        assert_eq!(good(&file(default)).live.listeners[0].default, Some(index), "{default}");
    }
    for (default, problem) in [
        ("a", "'a' has several ports; write a: and one of 1, 2"),
        ("a:3", "'a:3' is not one of the host's ports; write a: and one of 1, 2"),
        ("x", "'x' is not the host of a service; write HOST or HOST:PORT of a service in this file"),
        ("a:x", "'a:x' is not a service; write HOST or HOST:PORT of a service in this file"),
    ] {
        bad(&file(default), &[&format!("1:45: listeners[0].default: {problem}")]);
    }
}

#[test]
fn service_is_unique_and_has_a_host() {
    bad(
        &with_listener("services:\n- host: a.b\n- port: 80\n- {host: A.b., port: 443}\n"),
        &[
            "4:3: services[1] has no host; add 'host: …'",
            "5:10: services[2]: a.b port 443 is already services[0] (line 3); merge their endpoints, or give one \
             another port",
        ],
    );
    bad(
        &with_listener("services:\n- {host: a..b, port: 0, sni_port: 65536}\n"),
        &[
            "3:10: services[0].host: 'a..b' is not a host name; write labels of letters, digits, '-' or '_' (63 bytes \
             each, 253 in all) with dots between, with '*.' in front to match every name under it",
            "3:22: services[0].port: '0' is out of range; write 1 to 65535",
            "3:35: services[0].sni_port: '65536' is out of range; write 1 to 65535",
        ],
    );
    bad(
        &with_listener(
            "services:\n- {host: outbound_.80_._.a, alpn: [\"\"], sources: [x], max_connections: 0}\n",
        ),
        &[
            "3:10: services[0].host: 'outbound_.80_._.a' is reserved for names that the gateway generates; write the host alone: every service answers to \
             outbound_.PORT_._.HOST",
            "3:36: services[0].alpn[0]: '' is not a protocol name; write 1 to 255 bytes, such as h2",
            "3:51: services[0].sources[0]: 'x' is not a range of addresses; write ADDRESS/PREFIX, such as 10.0.0.0/8",
            "3:72: services[0].max_connections: '0' is out of range; write 1 to 10000000",
        ],
    );
}

#[test]
fn sni_port_selects_port_of_bare_host() {
    let bare = |services: &str| {
        let settings = good(&with_listener(services));
        settings.live.services.iter().map(|service| service.default_port).collect::<Vec<_>>()
    };
    assert_eq!(bare("services: [{host: a, port: 1}]"), [true]);
    assert_eq!(bare("services: [{host: a, port: 1}, {host: a, port: 2}]"), [false, false]);
    assert_eq!(bare("services: [{host: a, port: 1, sni_port: 2}, {host: a, port: 2}]"), [false, true]);
    assert_eq!(
        bare("services: [{host: a, port: 1, sni_port: 1}, {host: a, port: 2, sni_port: 1}]"),
        [true, false]
    );
    bad(
        &with_listener("services:\n- {host: a, port: 1, sni_port: 3}\n- {host: a, port: 2}\n"),
        &["3:32: services[0].sni_port: a has no port 3; write 1 or 2"],
    );
    bad(
        &with_listener("services:\n- {host: a, port: 1, sni_port: 1}\n- {host: a, port: 2, sni_port: 2}\n"),
        &["4:32: services[1].sni_port: 2 contradicts services[0], which sets 1; set it once per host"],
    );
}

#[test]
fn duplicate_name_needs_distinguishing_conditions() {
    let file = |one: &str, other: &str| {
        with_listener(&format!(
            "services:\n- {{host: a, aliases: [x, \"*.y\"]{one}}}\n- {{host: b, aliases: [\"*.Y\"]{other}}}\n"
        ))
    };
    let clash = "4:23: services[1]: the name *.y is already used by services[0] (line 3); remove one of them, or let \
                 alpn or sources tell the services apart";
    for (one, other) in [
        ("", ""),
        (", alpn: [h2, http/1.1]", ", alpn: [h2]"),
        (", sources: [10.0.0.0/8]", ", sources: [10.1.0.0/16]"),
        (", alpn: [h2], sources: [10.0.0.0/8]", ", alpn: [h2], sources: [\"::ffff:10.1.0.0/112\"]"),
    ] {
        bad(&file(one, other), &[clash]);
    }
    for (one, other) in [
        (", alpn: [h2]", ", alpn: [http/1.1]"),
        (", alpn: [h2]", ""),
        ("", ", sources: [10.0.0.0/8]"),
        (", alpn: [h2], sources: [10.0.0.0/8]", ", alpn: [h2], sources: [11.0.0.0/8]"),
    ] {
        good(&file(one, other));
    }
    bad(
        &with_listener("services:\n- {host: a, aliases: [a.]}\n"),
        &["3:23: services[0]: the name a is already used by services[0] (line 3); remove one of them"],
    );
    // Only the entry that the bare name means claims the aliases.
    good(&with_listener(
        "services: [{host: a, sni_port: 443, aliases: [x]}, {host: a, port: 1, aliases: [x]}]",
    ));
}

#[test]
fn services_sharing_one_name_are_limited() {
    let services: Vec<String> =
        (0..=64).map(|number| format!("- {{host: h{number}, aliases: [x], alpn: [p{number}]}}\n")).collect();
    bad(
        &with_listener(&format!("services:\n{}", services.concat())),
        &["67:25: services[64]: more than 64 services have the name x; give each its own name"],
    );
}

#[test]
fn instance_name_conflicts_are_refused() {
    let file = |other: &str| {
        with_listener(&format!(
            "services:\n- {{host: db, endpoints: [{{address: 10.0.0.1:1, instance: db-0}}]}}\n- {other}\n"
        ))
    };
    bad(
        &file("host: db-0.db"),
        &[
            "3:58: services[0]: the name db-0.db is already used by services[1] (line 4); remove one of them, or let \
           alpn or sources tell the services apart",
        ],
    );
    bad(
        &file("{host: db-0.db, port: 1}"),
        &[
            "4:10: services[1]: the name db-0.db is already used by services[0] (line 3); remove one of them, or let \
           alpn or sources tell the services apart",
        ],
    );
    good(&file("{host: db-0.db, port: 1, alpn: [mysql]}"));
    good(&file("{host: db, port: 1, endpoints: [{address: 10.0.0.1:1, instance: db-0}]}"));
    let long = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(59)].join(".");
    bad(
        &with_listener(&format!(
            "services:\n- host: {long}\n  endpoints: [{{address: a:1, instance: db-0}}]\n"
        )),
        &[&format!(
            "4:40: services[0].endpoints[0].instance: db-0.{long} is not a valid name: the name is longer than 253 bytes; \
             shorten the instance or the host"
        )],
    );
}

#[test]
fn endpoints_are_unique_in_a_service() {
    let head = "services:\n- host: a\n  endpoints:\n";
    bad(
        &with_listener(&format!(
            "{head}  - {{address: 10.0.0.1:1, instance: i}}\n  - {{address: \"[::ffff:10.0.0.1]:1\", instance: I}}\n  \
             - {{instance: a.b, weight: 65536}}\n"
        )),
        &[
            "6:15: services[0].endpoints[1].address: is listed twice in this service; remove one of them; 'weight: 2' \
             gives one address two shares",
            "6:48: services[0].endpoints[1].instance: i is listed twice in this service; give each instance its own \
             name",
            "7:5: services[0].endpoints[2] has no address; add 'address: …'",
            "7:16: services[0].endpoints[2].instance: 'a.b' is not one DNS label; write 1 to 63 letters, digits, '-' \
             or '_', without dots",
            "7:29: services[0].endpoints[2].weight: '65536' is out of range; write 0 to 65535",
        ],
    );
    bad(
        &with_listener(&format!("{head}  - address: 10.0.0.1:0\n")),
        &[
            "5:14: services[0].endpoints[0].address: '10.0.0.1:0' has a port out of range; write a port from 1 to 65535",
        ],
    );
    good(&with_listener(&format!(
        "{head}  - {{address: a:1, weight: 0}}\n  - {{address: a:2, weight: 0}}\n"
    )));
}

#[test]
fn endpoint_at_own_listener_is_refused() {
    let file = |listen: &str, target: &str| {
        format!(
            "listeners: [{{address: \"{listen}\"}}]\nservices:\n- host: a\n  endpoints: [{{address: \"{target}\"}}]\n"
        )
    };
    for (listen, target, shown) in [
        ("10.9.8.7:443", "10.9.8.7:443", "10.9.8.7:443 is this gateway's own listener east-west"),
        ("0.0.0.0:443", "127.0.0.9:443", "127.0.0.9:443 is this gateway's own listener east-west"),
        ("0.0.0.0:443", "[::ffff:127.0.0.1]:443", "127.0.0.1:443 is this gateway's own listener east-west"),
        ("0.0.0.0:443", "127.0.0.1:15000", "127.0.0.1:15000 is this gateway's own admin"),
        ("0.0.0.0:443", "127.0.0.1:15020", "127.0.0.1:15020 is this gateway's own metrics"),
        ("0.0.0.0:443", "127.0.0.1:15021", "127.0.0.1:15021 is this gateway's own health"),
    ] {
        let place = "4:25: services[0].endpoints[0].address:";
        bad(&file(listen, target), &[&format!("{place} {shown}; write the address of the server itself")]);
    }
    good(&file("0.0.0.0:443", "127.0.0.1:444"));
    good(&file("0.0.0.0:443", "192.0.2.1:443"));
}

#[test]
fn yaml_alias_problems_are_reported_where_used() {
    let anchored = "services:\n- {host: a, timeouts: &t {idle: 1s}}\n- {host: b, timeouts: *t}\n";
    assert_eq!(good(&with_listener(anchored)).live.services[1].timeouts.idle, Some(Duration::from_secs(1)));
    bad(
        &with_listener("services:\n- {host: a, timeouts: &t {idle: 0s}}\n- {host: b, timeouts: *t}\n"),
        &[
            "3:33: services[0].timeouts.idle: '0s' would let nothing succeed; write more than zero",
            "4:23: services[1].timeouts.idle: '0s' would let nothing succeed; write more than zero",
        ],
    );
}
