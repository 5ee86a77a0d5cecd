//! An address family that this machine cannot use is neither port exhaustion nor an endpoint's failure: the
//! other family is tried, and the unusable one comes last. Requires root, for namespaces.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::io::Write as _;
use std::net::{Shutdown, SocketAddr};

use isthmus_tests::client::{alert, dial, read_exactly, rest};
use isthmus_tests::endpoint::{Endpoint, Scripted};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::hello;
use isthmus_tests::netns::{Namespace, inside};
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::{figure, is_root, skip};

const HOST: &str = "both.example";
const SIX: &str = "six.example";
const CALLS: usize = 8;

/// The first byte of the answer to a hello with this name.
fn ask(namespace: &Namespace, gateway: &Gateway, name: &'static str) -> (SocketAddr, Vec<u8>) {
    let address = gateway.address();
    inside(namespace.name(), move || {
        let mut client = dial(address);
        client.write_all(&hello(name)).unwrap();
        let mut answer = read_exactly(&mut client, 1);
        let peer = client.local_addr().unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        answer.extend(rest(&mut client).0);
        (peer, answer)
    })
}

#[test]
fn unusable_address_family_is_not_port_exhaustion_and_other_family_is_tried() {
    if !is_root() {
        skip!("namespaces require root");
    }
    // Disabled: EADDRNOTAVAIL; without a route: ENETUNREACH.
    for switched_off in [true, false] {
        let namespace = match Namespace::new() {
            Ok(namespace) => namespace,
            Err(why) => skip!("{why}"),
        };
        if switched_off {
            let off = || std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
            inside(namespace.name(), off).unwrap();
        }
        let good = inside(namespace.name(), || Endpoint::at("127.0.0.1:0".parse().unwrap()));
        let good = Scripted::echo_at(good, b"+");
        let far: SocketAddr = "[2001:db8::9]:443".parse().unwrap();
        let services = service(HOST, &[], &[far, good.address()]) + &service(SIX, &[], &[far]);
        let gateway = Setup::new(services).namespace(namespace.name()).start();
        let mut attempts = Vec::new();
        for _ in 0..CALLS {
            let (peer, answer) = ask(&namespace, &gateway, HOST);
            assert_eq!(answer, b"+");
            attempts.push(gateway.log().line_of(peer).number("attempts"));
        }
        figure!("IPv6 off ({switched_off}) or without a route: attempts of {CALLS} calls {attempts:?}");
        assert!(attempts.iter().sum::<u64>() <= CALLS as u64 + 1, "the family is learnt once: {attempts:?}");
        let (peer, answer) = ask(&namespace, &gateway, SIX);
        assert_eq!(answer, alert(80));
        assert_eq!(gateway.log().line_of(peer).reason(), "connect_failed");
        let log = gateway.errors().join("\n");
        assert!(log.contains("is IPv6 off?"), "{log}");
        assert_eq!(gateway.metrics().sum("isthmus_ejections_total", &[]), 0.0);
    }
}
