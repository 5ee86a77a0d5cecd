//! Another cluster's gateways end the TLS of a service for applications without it. One that reaches no endpoint says that
//! it has delivered nothing, and the same bytes go to another one.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use isthmus_tests::client::{End, dial, read_exactly, reset, rest};
use isthmus_tests::cluster::Cluster;
use isthmus_tests::endpoint::{BlackHole, Scripted, closed, free};
use isthmus_tests::ends::{Domains, connect};
use isthmus_tests::figure;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::hello;
use isthmus_tests::log::Line;
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::wait::until;
use rustls::version::{TLS12, TLS13};

const STOCK: &str = "spiffe://east.example/ns/shop/sa/stock";
const CART: &str = "spiffe://west.example/ns/shop/sa/cart";
/// Each call sees both doors in turn.
const FORGETFUL: &str = "upstream: { demotion: off }";

/// East has two gateways, each with an endpoint of its own; west's gateway originates.
struct World {
    doors: [Gateway; 2],
    west: Gateway,
    _clusters: [Cluster; 2],
}

impl World {
    fn new(endpoints: [SocketAddr; 2], more: &str) -> World {
        let (mut east, mut west, at) = (Cluster::new("east"), Cluster::new("west"), [free(), free()]);
        east.trust_cluster(&west);
        west.trust_cluster(&east);
        for cluster in [&mut east, &mut west] {
            cluster.issue("1h");
            // Their addresses are known once they run.
            cluster.start();
            cluster.stop();
        }
        let gateways = [0, 1].map(|door| {
            let port = at[door].port();
            format!("{{ name: gw-{}, address: 127.0.0.1, port: {port}, identities: ['{STOCK}'] }}", door + 1)
        });
        east.set("gateways", &format!("[{}]", gateways.join(", ")));
        east.set("exports", "[{ hosts: ['*.shop'] }]");
        east.set("peers", &format!("[{}]", west.as_peer()));
        west.set("gateways", &format!("[{{ name: gw-1, identities: ['{CART}'] }}]"));
        west.set("imports", "[{ cluster: east, hosts: ['*.shop'], gatewayCIDRs: [127.0.0.0/8] }]");
        west.set("peers", &format!("[{}]", east.as_peer()));
        let all = endpoints.map(|endpoint| format!("{{ address: '{endpoint}' }}")).join(", ");
        east.register(
            "stock.yaml",
            &format!("services: [{{ host: stock.shop, port: 3306, tls: terminate, identities: ['{STOCK}'], access: {{ allow: ['{CART}'] }}, endpoints: [{all}] }}]"),
        );
        east.start();
        west.start();
        let doors = [0, 1].map(|door| {
            let keys = [
                "port: 3306",
                "tls: terminate",
                &format!("identities: ['{STOCK}']"),
                &format!("access: {{ allow: ['{CART}'] }}"),
            ];
            // Its own file comes before what its agent says: one endpoint for each door.
            let setup = Setup::new(service("stock.shop", &keys, &[endpoints[door]]))
                .with(more)
                .listeners(&format!("- {{ name: east-west, address: '{}' }}", at[door]));
            managed(&east, &format!("gw-{}", door + 1), setup).start()
        });
        let listener = format!(
            "- {{ name: app, address: '127.0.0.1:0', side: outbound, mode: originate, service: stock.shop, port: 3306, identity: '{CART}' }}"
        );
        let west_gateway =
            managed(&west, "gw-1", Setup::new("").with(FORGETFUL).listeners(&listener)).start();
        until("both doors are known", || {
            west_gateway.admin("GET", "/services").body.matches("\"address\"").count() == 2
        });
        for gateway in doors.iter().chain([&west_gateway]) {
            until("its certificates are there", || {
                gateway.metrics().sum("isthmus_certificate_expiry_seconds", &["/ns/shop/sa/"]) > 0.0
            });
        }
        World { doors, west: west_gateway, _clusters: [east, west] }
    }

    fn dial(&self) -> TcpStream {
        dial(self.west.at("listener app"))
    }

    /// Ends a call; returns its log line.
    fn line_of(&self, app: TcpStream) -> Line {
        let peer = app.local_addr().unwrap();
        drop(app);
        self.west.log().line_of(peer)
    }

    fn count(&self, metric: &str, labels: &[&str]) -> f64 {
        self.west.metrics().sum(metric, labels)
    }
}

/// A gateway that enrols with a token and keeps its trust in a directory of its own.
fn managed(cluster: &Cluster, name: &str, setup: Setup) -> Setup {
    let token = cluster.token(&["--gateway", name]).unwrap();
    let trust = cluster.path(&format!("trust-{name}")).display().to_string();
    setup
        .with(&format!("trust: {{ directory: {trust}, token: {token} }}"))
        .with(&format!("node: {{ cluster: {} }}", cluster.name()))
        .with(&format!("xds: {{ agents: ['{}'] }}", cluster.agent_address()))
}

/// A service whose client speaks first: it echoes.
fn echoing() -> Scripted {
    Scripted::unread(|mut stream| {
        let _gone = stream.try_clone().and_then(|mut from| std::io::copy(&mut from, &mut stream));
    })
}

#[test]
fn door_without_an_endpoint_loses_no_call_and_delivers_nothing_twice() {
    let good = echoing();
    let world = World::new([closed(), good.address()], "");
    let mut moved = 0;
    for size in [1, 100, 20_000, 64 * 1024, 5, 60_000] {
        let mut app = world.dial();
        let sent: Vec<_> = (0..size).map(|index: usize| index.to_le_bytes()[0]).collect();
        app.write_all(&sent).unwrap();
        assert_eq!(read_exactly(&mut app, size), sent, "{size} bytes");
        let line = world.line_of(app);
        moved += u32::from(line.number("attempts") == 2);
        assert_eq!(
            (line.number("bytes_in"), line.number("bytes_out")),
            (size as u64, size as u64),
            "{line:?}"
        );
    }
    assert!(moved >= 2, "the door without an endpoint was tried {moved} times");
    assert_eq!(world.count("isthmus_moves_total", &[r#"reason="upstream_rejected""#]), f64::from(moved));
    assert_eq!(world.count("isthmus_lost_after_bytes_total", &[]), 0.0);
    assert_eq!(good.accepted(), 6, "connections of the endpoint");
    until("no memory is held", || world.count("isthmus_hello_memory_bytes", &[]) == 0.0);
    figure!("6 calls of applications without TLS, {moved} moved from a door without an endpoint: all served");
}

#[test]
fn door_without_an_endpoint_loses_no_call_of_a_server_that_speaks_first() {
    let good = Scripted::unread(|mut stream| {
        let _gone = stream.write_all(b"welcome").and_then(|()| stream.read(&mut [0]).map(drop));
    });
    let world = World::new([closed(), good.address()], "");
    let mut moved = 0;
    for _ in 0..4 {
        let mut app = world.dial();
        assert_eq!(read_exactly(&mut app, 7), b"welcome");
        moved += u32::from(world.line_of(app).number("attempts") == 2);
    }
    assert!(moved >= 1, "the door without an endpoint was never tried");
}

/// More than is held has left for a door that then reaches nobody.
#[test]
fn door_without_an_endpoint_loses_what_is_larger_than_64_kib() {
    let (hole, good) = (BlackHole::new(), echoing());
    let world = World::new([hole.address(), good.address()], "timeouts: { connect: 1s }");
    let sent = vec![7; 200_000];
    let mut ends = Vec::new();
    for _ in 0..2 {
        let mut app = world.dial();
        app.write_all(&sent).unwrap();
        let mut got = vec![0; sent.len()];
        ends.push(app.read_exact(&mut got).is_ok());
        let line = world.line_of(app);
        assert_eq!(line.number("attempts"), 1, "{line:?}");
    }
    ends.sort_unstable();
    assert_eq!(ends, [false, true]);
    assert_eq!(world.count("isthmus_lost_after_bytes_total", &[]), 1.0);
    assert_eq!(world.count("isthmus_moves_total", &[]), 0.0);
    assert_eq!(good.accepted(), 1);
}

#[test]
fn door_never_gets_a_call_again_after_the_servers_first_byte() {
    let failing = || {
        Scripted::unread(|mut stream| {
            let mut asked = [0; 5];
            let _gone = stream.read_exact(&mut asked).and_then(|()| stream.write_all(b"+"));
            // The application has the byte before the end.
            let _gone = stream.read(&mut asked);
            reset(stream);
        })
    };
    let endpoints = [failing(), failing()];
    let world = World::new([endpoints[0].address(), endpoints[1].address()], "");
    let mut app = world.dial();
    app.write_all(b"hello").unwrap();
    assert_eq!(read_exactly(&mut app, 1), b"+");
    app.write_all(b"!").unwrap();
    assert_eq!(rest(&mut app), (Vec::new(), End::Reset));
    assert_eq!(world.line_of(app).number("attempts"), 1);
    assert_eq!(endpoints[0].accepted() + endpoints[1].accepted(), 1);
    assert_eq!(world.count("isthmus_lost_after_bytes_total", &[]), 1.0);
    let accepted: f64 = world
        .doors
        .iter()
        .map(|door| door.metrics().sum("isthmus_connections_ended_total", &[r#"reason="server_reset""#]))
        .sum();
    assert_eq!(accepted, 1.0);
}

/// What a door without an endpoint tells every client whose TLS it has ended.
#[test]
fn door_without_an_endpoint_ends_the_session_with_alert_80() {
    let domains = Domains::new();
    let gateway = domains.terminating(&["app"], closed()).start();
    domains.issue("east", "app");
    let mut tls = connect(&domains.client_of("east", "app", &[&TLS13]), gateway.address());
    tls.write_all(b"hello").unwrap();
    let error = tls.read(&mut [0]).unwrap_err().to_string();
    assert!(error.contains("InternalError"), "{error}");
    // rustls cannot send it in TLS 1.2: the client is reset, as before.
    let mut tls = connect(&domains.client_of("east", "app", &[&TLS12]), gateway.address());
    let refused = tls.write_all(b"hello").and_then(|()| tls.read_exact(&mut [0])).unwrap_err();
    assert!(!refused.to_string().contains("InternalError"), "{refused}");
    let ended = gateway.metrics().sum("isthmus_connections_ended_total", &[r#"reason="connect_refused""#]);
    assert_eq!(ended, 2.0);
}

/// A gateway that passes TLS through says in the clear that it has no endpoint: the connection moves, the gateway asks for
/// itself, and nothing that a client has caused changes health.
#[test]
fn gateway_without_an_endpoint_is_asked_and_stays_healthy() {
    let far = Setup::new(service(super::HOST, &[], &[closed()])).start();
    let good = Scripted::echo(b"+");
    let keys = ["balance: round_robin"];
    let more = "upstream: { ejection: { failures: 1, base: 300s, max: 300s, max_percent: 100 } }";
    let near = super::gateway(&keys, &[far.address(), good.address()], more);
    let asked = || near.metrics().sum("isthmus_hello_checks_total", &[r#"result="alert""#]);
    let mut moved = 0;
    until("the far gateway was tried and asked", || {
        moved += super::call(&near, &hello(super::HOST)).number("attempts") - 1;
        moved > 0 && asked() > 0.0
    });
    assert_eq!(near.metrics().sum("isthmus_ejections_total", &[]), 0.0);
    let page = near.admin("GET", "/services").json();
    let endpoints = page["items"][0]["endpoints"].as_array().unwrap();
    assert!(endpoints.iter().all(|endpoint| endpoint["healthy"] == true), "{page}");
}
