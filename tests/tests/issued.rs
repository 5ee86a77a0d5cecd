//! Certificates of callers and of terminated services come from the agent: gateways request what they are granted, hold it
//! in memory, renew it under live connections, and refuse visibly without it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic anywhere"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use isthmus_certs::facts::Facts;
use isthmus_certs::{Identity, SpiffeId, Trust};
use isthmus_tests::client::{End, dial, echo, rest};
use isthmus_tests::cluster::{Cluster, outbound};
use isthmus_tests::endpoint::{Scripted, free};
use isthmus_tests::figure;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::log::Line;
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::sidecarless::{issued, managed};
use isthmus_tests::wait::{until, until_some};
use isthmus_tests::workload::{Caller, files};
use isthmus_trust::enrolment::{NotIssued, Workloads};
use tokio::runtime::Runtime;

const STOCK: &str = "spiffe://east.example/ns/shop/sa/stock";
const CART: &str = "spiffe://west.example/ns/shop/sa/cart";
const CLIENT: &str = "spiffe://west.example/ns/bookinfo/sa/client";

/// A service without TLS that greets with 8 bytes and echoes.
fn greeter(greeting: &'static [u8; 8]) -> Scripted {
    Scripted::unread(move |mut stream| {
        let _gone = stream.write_all(greeting).and_then(|()| {
            let mut from = stream.try_clone()?;
            io::copy(&mut from, &mut stream)
        });
    })
}

/// East exports terminated services, west imports them. Each has a gateway that gets everything from its agent.
struct World {
    east: Cluster,
    west: Cluster,
    /// The address of east's gateway for other clusters.
    door: SocketAddr,
}

impl World {
    fn new(longest: &str) -> World {
        let (mut east, mut west, door) = (Cluster::new("east"), Cluster::new("west"), free());
        east.trust_cluster(&west);
        west.trust_cluster(&east);
        for cluster in [&mut east, &mut west] {
            cluster.issue(longest);
            // Their addresses are known once they run.
            cluster.start();
            cluster.stop();
        }
        let port = door.port();
        east.set(
            "gateways",
            &format!("[{{ name: gw-1, address: 127.0.0.1, port: {port}, identities: ['spiffe://east.example/ns/shop/*'] }}]"),
        );
        west.set("gateways", &format!("[{{ name: gw-1, identities: ['{CART}'] }}]"));
        east.set("exports", "[{ hosts: ['*.shop'] }]");
        west.set(
            "imports",
            "[{ cluster: east, hosts: ['*.shop', stock.example], gatewayCIDRs: [127.0.0.0/8] }]",
        );
        east.set("peers", &format!("[{}]", west.as_peer()));
        west.set("peers", &format!("[{}]", east.as_peer()));
        for cluster in [&mut east, &mut west] {
            cluster.start();
        }
        World { east, west, door }
    }

    /// East's gateway; its own file opens the door of `stock.shop` to these callers.
    fn east_gateway(&self, allow: &[&str], endpoint: SocketAddr) -> Gateway {
        let access = format!("access: {{ allow: [{}] }}", allow.join(", "));
        let identities = format!("identities: ['{STOCK}']");
        let keys = ["port: 3306", "aliases: [stock.example]", "tls: terminate", &identities, &access];
        let setup = Setup::new(service("stock.shop", &keys, &[endpoint]))
            .listeners(&format!("- {{ name: east-west, address: '{}' }}", self.door));
        managed(&self.east, setup).start()
    }

    /// West's gateway, with an application's listener `app` that originates as `identity`.
    fn west_gateway(&self, identity: &str) -> Gateway {
        let setup = Setup::new(service(
            "stock.shop",
            &["port: 3306", &format!("identities: ['{STOCK}']")],
            &[self.door],
        ))
        .listeners(&listeners(identity));
        managed(&self.west, setup).start()
    }

    fn register(&self, name: &str, keys: &str, endpoint: SocketAddr) {
        self.east.register(
            &format!("{name}.yaml"),
            &format!("services: [{{ host: {name}.shop, {keys}, tls: terminate, identities: ['{STOCK}'], endpoints: [{{ address: '{endpoint}' }}] }}]"),
        );
    }
}

fn listeners(identity: &str) -> String {
    format!(
        "- {{ name: outbound, address: '127.0.0.1:0', side: outbound }}\n\
         - {{ name: app, address: '127.0.0.1:0', side: outbound, mode: originate, service: stock.shop, port: 3306, identity: '{identity}' }}"
    )
}

fn app(gateway: &Gateway) -> SocketAddr {
    gateway.at("listener app")
}

/// Waits until a gateway has every certificate that it needs.
#[track_caller]
fn until_issued(gateway: &Gateway) {
    until("the gateway has its certificates", || {
        let issued = issued(gateway);
        !issued.is_empty() && issued.iter().all(|one| one.not_after.is_some() && one.problem.is_none())
    });
}

/// A connection of the application that has been greeted.
fn greeted(address: SocketAddr, greeting: &[u8; 8]) -> Option<TcpStream> {
    let mut stream = dial(address);
    let mut got = [0; 8];
    io::Read::read_exact(&mut stream, &mut got).ok()?;
    (got == *greeting).then_some(stream)
}

fn all_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { all_files(&path) } else { vec![path] }).collect()
}

#[test]
fn issued_plain_application_reaches_plain_service_of_another_cluster() {
    let world = World::new("1h");
    let backend = greeter(b"stock...");
    world.register("stock", "port: 3306, aliases: [stock.example]", backend.address());
    let east = world.east_gateway(&[CART], backend.address());
    let west = world.west_gateway(CART);
    until_issued(&east);
    until_issued(&west);
    let mut stream = until_some("the application is greeted", || greeted(app(&west), b"stock..."));
    echo(&mut stream, b"hello");
    let own = stream.local_addr().unwrap();
    drop(stream);
    let line = west.log().line_of(own);
    assert_eq!((line.text("caller"), line.text("server_identity")), (CART, STOCK), "{line:?}");
    let line = east.log().wait("the connection", |line| line.text("caller") == CART);
    assert_eq!(line.text("sni"), "stock.shop");
    // Of another caller the service sees nothing.
    let accepted = backend.accepted();
    let stranger = Caller::in_cluster(&world.west);
    assert!(stranger.call(world.door, "stock.shop").unwrap_err().contains("AccessDenied"));
    let line = east.log().wait("the refusal", |line| line.text("caller") == CLIENT);
    assert_eq!((line.reason(), backend.accepted()), ("identity_denied", accepted), "{line:?}");

    for (cluster, gateway) in [(&world.east, &east), (&world.west, &west)] {
        // The gateway's own key alone is on a disk, whatever links lead to it.
        let files = all_files(&cluster.path("gateway-trust")).into_iter();
        let texts = files.map(|file| fs::read_to_string(file).unwrap());
        let keys: BTreeSet<_> = texts.filter(|text| text.contains("PRIVATE KEY")).collect();
        assert_eq!(keys.len(), 1);
        let pages = ["/status", "/config", "/services"].map(|page| gateway.admin("GET", page).body).concat();
        assert!(!pages.contains("PRIVATE KEY") && !gateway.errors().concat().contains("PRIVATE KEY"));
        assert_eq!(gateway.metrics().sum("isthmus_issued_missing", &[]), 0.0);
        assert!(gateway.metrics().sum("isthmus_certificate_expiry_seconds", &["/ns/shop/sa/"]) > 0.0);
    }
}

/// What a gateway of a cluster is given for an identity.
fn requested(cluster: &Cluster, gateway: &str, wanted: &str) -> Result<Identity, NotIssued> {
    let trust = Trust::load(&files(cluster, gateway)).unwrap();
    let known = trust.current().bundles.get(trust.current().identity.id().trust_domain()).cloned();
    let agents = vec![cluster.agent_address().to_string().parse().unwrap()];
    let workloads = Workloads::new(trust, agents, &cluster.name().parse().unwrap()).unwrap();
    let wanted = SpiffeId::parse(wanted).unwrap();
    Runtime::new().unwrap().block_on(workloads.certificate(&wanted, known.as_ref()))
}

#[test]
fn issued_certificate_is_of_a_granted_workload_with_the_names_of_its_services() {
    let mut cluster = Cluster::new("east");
    cluster.issue("1h");
    cluster.set(
        "gateways",
        "[{ name: gw-1, identities: ['spiffe://east.example/ns/shop/*', 'spiffe://east.example/ns/db/sa/mysql'] }, { name: gw-2 }]",
    );
    cluster.start();
    let names = |identity: &Identity| Facts::read(&identity.chain()[0]).unwrap().dns;
    cluster.register(
        "stock.yaml",
        &format!("services: [{{ host: stock.shop, aliases: [s.example, '*.s.example'], tls: terminate, identities: ['{STOCK}'] }}, {{ host: passed.shop, identities: ['{STOCK}'] }}]"),
    );
    until("the certificate has the names of the service", || {
        names(&requested(&cluster, "gw-1", STOCK).unwrap()) == ["*.s.example", "s.example", "stock.shop"]
    });
    let caller = requested(&cluster, "gw-1", "spiffe://east.example/ns/shop/sa/cart").unwrap();
    assert!(names(&caller).is_empty(), "a caller has no names");
    assert!(requested(&cluster, "gw-1", "spiffe://east.example/ns/db/sa/mysql").is_ok());
    let refused = cluster.status().issuing.unwrap().refused;
    let others = [
        ("gw-1", "spiffe://east.example/ns/db/sa/mysql2"),
        ("gw-1", "spiffe://east.example/ns/shopping/sa/cart"),
        ("gw-1", "spiffe://east.example/isthmus/east/gateway/gw-2"),
        ("gw-1", "spiffe://east.example/isthmus/east/agent/a"),
        ("gw-1", "spiffe://west.example/ns/shop/sa/cart"),
        ("gw-2", STOCK),
        // A workload gets its own alone.
        ("client", STOCK),
    ];
    for (gateway, wanted) in others {
        let Err(NotIssued::Refused(why)) = requested(&cluster, gateway, wanted) else {
            panic!("{gateway}: {wanted}")
        };
        let expected = "list it in `identities` of this gateway under `gateways:` of the agent";
        assert!(why.contains(wanted) && why.contains(expected), "{why}");
    }
    assert_eq!(cluster.status().issuing.unwrap().refused, refused + others.len() as u64);
    until("the agent has logged the refusals", || {
        let lines = cluster.log_lines();
        lines.iter().filter(|line| line.contains("certificate request refused")).count() == others.len()
    });
}

#[test]
fn issued_identity_that_is_not_granted_refuses_its_callers_until_it_is() {
    let mut world = World::new("1h");
    let backend = greeter(b"stock...");
    let other = "spiffe://west.example/ns/shop/sa/other";
    let east = world.east_gateway(&[other], backend.address());
    let west = world.west_gateway(other);
    until_issued(&east);
    let problem = until_some("the status says why", || issued(&west).first()?.problem.clone());
    assert!(problem.contains(other) && problem.contains("list it in `identities`"), "{problem}");
    let mut stream = dial(app(&west));
    assert_eq!(rest(&mut stream), (Vec::new(), End::Reset));
    let line = west.log().line_of(stream.local_addr().unwrap());
    assert_eq!(line.reason(), "tls_failed", "{line:?}");
    let why = line.text("tls_error");
    assert!(
        why.starts_with("the agent has issued no certificate for ") && why.contains("may not have"),
        "{why}"
    );
    assert_eq!(west.metrics().sum("isthmus_issued_missing", &[]), 1.0);
    assert!(west.errors().iter().any(|line| line.contains("no certificate from the agent")));
    world.west.stop();
    world.west.set("gateways", &format!("[{{ name: gw-1, identities: ['{other}'] }}]"));
    world.west.start();
    until("the application is greeted", || greeted(app(&west), b"stock...").is_some());
    assert_eq!(west.metrics().sum("isthmus_issued_missing", &[]), 0.0);
}

/// Whose identity is not a gateway's any more, it does not present: neither to new connections nor to live ones.
#[test]
fn issued_identity_that_is_taken_back_is_given_up_and_ends_its_connections() {
    let mut world = World::new("1h");
    let backend = greeter(b"stock...");
    let east = world.east_gateway(&[CART], backend.address());
    let west = world.west_gateway(CART);
    let mut live = until_some("the application is greeted", || greeted(app(&west), b"stock..."));
    let set = |cluster: &mut Cluster, gateways: &str| {
        cluster.stop();
        cluster.set("gateways", gateways);
        cluster.start();
    };
    let is_ended = |gateway: &Gateway, identity: &str, line: &Line| {
        let missing = || gateway.metrics().sum("isthmus_issued_missing", &[]) == 1.0;
        until("the certificate is given up", missing);
        assert_eq!(line.reason(), "identity_denied", "{line:?}");
        let problem = until_some("the status says why", || issued(gateway).first()?.problem.clone());
        assert!(problem.contains("`identities`"), "{identity}: {problem}");
        let mut refused = dial(app(&west));
        assert_eq!(rest(&mut refused), (Vec::new(), End::Reset));
    };

    // Of a caller.
    let granted = format!("[{{ name: gw-1, identities: ['{CART}'] }}]");
    set(&mut world.west, "[{ name: gw-1, identities: ['spiffe://west.example/ns/shop/sa/cart2'] }]");
    assert_eq!(rest(&mut live).1, End::Reset);
    is_ended(&west, CART, &west.log().line_of(live.local_addr().unwrap()));
    set(&mut world.west, &granted);
    live = until_some("the application is greeted again", || greeted(app(&west), b"stock..."));

    // Of a service whose TLS ends here. That the agent is away, or comes back as it was, ends nothing.
    let port = world.door.port();
    let of_east = |identities: &str| {
        format!("[{{ name: gw-1, address: 127.0.0.1, port: {port}, identities: [{identities}] }}]")
    };
    set(&mut world.east, &of_east(&format!("'{STOCK}'")));
    until("the agent is back", || east.status().agent.is_some_and(|agent| agent.connected));
    echo(&mut live, b"still here");
    set(&mut world.east, &of_east(""));
    assert_eq!(rest(&mut live).1, End::Reset);
    let line = east.log().wait("the end", |line| line.reason() == "identity_denied");
    is_ended(&east, STOCK, &line);
}

#[test]
fn issued_certificates_are_absent_after_a_restart_without_an_agent() {
    let mut world = World::new("1h");
    let backend = greeter(b"stock...");
    let mut east = world.east_gateway(&[CART], backend.address());
    let west = world.west_gateway(CART);
    until("the application is greeted", || greeted(app(&west), b"stock...").is_some());
    // A gateway that has its certificates goes on without its agent.
    world.east.stop();
    assert!(greeted(app(&west), b"stock...").is_some());
    east.kill();
    let east = Setup::new(service(
        "stock.shop",
        &[
            "port: 3306",
            "tls: terminate",
            &format!("identities: ['{STOCK}']"),
            &format!("access: {{ allow: ['{CART}'] }}"),
        ],
        &[backend.address()],
    ))
    .listeners(&format!("- {{ name: east-west, address: '{}' }}", world.door))
    .with(&format!("trust: {{ directory: {} }}", world.east.path("gateway-trust").display()))
    .with(&format!("xds: {{ agents: ['{}'] }}", world.east.agent_address()))
    .start();
    let accepted = backend.accepted();
    let mut stream = dial(app(&west));
    assert_eq!(rest(&mut stream), (Vec::new(), End::Reset));
    let line = east.log().wait("the refusal", |line| line.reason() == "tls_failed");
    assert!(line.text("tls_error").contains("the agent has issued no certificate for"), "{line:?}");
    assert_eq!(backend.accepted(), accepted);
    until("a certificate is missing", || east.metrics().sum("isthmus_issued_missing", &[]) > 0.5);
    until("the status says why", || issued(&east)[0].problem.is_some());
    world.east.start();
    until("the application is greeted again", || greeted(app(&west), b"stock...").is_some());
}

#[test]
fn issued_certificates_are_renewed_under_a_live_stream() {
    let world = World::new("6s");
    let backend = greeter(b"stock...");
    let east = world.east_gateway(&[CART], backend.address());
    let west = world.west_gateway(CART);
    let mut stream = until_some("the application is greeted", || greeted(app(&west), b"stock..."));
    let ends = |gateway: &Gateway| issued(gateway)[0].not_after.clone().unwrap_or_default();
    let (mut seen, mut count) = ([ends(&east), ends(&west)], [0, 0]);
    let (started, mut calls) = (Instant::now(), 0);
    // Three lives of both certificates.
    while count.iter().min() < Some(&4) {
        assert!(started.elapsed() < Duration::from_secs(90), "{count:?}");
        echo(&mut stream, b"still here");
        let mut new = greeted(app(&west), b"stock...").expect("a new connection is served meanwhile");
        echo(&mut new, b"new");
        calls += 1;
        for (index, now) in [ends(&east), ends(&west)].into_iter().enumerate() {
            if seen[index] != now {
                (seen[index], count[index]) = (now, count[index] + 1);
            }
        }
    }
    echo(&mut stream, b"still here");
    figure!("{calls} new connections during {count:?} renewals, and one that lasted");
}

#[test]
fn terminated_service_of_the_registry_is_closed_and_reached_through_its_gateway_alone() {
    let mut world = World::new("1h");
    // One network, in which the endpoint could be reached.
    for cluster in [&mut world.east, &mut world.west] {
        cluster.stop();
        cluster.set("network", "one-net");
    }
    let imports =
        "[{ cluster: east, hosts: ['*.shop'], gatewayCIDRs: [127.0.0.0/8], endpointCIDRs: [127.0.0.0/8] }]";
    world.west.set("imports", imports);
    let as_peer =
        |cluster: &Cluster| cluster.as_peer().replace(&format!("{}-net", cluster.name()), "one-net");
    let (of_east, of_west) = (as_peer(&world.east), as_peer(&world.west));
    world.east.set("peers", &format!("[{of_west}]"));
    world.west.set("peers", &format!("[{of_east}]"));
    world.east.start();
    world.west.start();
    let (stock, closed) = (greeter(b"stock..."), greeter(b"closed.."));
    world.register("stock", "port: 3306", stock.address());
    world.register("closed", "port: 3306", closed.address());
    let east = world.east_gateway(&[CLIENT], stock.address());
    let west = world.west_gateway(CART);
    until_issued(&east);
    let caller = Caller::in_cluster(&world.west);
    until("the registry's service is known in west", || !caller.is_unknown(outbound(&west), "closed.shop"));
    let why = caller.call(outbound(&west), "closed.shop").unwrap_err();
    assert!(why.contains("AccessDenied"), "{why}");
    let line = east.log().wait("the refusal", |line| line.text("sni") == "closed.shop");
    assert_eq!((line.reason(), line.text("caller")), ("identity_denied", CLIENT), "{line:?}");
    assert_eq!(closed.accepted(), 0);
    let page = west.admin("GET", "/services").body;
    assert!(
        page.contains(&world.door.to_string()) && !page.contains(&closed.address().to_string()),
        "{page}"
    );
    assert!(!world.west.ask("/status").to_string().contains(&closed.address().to_string()));
    let explained = world.east.ask("/explain?host=closed.shop").to_string();
    assert!(!explained.contains("not_mtls"), "the gateway is the door: {explained}");
    // The same way with an open door.
    let answer = until_some("the open service answers", || caller.call(world.door, "stock.shop").ok());
    assert_eq!((answer.greeting.as_str(), answer.server.as_str()), ("stock...", STOCK));
}
