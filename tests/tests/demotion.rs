//! Demotion: endpoints that reject hellos are tried last, and the gateway checks them with its own hello.
//! With real TLS at both ends and the default replay budget no call is lost, and no client's hello takes an
//! endpoint away from others.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use isthmus_tests::client::{alert, dial_from, read_exactly, reset, rest};
use isthmus_tests::endpoint::{Endpoint, Scripted, closed};
use isthmus_tests::figure;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::{Hello, alpn, hello, read_hello};
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::tls::{HOST, Trust};
use isthmus_tests::wait::until;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

const CALLS: usize = 300;

/// A service with real TLS endpoints, and a client that trusts them.
struct World {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl World {
    fn new() -> World {
        let (client, server) = Trust::new().ends();
        World { client, server }
    }

    /// An endpoint that serves TLS and sends `hi` after the handshake.
    fn good(&self) -> Scripted {
        let server = Arc::clone(&self.server);
        Scripted::unread(move |stream| greet(&server, stream))
    }

    /// The same, but it closes without an answer on hellos with this mark.
    fn touchy(&self) -> Scripted {
        let server = Arc::clone(&self.server);
        Scripted::unread(move |stream| {
            let mut seen = [0; 4096];
            let Ok(length) = stream.peek(&mut seen) else { return };
            if seen[..length].windows(MARK.len()).any(|window| window == MARK.as_bytes()) {
                reset(stream);
            } else {
                greet(&server, stream);
            }
        })
    }

    fn gateway(&self, balance: &str, endpoints: &[SocketAddr], more: &str) -> Gateway {
        Setup::new(service(HOST, &[&format!("balance: {balance}")], endpoints)).with(more).start()
    }

    /// Whether a call from this source is answered.
    fn call_from(&self, source: IpAddr, gateway: &Gateway) -> bool {
        let name = ServerName::try_from(HOST).unwrap();
        let connection = ClientConnection::new(Arc::clone(&self.client), name).unwrap();
        let mut stream = StreamOwned::new(connection, dial_from(source, gateway.address()));
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).is_ok() && answer == *b"hi"
    }

    fn call(&self, gateway: &Gateway) -> bool {
        self.call_from(NEIGHBOUR, gateway)
    }
}

fn greet(server: &Arc<ServerConfig>, stream: TcpStream) {
    let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(server)).unwrap(), stream);
    let _gone = stream.write_all(b"hi");
    stream.conn.send_close_notify();
    let _gone = stream.flush();
    let _end = stream.read(&mut [0]);
}

const MARK: &str = "h2c-broken";
const NEIGHBOUR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 1));
const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 66));
const POLICIES: [&str; 4] = ["round_robin", "random", "least_connections", "source_hash"];

fn addresses(endpoints: &[Scripted]) -> Vec<SocketAddr> {
    endpoints.iter().map(Scripted::address).collect()
}

/// An endpoint's entry in `/services`.
#[track_caller]
fn entry(gateway: &Gateway, path: &str, endpoint: SocketAddr) -> Value {
    let page = gateway.admin("GET", path).json();
    let service = if page["items"].is_array() { &page["items"][0] } else { &page };
    let endpoints = service["endpoints"].as_array().unwrap_or_else(|| panic!("{page}"));
    let own = endpoints.iter().find(|one| one["address"] == endpoint.to_string());
    own.unwrap_or_else(|| panic!("{endpoint} in {page}")).clone()
}

/// Asserts 300 answers to 300 calls with 2, 3 and 10 endpoints, one or two of which accept and close.
#[track_caller]
fn all_are_answered(balance: &str) {
    let world = World::new();
    for (bad, of) in [(1, 2), (1, 3), (2, 3), (1, 10), (2, 10)] {
        let endpoints: Vec<_> =
            (0..of).map(|index| if index < bad { Scripted::unread(drop) } else { world.good() }).collect();
        let gateway = world.gateway(balance, &addresses(&endpoints), "");
        let answered = (0..CALLS).filter(|_| world.call(&gateway)).count();
        let came: usize = endpoints[..bad].iter().map(Scripted::accepted).sum();
        figure!(
            "{balance}, {bad} of {of} accept and close: {answered} of {CALLS} calls answered, {came} connections to the bad ones"
        );
        assert_eq!(answered, CALLS, "{balance}: {bad} of {of}");
    }
}

#[test]
fn demotion_loses_no_call_of_round_robin() {
    all_are_answered(POLICIES[0]);
}

#[test]
fn demotion_loses_no_call_of_random() {
    all_are_answered(POLICIES[1]);
}

#[test]
fn demotion_loses_no_call_of_least_connections() {
    all_are_answered(POLICIES[2]);
}

#[test]
fn demotion_loses_no_call_of_source_hash() {
    all_are_answered(POLICIES[3]);
}

/// If three attempts are not enough at first, each failed call demotes three endpoints, whether they close or
/// refuse.
#[test]
fn demotion_learns_three_bad_endpoints_per_failed_call() {
    let world = World::new();
    for balance in POLICIES {
        for bad in [3, 5, 9] {
            for refuses in [false, true] {
                let endpoints: Vec<_> = (bad..10).map(|_| world.good()).collect();
                let closers: Vec<_> = (0..bad).map(|_| Scripted::unread(drop)).collect();
                let mut list =
                    if refuses { (0..bad).map(|_| closed()).collect() } else { addresses(&closers) };
                list.extend(addresses(&endpoints));
                let gateway = world.gateway(balance, &list, "");
                let failed = (0..60).filter(|_| !world.call(&gateway)).count();
                let how = if refuses { "refuse" } else { "accept and close" };
                figure!("{balance}, {bad} of 10 {how}: {failed} of 60 calls failed");
                assert!(failed <= bad / 3, "{balance}, {bad} of 10 {how}: {failed} failed");
            }
        }
    }
}

/// A connection takes one turn regardless of its attempts: each of two endpoints is the first of half of the
/// calls.
#[test]
fn round_robin_retries_do_not_consume_turns() {
    let world = World::new();
    let endpoints = [Scripted::unread(drop), world.good()];
    let unbounded = "upstream: { demotion: off, replay: { ratio: 1, burst: 1000, source_share: 1 } }";
    let gateway = world.gateway("round_robin", &addresses(&endpoints), unbounded);
    let answered = (0..100).filter(|_| world.call(&gateway)).count();
    assert_eq!(answered, 100);
    assert_eq!(endpoints.each_ref().map(Scripted::accepted), [50, 100]);
}

/// Sends a hello that touchy endpoints reset, and closes at the first byte of an answer or without one.
fn send_broken(source: IpAddr, gateway: &Gateway) {
    let mut client = dial_from(source, gateway.address());
    client.write_all(&Hello::new(HOST).and(alpn(&[MARK])).bytes()).unwrap();
    let _answer = client.read(&mut [0]);
}

/// A client's hellos, from the same address as others or another one, rejected by all endpoints or by one, do
/// not affect the calls of others.
#[test]
fn demotion_cannot_be_steered_by_a_hostile_client() {
    let world = World::new();
    for (hostile, touchy) in [(NEIGHBOUR, 3), (STRANGER, 3), (NEIGHBOUR, 1), (STRANGER, 1)] {
        let endpoints: Vec<_> =
            (0..3).map(|index| if index < touchy { world.touchy() } else { world.good() }).collect();
        let gateway = world.gateway("random", &addresses(&endpoints), "");
        let done = AtomicBool::new(false);
        let (answered, broken) = std::thread::scope(|scope| {
            let hostile = scope.spawn(|| {
                let mut sent = 0;
                while !done.load(SeqCst) {
                    send_broken(hostile, &gateway);
                    sent += 1;
                }
                sent
            });
            let answered = (0..CALLS).filter(|_| world.call(&gateway)).count();
            done.store(true, SeqCst);
            (answered, hostile.join().unwrap())
        });
        assert_eq!(answered, CALLS);
        let mut served = Vec::new();
        for endpoint in &endpoints {
            let to = endpoint.address().to_string();
            let is_ours = |line: &isthmus_tests::log::Line| {
                line.text("endpoint") == to && line.0["alpn"].as_array().is_none_or(Vec::is_empty)
            };
            served.push(gateway.log().count(is_ours));
        }
        figure!(
            "{broken} broken hellos from {hostile}, {touchy} of 3 endpoints reset them: others' {CALLS} calls went to {served:?}"
        );
        assert!(served.iter().all(|count| *count >= CALLS / 10), "{served:?}");
        assert_eq!(gateway.metrics().sum("isthmus_ejections_total", &[]), 0.0);
    }
}

/// An alert to the gateway's own hello does not count. The endpoint is demoted for the source whose hello it
/// rejected, and for no other.
#[test]
fn demotion_by_alert_is_per_source_and_ignores_alerts_to_own_hello() {
    let world = World::new();
    let endpoints = [Scripted::alerting(112), world.good()];
    let gateway = world.gateway("round_robin", &addresses(&endpoints), "");
    let alerts = endpoints[0].address();
    assert!((0..40).all(|_| world.call(&gateway)));
    until("the endpoint has answered the gateway's own hello with an alert", || {
        entry(&gateway, "/services", alerts)["own_hello"] == "alert"
    });
    let explained = |source: IpAddr| {
        entry(&gateway, &format!("/explain?sni={HOST}&from={source}"), alerts)["demoted"].as_bool().unwrap()
    };
    assert!(explained(NEIGHBOUR) && !explained(STRANGER));
    let page = entry(&gateway, "/services", alerts);
    assert_eq!((&page["demoted"], &page["healthy"]), (&false.into(), &true.into()), "{page}");
    assert_eq!(gateway.metrics().sum("isthmus_endpoints_failing", &[]), 0.0);
    // A second source with the same result: demoted for all.
    assert!((0..40).all(|_| world.call_from(STRANGER, &gateway)));
    assert!(entry(&gateway, "/services", alerts)["demoted"] == true);
    assert_eq!(gateway.metrics().sum("isthmus_ejections_total", &[]), 0.0);
}

/// An endpoint that does not answer the own hello is demoted for all, then ejected, and returns once it
/// answers.
#[test]
fn demotion_by_unanswered_own_hello_ejects_until_answered() {
    let world = World::new();
    let is_well = Arc::new(AtomicBool::new(false));
    let (server, well) = (Arc::clone(&world.server), Arc::clone(&is_well));
    let ill = Scripted::unread(move |stream| {
        if well.load(SeqCst) {
            greet(&server, stream);
        }
    });
    let good = world.good();
    let gateway = world.gateway("round_robin", &[ill.address(), good.address()], "");
    assert!((0..4).all(|_| world.call(&gateway)));
    until("the endpoint fails the gateway's own hello", || {
        gateway.metrics().sum("isthmus_endpoints_failing", &[]) == 1.0
    });
    let page = entry(&gateway, "/services", ill.address());
    assert_eq!(page["demoted"], true, "{page}");
    // Closed with unread bytes, which the kernel may report as a reset.
    assert!(page["own_hello"] == "closed" || page["own_hello"] == "reset", "{page}");
    let status = gateway.admin("GET", "/status").json();
    assert_eq!(status["endpoints_failing"], 1, "{status}");
    until("the endpoint is ejected", || gateway.metrics().sum("isthmus_ejections_total", &[]) == 1.0);
    assert_eq!(entry(&gateway, "/services", ill.address())["healthy"], false);
    is_well.store(true, SeqCst);
    until("the endpoint is no longer demoted", || {
        assert!(world.call(&gateway));
        let page = entry(&gateway, "/services", ill.address());
        page["healthy"] == true && page["demoted"] == false
    });
    assert_eq!(gateway.metrics().sum("isthmus_endpoints_failing", &[]), 0.0);
    let before = ill.accepted();
    until("calls reach the endpoint", || {
        assert!(world.call(&gateway));
        ill.accepted() > before
    });
}

/// The gateway's own hello is valid for any TLS server and carries the service's name.
#[test]
fn own_hello_is_a_complete_client_hello_with_service_sni() {
    let world = World::new();
    let sent = Endpoint::new();
    let second = world.good();
    let services = service(HOST, &["port: 9080"], &[sent.address(), second.address()])
        + &service(HOST, &["port: 9081"], &[second.address()]);
    let gateway = Setup::new(services).start();
    let name = format!("outbound_.9080_._.{HOST}");
    let ours = hello(&name);
    let mut client = dial_from(NEIGHBOUR, gateway.address());
    client.write_all(&ours).unwrap();
    // Refused until this endpoint has its turn.
    let mut first = sent.accept();
    assert_eq!(read_exactly(&mut first, ours.len()), ours);
    drop(first);
    let mut own = sent.accept();
    let own = read_hello(&mut own).unwrap();
    assert_ne!(own, ours);
    assert!(own.windows(name.len()).any(|window| window == name.as_bytes()), "the hello lacks the name");
}

/// An only endpoint is neither demoted nor checked.
#[test]
fn demotion_spares_an_only_endpoint() {
    let world = World::new();
    let bad = Scripted::alerting(80);
    let gateway = world.gateway("round_robin", &[bad.address()], "");
    for round in 1..=5 {
        let mut client = dial_from(NEIGHBOUR, gateway.address());
        client.write_all(&hello(HOST)).unwrap();
        assert_eq!(rest(&mut client).0, alert(80));
        assert_eq!(bad.accepted(), round, "the gateway has sent its own hello");
    }
    assert_eq!(gateway.metrics().sum("isthmus_demotions_total", &[]), 0.0);
}
