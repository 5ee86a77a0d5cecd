//! How a listener for applications without TLS finds the service of a connection: by ports of a range and by bound virtual
//! addresses, as bindings come and go. What is redirected by the kernel is in `capture`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use isthmus_model::admin::gateway::{Explanation, Listener};
use isthmus_tests::client::{dial, dial_reset, echo};
use isthmus_tests::endpoint::Scripted;
use isthmus_tests::ends::{Domains, id, tls_endpoint};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::is_root;
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::wait::until;

/// Loopback addresses of this test alone.
fn own(last: u8) -> Ipv4Addr {
    let [low, high, ..] = std::process::id().to_le_bytes();
    Ipv4Addr::new(127, 64 | (high & 63), low, last)
}

/// An mTLS endpoint with this identity, which names itself and echoes.
fn named(domains: &Domains, name: &'static str) -> Scripted {
    domains.issue("east", name);
    tls_endpoint(domains.server(name), move |tls| {
        let _gone = tls.write_all(name.as_bytes());
        let mut got = [0; 64];
        while let Ok(length @ 1..) = tls.read(&mut got) {
            let _gone = tls.write_all(&got[..length]);
        }
    })
}

/// The services `a.example` and `b.example`, each with an identity of its own.
struct World {
    domains: Domains,
    services: [Scripted; 2],
}

impl World {
    fn new() -> World {
        let domains = Domains::new();
        domains.issue("east", "app");
        let services = ["server-a", "server-b"].map(|name| named(&domains, name));
        World { domains, services }
    }

    fn setup(&self, listener: &str, bindings: &str) -> Setup {
        self.setup_with("", listener, bindings)
    }

    /// The same with more services.
    fn setup_with(&self, more: &str, listener: &str, bindings: &str) -> Setup {
        let files = self.domains.files("east", "app");
        let service = |host: &str, name: &str, endpoint: &Scripted| {
            let identities = format!("identities: [{}]", id("east", name));
            service(host, &["port: 3306", &identities], &[endpoint.address()])
        };
        let [a, b] = &self.services;
        Setup::new(service("a.example", "server-a", a) + &service("b.example", "server-b", b) + more)
            .with(&self.domains.trust_yaml())
            .with(bindings)
            .listeners(&format!(
                "- {{ name: apps, {listener}, side: outbound, mode: originate, identity: {}, sources: [127.0.0.0/8, '::1'], {files} }}",
                id("east", "app")
            ))
    }
}

/// Replaces the file while the gateway runs.
fn edit(gateway: &Gateway, setup: &Setup) {
    let before = gateway.status().reloads.applied;
    fs::write(gateway.file(), setup.yaml()).unwrap();
    until("the edit is live", || gateway.status().reloads.applied > before);
}

fn listener(gateway: &Gateway) -> Listener {
    gateway.status().listeners.remove(0)
}

fn until_open(gateway: &Gateway, count: u64) {
    until(&format!("{count} sockets are open"), || listener(gateway).open == Some(count));
}

#[track_caller]
fn leads_to(address: SocketAddr, name: &str) -> TcpStream {
    let mut app = dial(address);
    let mut greeting = vec![0; name.len()];
    app.read_exact(&mut greeting).unwrap();
    assert_eq!(String::from_utf8_lossy(&greeting), name);
    echo(&mut app, b"there");
    app
}

fn is_refused(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn explain(gateway: &Gateway, host: &str) -> Explanation {
    gateway.admin("GET", &format!("/explain?sni={host}")).page()
}

fn of_ports(bindings: &[(&str, u16)]) -> String {
    let one = |(host, port): &(&str, u16)| {
        format!("- {{ host: {host}, ports: [{{ port: 3306, listener_port: {port} }}] }}\n")
    };
    format!("bindings:\n{}", bindings.iter().map(one).collect::<String>())
}

#[test]
fn listener_ports_open_and_close_with_bindings() {
    let world = World::new();
    let ports = format!("address: '{}:0', ports: 20000-20009", own(1));
    let at = |port| SocketAddr::from((own(1), port));
    let setup = |bindings| world.setup(&ports, &of_ports(bindings));
    let gateway = setup(&[("a.example", 20_001)]).start();
    until_open(&gateway, 1);
    let mut first = leads_to(at(20_001), "server-a");
    let second = leads_to(at(20_001), "server-a");
    let own = second.local_addr().unwrap();
    drop(second);
    assert_eq!(gateway.log().line_of(own).text("caller"), id("east", "app"));
    assert!(is_refused(at(20_002)));
    assert_eq!(explain(&gateway, "a.example").ends.reached_at, [at(20_001).to_string()]);
    // One outside the range belongs to another listener.
    edit(&gateway, &setup(&[("a.example", 20_001), ("b.example", 30_000)]));
    assert!(is_refused(at(30_000)));
    edit(&gateway, &setup(&[("a.example", 20_001), ("b.example", 20_002)]));
    until_open(&gateway, 2);
    leads_to(at(20_002), "server-b");
    edit(&gateway, &setup(&[("b.example", 20_002)]));
    until_open(&gateway, 1);
    assert!(is_refused(at(20_001)));
    echo(&mut first, b"lives on");
    // The same port for another service.
    edit(&gateway, &setup(&[("b.example", 20_001)]));
    until("the port leads to b", || {
        TcpStream::connect(at(20_001)).is_ok_and(|mut app| {
            let mut greeting = [0; 8];
            app.read_exact(&mut greeting).is_ok() && greeting == *b"server-b"
        })
    });
}

#[test]
fn listener_port_in_use_is_named_and_costs_no_other() {
    let world = World::new();
    let taken = TcpListener::bind((own(2), 20_001)).unwrap();
    let ports = format!("address: '{}:0', ports: 20000-20009", own(2));
    let gateway = world.setup(&ports, &of_ports(&[("a.example", 20_001), ("b.example", 20_002)])).start();
    until_open(&gateway, 1);
    leads_to((own(2), 20_002).into(), "server-b");
    let not_open = listener(&gateway).not_open;
    assert_eq!(not_open.len(), 1);
    assert_eq!(not_open[0].address, format!("{}:20001", own(2)));
    assert!(not_open[0].why.contains("another socket has it"), "{not_open:?}");
    drop(taken);
    until_open(&gateway, 2);
    leads_to((own(2), 20_001).into(), "server-a");
    assert_eq!(listener(&gateway).not_open, []);
}

/// As istio#39080: a port that the service does not declare is refused at once, and leads to no other service.
#[test]
fn bound_virtual_address_serves_declared_ports_alone() {
    let world = World::new();
    let bindings = format!(
        "bindings:\n- {{ host: a.example, addresses: [{}], ports: [{{ port: 3306 }}] }}\n\
         - {{ host: b.example, addresses: [{}], ports: [{{ port: 3306 }}] }}\n",
        own(3),
        own(4)
    );
    let setup = world.setup("virtual_addresses: bind", &bindings);
    let setup = if is_root() { setup.nobody() } else { setup };
    world.domains.give_to_nobody();
    let gateway = setup.start();
    until_open(&gateway, 2);
    leads_to((own(3), 3306).into(), "server-a");
    leads_to((own(4), 3306).into(), "server-b");
    for port in [80, 3307] {
        assert!(is_refused((own(3), port).into()));
    }
    assert_eq!(explain(&gateway, "b.example").ends.reached_at, [format!("{}:3306", own(4))]);
    edit(&gateway, &world.setup("virtual_addresses: bind", "bindings: []"));
    until_open(&gateway, 0);
    assert!(is_refused((own(3), 3306).into()));
}

/// An endpoint with a virtual address would lead back here.
#[test]
fn bound_virtual_address_as_an_endpoint_is_a_loop() {
    let world = World::new();
    let identities = format!("identities: [{}]", id("east", "server-a"));
    let back = service("c.example", &["port: 3306", &identities], &[(own(5), 3306).into()]);
    let bindings = format!(
        "bindings:\n- {{ host: a.example, addresses: [{}], ports: [{{ port: 3306 }}] }}\n\
         - {{ host: c.example, addresses: [{}], ports: [{{ port: 3306 }}] }}\n",
        own(5),
        own(6)
    );
    let gateway = world.setup_with(&back, "virtual_addresses: bind", &bindings).start();
    until_open(&gateway, 2);
    dial_reset((own(6), 3306).into());
    gateway.log().wait("the refusal", |line| line.reason() == "loop");
    leads_to((own(5), 3306).into(), "server-a");
    assert_eq!(listener(&gateway).accepted, 2);
}

/// As cortex#485: what dials a capture listener itself was not redirected. By other addresses of this machine, in
/// `capture`.
#[test]
fn capture_listener_dialled_itself_refuses_each_once() {
    let world = World::new();
    let listener_keys = "address: '[::]:0', ipv6_only: false, original_destination: redirect";
    let gateway = world.setup(listener_keys, "bindings: []").start();
    let port = gateway.at("listener apps").port();
    assert_eq!(listener(&gateway).accepted, 0);
    let refusals = || gateway.log().count(|line| line.reason() == "destination_unmatched");
    let mut before = usize::MAX;
    // What the gateway opens once is open after the first two.
    for (round, address) in ["127.0.0.1", "[::1]", "127.0.0.1", "[::1]"].iter().enumerate() {
        if round == 2 {
            before = gateway.process().descriptors();
        }
        dial_reset(format!("{address}:{port}").parse().unwrap());
        until(&format!("{address} is refused"), || refusals() == round + 1);
    }
    until("all descriptors are back", || gateway.process().descriptors() <= before);
    assert_eq!(listener(&gateway).accepted, 4);
}
