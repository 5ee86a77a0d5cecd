//! Listeners that find their service by the destination, `bindings:` and `capture:`.

use isthmus_model::binding::BoundPort;

use super::{good, read};
use crate::config::settings::{Callers, Destination, Sockets};

const SERVICE: &str = "services: [{ host: db.example, port: 3306, identities: [spiffe://e.x/b], \
                       endpoints: [{ address: 10.0.0.1:3306, instance: db-0 }] }]\n";
const TRUST: &str = "trust: { certificate: a, key: b, bundles: c }\n";
const AGENT: &str = "xds: { agents: [10.0.0.3:15012] }\n";
const CALLER: &str = "identity: spiffe://e.x/a, sources: [127.0.0.1], certificate: a, key: b";

fn problems(text: &str) -> Vec<String> {
    read(text).expect_err("the text is wrong").list().iter().map(ToString::to_string).collect()
}

fn listener(keys: &str) -> String {
    format!("{TRUST}listeners: [{{ side: outbound, mode: originate, {keys} }}]\n")
}

fn of_port(keys: &str) -> String {
    listener(&format!("address: '127.0.0.1:0', ports: 20000-29999, {CALLER}")) + SERVICE + keys
}

fn captured(keys: &str) -> String {
    listener(&format!("address: 127.0.0.1:15001, original_destination: redirect, {CALLER}"))
        + SERVICE
        + &format!("capture: {{ {keys} }}\n")
}

#[test]
fn listener_finds_its_service_in_one_of_four_ways() {
    for (keys, destination, sockets) in [
        ("address: '127.0.0.1:0', ports: 20000-29999", Destination::ListenerPort, "127.0.0.1:20000-29999"),
        ("address: '[::1]:0', ports: 5-6", Destination::ListenerPort, "[::1]:5-6"),
        ("address: 127.0.0.1:1, original_destination: redirect", Destination::Redirected, "127.0.0.1:1"),
        ("address: 127.0.0.1:1, original_destination: tproxy", Destination::Dialled, "127.0.0.1:1"),
        ("virtual_addresses: bind", Destination::Dialled, "virtual addresses"),
    ] {
        let settings = good(&listener(&format!("{keys}, {CALLER}")));
        assert_eq!(settings.live.listeners[0].originate.as_ref().unwrap().to, destination, "{keys}");
        assert_eq!(settings.fixed.binds[0].sockets.to_string(), sockets);
        let is_transparent = matches!(settings.fixed.binds[0].sockets, Sockets::Transparent(_));
        assert_eq!(is_transparent, keys.contains("tproxy"), "{keys}");
    }
    for (keys, expected) in [
        ("address: 127.0.0.1:1", "has no service; add 'service', 'ports'"),
        ("address: '127.0.0.1:0', ports: 1-2, service: db.example", "has both service and ports"),
        ("address: 127.0.0.1:1, ports: 1-2", "127.0.0.1:1 has a port beside ports"),
        ("ports: 1-2", "has no address"),
        ("address: '127.0.0.1:0', ports: 2-1", "ends before it begins"),
        ("address: 127.0.0.1:1, virtual_addresses: bind", "has no effect with virtual_addresses"),
        ("address: 127.0.0.1:1, original_destination: redirect, port: 5", "has no effect without service"),
    ] {
        let found = problems(&listener(&format!("{keys}, {CALLER}"))).join("\n");
        assert!(found.contains(expected), "{keys}: {found}");
    }
    let without_mode = format!("{TRUST}listeners: [{{ address: '127.0.0.1:0', ports: 1-2 }}]\n");
    assert!(
        problems(&without_mode)[0].contains("listeners[0].ports: has no effect without 'mode: originate'")
    );
    let virtual_for_all =
        listener("virtual_addresses: bind, identity: spiffe://e.x/a, certificate: a, key: b");
    assert!(problems(&virtual_for_all)[0].contains("gives its identity to whoever reaches its address"));
}

#[test]
fn listener_without_callers_has_those_of_the_agent() {
    let keys = "address: 127.0.0.1:1, original_destination: redirect";
    assert!(problems(&listener(keys))[0].contains("has neither an identity nor callers"));
    let settings = good(&(listener(keys) + AGENT));
    assert_eq!(settings.live.listeners[0].originate.as_ref().unwrap().callers, Callers::OfAgent);
    assert!(settings.fixed.follows_bindings);
    let of_file = listener(
        "address: 127.0.0.1:1, service: db.example, port: 3306, identity: spiffe://e.x/a, certificate: a, key: b",
    );
    assert!(!good(&(of_file + SERVICE + AGENT)).fixed.follows_bindings);
    let sources = problems(&(listener(&format!("{keys}, sources: [10.0.0.0/8]")) + AGENT));
    assert!(sources[0].contains("listeners[0].sources: has no effect"), "{sources:#?}");
}

#[test]
fn bindings_are_unique_and_of_known_services() {
    let both = "bindings: [{ host: db.example, addresses: [240.15.0.7, 'fd00:15::7'], ports: [{ port: 3306, listener_port: 20001 }] }, \
                { host: db-0.db.example, addresses: ['::ffff:240.15.0.8'], ports: [{ port: 3306 }] }]";
    let settings = good(&of_port(both));
    let addresses: Vec<_> = settings
        .live
        .bindings
        .iter()
        .flat_map(|one| one.addresses().map(|ip| ip.to_string()).collect::<Vec<_>>())
        .collect();
    assert_eq!(addresses, ["fd00:15::7", "240.15.0.7", "240.15.0.8"]);
    assert_eq!(settings.live.bindings[0].ports, [BoundPort { port: 3306, listener_port: Some(20_001) }]);
    for (bindings, expected) in [
        ("{ ports: [{ port: 3306 }] }", "bindings[0] has no host"),
        ("{ host: db.example }", "bindings[0] has no ports"),
        ("{ host: db.example, ports: [{ listener_port: 1 }] }", "bindings[0].ports[0] has no port"),
        ("{ host: '*.example', ports: [{ port: 3306 }] }", "*.example is not one host"),
        ("{ host: db.example, ports: [{ port: 80 }] }", "there is no service 'db.example' with port 80"),
        (
            "{ host: db.example, ports: [{ port: 3306 }, { port: 3306 }] }",
            "3306 is already bindings[0].ports[0]",
        ),
        (
            "{ host: db.example, addresses: [10.0.0.8, 10.0.0.9], ports: [{ port: 3306 }] }",
            "second address of its family",
        ),
        (
            "{ host: db.example, addresses: [0.0.0.0], ports: [{ port: 3306 }] }",
            "cannot be a virtual address",
        ),
        (
            "{ host: db.example, ports: [{ port: 3306 }] }, { host: db.example, ports: [{ port: 3306 }] }",
            "db.example is already bindings[0].host",
        ),
        (
            "{ host: db.example, addresses: [10.0.0.8], ports: [{ port: 3306, listener_port: 7 }] }, \
             { host: db-0.db.example, addresses: [10.0.0.8], ports: [{ port: 3306, listener_port: 7 }] }",
            "10.0.0.8 is already bindings[0].addresses[0]",
        ),
    ] {
        let found = problems(&of_port(&format!("bindings: [{bindings}]"))).join("\n");
        assert!(found.contains(expected), "{bindings}: {found}");
    }
    let of_agent = "bindings: [{ host: other.example, ports: [{ port: 80 }] }]\n";
    assert_eq!(good(&of_port(&format!("{of_agent}{AGENT}"))).live.bindings.len(), 1, "agents may tell of it");
}

#[test]
fn capture_ranges_contain_nothing_that_the_gateway_uses() {
    let settings = good(&captured("ranges: [240.15.0.0/16]"));
    let capture = settings.live.capture.unwrap();
    assert_eq!((capture.ranges.len(), capture.mark, capture.dns.len()), (1, 15_443, 0));
    for (keys, expected) in [
        ("", "capture has no ranges"),
        ("ranges: ['fd00::/64']", "no listener with original_destination accepts IPv6"),
        ("ranges: [10.0.0.0/8]", "10.0.0.0/8 contains 10.0.0.1, the address of an endpoint of db.example"),
        ("ranges: [127.0.0.0/8]", "contains 127.0.0.1, the address of listener east-west"),
        ("ranges: [240.0.0.0/8], dns: ['240.0.0.1:53'], exclude_users: [a]", "an address of capture.dns"),
        ("ranges: [240.0.0.0/8], dns: ['10.1.0.1:53']", "has dns but no exclude_users"),
        (
            "ranges: [240.0.0.0/8], dns: ['10.1.0.1:53', '10.1.0.2:53'], exclude_users: [a]",
            "two IPv4 addresses",
        ),
        ("ranges: [240.0.0.0/8], exclude_users: ['a } accept']", "'a } accept' is not a user"),
        ("ranges: [240.0.0.0/8], exclude_users: [01]", "is not a user"),
        ("ranges: [240.0.0.0/8], mark: 254", "capture.mark"),
    ] {
        let found = problems(&captured(keys)).join("\n");
        assert!(found.contains(expected), "{keys}: {found}");
    }
    let free_port = captured("ranges: [240.15.0.0/16]").replace("127.0.0.1:15001", "127.0.0.1:0");
    assert!(problems(&free_port)[0].contains("at a fixed port"));
}
