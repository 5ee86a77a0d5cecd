//! Exhaustion of local ports across a real link: it never counts against an endpoint, and more source
//! addresses give more ports. Row 6d of the hazards. Requires root, for namespaces.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::Instant;

use isthmus_tests::client::{alert, dial};
use isthmus_tests::endpoint::{Endpoint, Scripted};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::Hello;
use isthmus_tests::http;
use isthmus_tests::lock::alone;
use isthmus_tests::netns::{FAR, NEAR, Pair, inside};
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::wait::until;
use isthmus_tests::{figure, is_root, skip};

const HOST: &str = "web.example";
const PORTS: usize = 1_000;
/// Enough to use up the ports of one address and of two.
const CONNECTIONS: usize = 2_500;

struct World {
    pair: Pair,
    gateway: Gateway,
    endpoint: Scripted,
}

/// The gateway has few ports; the endpoint and the clients are at the other end of the link.
fn world(upstream: &str) -> Result<World, String> {
    let pair = Pair::new()?;
    pair.set(&pair.near, "net.ipv4.ip_local_port_range", &format!("20000 {}", 20_000 + PORTS - 1));
    let listener = inside(&pair.far, || Endpoint::at((FAR, 9_443).into()));
    let endpoint = Scripted::echo_at(listener, b"+");
    let gateway = Setup::new(service(HOST, &[], &[(FAR, 9_443).into()]))
        .listeners(&format!("- address: \"{NEAR}:15443\""))
        .with(upstream)
        .namespace(&pair.near)
        .start();
    Ok(World { pair, gateway, endpoint })
}

/// Makes connections one after the other, closed by the client first; returns the served and refused counts.
fn connect_all(world: &World) -> (usize, usize) {
    inside(&world.pair.far, || {
        let flight = Hello::new(HOST).bytes();
        let (mut served, mut refused) = (0, 0);
        for _ in 0..CONNECTIONS {
            let mut client = dial(SocketAddr::from((NEAR, 15_443)));
            client.write_all(&flight).unwrap();
            let mut answer = vec![0];
            client.read_exact(&mut answer).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            client.read_to_end(&mut answer).unwrap();
            if answer == b"+" {
                served += 1;
            } else {
                assert_eq!(answer, alert(80));
                refused += 1;
            }
        }
        (served, refused)
    })
}

fn page(world: &World, name: &str, path: &'static str) -> String {
    let address = world.gateway.at(name);
    inside(&world.pair.near, move || http::ask(address, "GET", path).body)
}

fn reasons(world: &World) -> BTreeMap<String, usize> {
    until("every connection is logged", || world.gateway.log().lines().len() >= CONNECTIONS);
    let mut reasons = BTreeMap::new();
    for line in world.gateway.log().lines() {
        *reasons.entry(line.reason().to_owned()).or_insert(0) += 1;
    }
    reasons
}

/// Asserts that the endpoint is not ejected and is shown as healthy.
#[track_caller]
fn endpoint_is_healthy(world: &World) {
    let metrics = page(world, "metrics", "/metrics");
    let ejections = metrics.lines().find(|line| line.starts_with("isthmus_ejections_total")).unwrap();
    assert!(ejections.ends_with(" 0"), "{ejections}");
    let services: serde_json::Value = serde_json::from_str(&page(world, "admin", "/services")).unwrap();
    let endpoint = &services["items"][0]["endpoints"][0];
    assert_eq!(endpoint["address"], format!("{FAR}:9443"), "{services}");
    assert_eq!((&endpoint["healthy"], &endpoint["failures"]), (&true.into(), &0.into()), "{services}");
}

#[test]
fn port_exhaustion_does_not_eject_the_endpoint() {
    if !is_root() {
        skip!("namespaces require root");
    }
    let _alone = alone();
    let world = match world("upstream: { ejection: { failures: 2, max_percent: 100 } }") {
        Ok(world) => world,
        Err(why) => skip!("{why}"),
    };
    let started = Instant::now();
    let (served, refused) = connect_all(&world);
    let reasons = reasons(&world);
    figure!(
        "{PORTS} ports, {CONNECTIONS} connections in {:?}: {served} served, {refused} refused, {reasons:?}",
        started.elapsed()
    );
    assert!(served + 50 >= PORTS, "{served} of {PORTS} ports were used");
    assert!(refused > 0, "the ports did not run out");
    assert_eq!(reasons.get("local_resources"), Some(&refused));
    assert_eq!(world.endpoint.accepted(), served);
    let retried =
        world.gateway.log().count(|line| line.reason() == "local_resources" && line.number("attempts") > 1);
    assert_eq!(retried, 0, "local port exhaustion was retried");
    endpoint_is_healthy(&world);
}

#[test]
fn source_addresses_extend_the_port_range() {
    if !is_root() {
        skip!("namespaces require root");
    }
    let _alone = alone();
    let world = match world("upstream: { source_addresses: [10.77.0.1, 10.77.0.3, 10.77.0.4, 10.77.0.5] }") {
        Ok(world) => world,
        Err(why) => skip!("{why}"),
    };
    let started = Instant::now();
    let (served, refused) = connect_all(&world);
    figure!(
        "4 source addresses with {PORTS} ports each, {CONNECTIONS} connections in {:?}: {served} served, {refused} refused",
        started.elapsed()
    );
    assert_eq!((served, refused), (CONNECTIONS, 0), "{:?}", reasons(&world));
    endpoint_is_healthy(&world);
}
