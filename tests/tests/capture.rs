//! Connections that nftables captures: both families, redirected and by TPROXY, of the gateway's machine and of others; what
//! is not captured is rejected, whether or not the gateway lives. Requires root, for namespaces, and `nft`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use isthmus_tests::client::{dial, dial_reset, echo};
use isthmus_tests::cluster::Cluster;
use isthmus_tests::endpoint::{Endpoint, Scripted};
use isthmus_tests::ends::{Domains, id, tls_endpoint};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::netns::{FAR, NEAR, Pair, inside, ip};
use isthmus_tests::setup::{NOBODY, Setup, service};
use isthmus_tests::wait::until;
use isthmus_tests::{binary, is_root, skip};

const NEAR_V6: &str = "fd00:77::1";
const FAR_V6: &str = "fd00:77::2";
/// The virtual addresses of `a.example`.
const VIRTUAL: [&str; 2] = ["240.15.0.7", "fd00:15::7"];
const PORT: u16 = 15_001;
/// How long a refusal may take: far less than a dial that nobody answers.
const AT_ONCE: Duration = Duration::from_secs(2);

/// The gateway's machine, near, and another one that reaches virtual addresses through it, far.
struct World {
    pair: Pair,
    gateway: Gateway,
    endpoint: Scripted,
    _domains: Domains,
}

fn requirements() -> Result<(), String> {
    if !is_root() {
        return Err("requires root".to_owned());
    }
    Command::new("nft").arg("--version").output().map(|_| ()).map_err(|error| format!("nft: {error}"))
}

/// The way in which a listener finds services.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Redirect,
    /// Needs a privilege, so the gateway runs as root.
    Tproxy,
    Bind,
}

/// A gateway with such a listener on every address, which has all clients of both machines as one caller.
fn world(way: Way) -> Result<World, String> {
    requirements()?;
    let pair = Pair::new()?;
    for (name, own) in [(&pair.near, NEAR_V6), (&pair.far, FAR_V6)] {
        pair.set(name, "net.ipv6.conf.veth0.accept_dad", "0");
        ip(&format!("-n {name} addr add {own}/64 dev veth0 nodad"))?;
    }
    // The way that applications look for virtual addresses at.
    for (family, near, far) in
        [("-4", NEAR.to_string(), FAR.to_string()), ("-6", NEAR_V6.into(), FAR_V6.into())]
    {
        ip(&format!("{family} -n {} route add default via {far}", pair.near))?;
        ip(&format!("{family} -n {} route add default via {near}", pair.far))?;
    }
    let domains = Domains::new();
    let files = domains.issue("east", "app");
    domains.issue("east", "server");
    let server = domains.server("server");
    let endpoint = inside(&pair.near, move || {
        tls_endpoint(server, |tls| {
            let _gone = tls.write_all(b"hi");
            let mut got = [0; 64];
            while let Ok(length @ 1..) = tls.read(&mut got) {
                let _gone = tls.write_all(&got[..length]);
            }
        })
    });
    domains.give_to_nobody();
    let identities = format!("identities: [{}]", id("east", "server"));
    let on_all = format!("address: '[::]:{PORT}', ipv6_only: false, original_destination");
    let (keys, users) = match way {
        Way::Redirect => (format!("{on_all}: redirect"), format!(", exclude_users: ['{NOBODY}']")),
        Way::Tproxy => (format!("{on_all}: tproxy"), String::new()),
        Way::Bind => ("virtual_addresses: bind".to_owned(), String::new()),
    };
    let listener = format!(
        "- {{ name: apps, {keys}, side: outbound, mode: originate, identity: {}, \
         sources: [127.0.0.1, 10.77.0.0/24, 'fd00:77::/64', 'fd00:15::1'], {files} }}",
        id("east", "app")
    );
    let [four, six] = VIRTUAL;
    let setup = Setup::new(service("a.example", &["port: 3306", &identities], &[endpoint.address()]))
        .with(&domains.trust_yaml())
        .with(&format!(
            "bindings: [{{ host: a.example, addresses: [{four}, '{six}'], ports: [{{ port: 3306 }}] }}]"
        ))
        .listeners(&listener)
        .namespace(&pair.near);
    let setup = match way {
        Way::Bind => setup,
        Way::Redirect | Way::Tproxy => {
            setup.with(&format!("capture: {{ ranges: [240.15.0.0/16, 'fd00:15::/64']{users} }}"))
        }
    };
    let setup = if way == Way::Tproxy { setup } else { setup.nobody() };
    Ok(World { gateway: setup.start(), pair, endpoint, _domains: domains })
}

impl World {
    /// Runs `isthmus-gateway capture` with the gateway's file on its machine.
    fn capture(&self, command: &str) -> Output {
        capture(&self.pair.near, command, &self.gateway.file())
    }

    fn apply(&self) {
        let output = self.capture("apply");
        assert!(output.status.success(), "{output:?}");
    }

    fn machines(&self) -> [&str; 2] {
        [&self.pair.near, &self.pair.far]
    }

    fn rules(&self) -> String {
        let output = on(&self.pair.near, "nft list ruleset");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn on(namespace: &str, command: &str) -> Output {
    let output = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{namespace}"))
        .args(command.split(' '))
        .output();
    output.unwrap()
}

fn capture(namespace: &str, command: &str, file: &Path) -> Output {
    on(namespace, &format!("{} capture {command} --config {}", binary::gateway().display(), file.display()))
}

fn virtual_address(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// Dials from a machine; how long it took, and what came of it.
fn try_dial(namespace: &str, address: SocketAddr) -> (Duration, io::Result<TcpStream>) {
    inside(namespace, move || {
        let begun = Instant::now();
        let dialled = TcpStream::connect_timeout(&address, Duration::from_secs(20));
        (begun.elapsed(), dialled)
    })
}

#[track_caller]
fn is_served(world: &World, namespace: &str, address: SocketAddr) {
    let mut app = inside(namespace, move || dial(address));
    let mut greeting = [0; 2];
    app.read_exact(&mut greeting).unwrap_or_else(|error| panic!("{address} from {namespace}: {error}"));
    echo(&mut app, b"there");
    let own = app.local_addr().unwrap();
    drop(app);
    assert_eq!(world.gateway.log().line_of(own).text("caller"), id("east", "app"));
}

/// Each way of capturing serves both families from both machines, is loaded twice as once, and leaves nothing behind.
fn captures(way: Way) {
    let world = match world(way) {
        Ok(world) => world,
        Err(why) => skip!("{why}"),
    };
    let before = world.rules();
    world.apply();
    let loaded = world.rules();
    world.apply();
    assert_eq!(world.rules(), loaded, "applied twice");
    for machine in world.machines() {
        for address in VIRTUAL {
            is_served(&world, machine, virtual_address(address, 3306));
        }
    }
    let accepted = world.endpoint.accepted();
    assert_eq!(accepted, 4);
    let refusals = || world.gateway.log().count(|line| line.reason() == "destination_unmatched");
    let is_refused = |machine: &str, address: SocketAddr| {
        let before = refusals();
        let took = inside(machine, move || dial_reset(address));
        assert!(took < AT_ONCE, "{address} from {machine}: {took:?}");
        until(&format!("{address} is refused once"), || refusals() == before + 1);
    };
    // As istio#39080: another port, and an address that no host has.
    for machine in world.machines() {
        for (address, port) in
            [(VIRTUAL[0], 80), (VIRTUAL[1], 80), ("240.15.0.8", 3306), ("fd00:15::8", 3306)]
        {
            is_refused(machine, virtual_address(address, port));
        }
    }
    // As cortex#485: the listener itself, by every address of its machine.
    let descriptors = world.gateway.process().descriptors();
    for address in ["127.0.0.1", "::1", &NEAR.to_string(), NEAR_V6] {
        is_refused(&world.pair.near, virtual_address(address, PORT));
    }
    until("all descriptors are back", || world.gateway.process().descriptors() <= descriptors);
    assert_eq!(world.endpoint.accepted(), accepted);
    // UDP to a virtual address goes nowhere.
    for address in VIRTUAL {
        let target = virtual_address(address, 3306);
        let refused = inside(&world.pair.near, move || {
            let any: SocketAddr =
                if target.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { "[::]:0".parse().unwrap() };
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            socket
                .send_to(b"x", target)
                .and_then(|_| socket.connect(target))
                .and_then(|()| socket.send(b"x").and_then(|_| socket.recv(&mut [0])))
        });
        assert!(refused.is_err(), "{address}");
    }
    assert!(world.capture("remove").status.success());
    assert_eq!(world.rules(), before);
    assert!(world.capture("remove").status.success(), "removed twice");
    for family in ["-4", "-6"] {
        let rules = on(&world.pair.near, &format!("ip {family} rule list"));
        assert!(!String::from_utf8_lossy(&rules.stdout).contains("fwmark"), "{rules:?}");
    }
}

#[test]
fn capture_redirects_to_the_service_of_the_virtual_address() {
    captures(Way::Redirect);
}

#[test]
fn capture_by_tproxy_keeps_the_virtual_address() {
    captures(Way::Tproxy);
}

/// Without privilege, nftables or an interface that has the addresses; the routes are those of the documentation.
#[test]
fn bound_virtual_addresses_serve_both_families_by_a_route() {
    let world = match world(Way::Bind) {
        Ok(world) => world,
        Err(why) => skip!("{why}"),
    };
    let near = &world.pair.near;
    ip(&format!("-4 -n {near} route add local 240.15.0.0/16 dev lo src 127.0.0.1")).unwrap();
    ip(&format!("-6 -n {near} addr add fd00:15::1 dev lo")).unwrap();
    ip(&format!("-6 -n {near} route add local fd00:15::/64 dev lo src fd00:15::1")).unwrap();
    until("both addresses are bound", || world.gateway.status().listeners[0].open == Some(2));
    for machine in world.machines() {
        for address in VIRTUAL {
            is_served(&world, machine, virtual_address(address, 3306));
        }
    }
    let (took, app) = try_dial(near, virtual_address(VIRTUAL[0], 80));
    assert!(app.is_err() && took < AT_ONCE, "{took:?}");
}

/// As openwrt#23480: with the gateway dead and the rules loaded a dial fails, and nothing leaves the machine.
fn fails_closed(way: Way) {
    let mut world = match world(way) {
        Ok(world) => world,
        Err(why) => skip!("{why}"),
    };
    world.apply();
    is_served(&world, &world.pair.near, virtual_address(VIRTUAL[0], 3306));
    world.gateway.kill();
    let from = world.machines();
    for (machine, address) in from.iter().flat_map(|machine| VIRTUAL.map(|address| (machine, address))) {
        let (took, app) = try_dial(machine, virtual_address(address, 3306));
        let error = app.expect_err("a captured dial without a gateway");
        assert!(took < AT_ONCE, "{address}: {error} after {took:?}");
    }
    // Whatever the rules let through arrives here, at the default route.
    let plain: Vec<Endpoint> = inside(&world.pair.far, || {
        VIRTUAL.iter().for_each(|address| on_lo(address));
        VIRTUAL.map(|address| Endpoint::at(virtual_address(address, 3306))).into()
    });
    for address in VIRTUAL {
        try_dial(&world.pair.near, virtual_address(address, 3306)).1.unwrap_err();
    }
    assert!(plain.iter().all(Endpoint::is_untouched));
    // The same dial without rules shows that it would have arrived.
    assert!(world.capture("remove").status.success());
    let (_, app) = try_dial(&world.pair.near, virtual_address(VIRTUAL[0], 3306));
    app.unwrap();
}

/// Adds an address to this thread's loopback interface.
fn on_lo(address: &str) {
    let mut command = Command::new("ip");
    command.args(["addr", "add", address, "dev", "lo"]);
    if address.contains(':') {
        // Usable at once: otherwise the kernel looks for duplicates in the background, on loopback, too.
        command.arg("nodad");
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn capture_fails_closed_without_a_gateway() {
    fails_closed(Way::Redirect);
}

#[test]
fn capture_by_tproxy_fails_closed_without_a_gateway() {
    fails_closed(Way::Tproxy);
}

/// Queries of all users but the agent's reach the agent's DNS server; its own reach the resolver.
#[test]
fn capture_sends_dns_queries_to_the_agent_but_not_its_own() {
    if let Err(why) = requirements() {
        skip!("{why}");
    }
    let pair = Pair::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.yaml");
    let text = capturing(&format!("dns: ['127.0.0.1:15053'], exclude_users: ['{NOBODY}']"));
    std::fs::write(&file, text).unwrap();
    let answering = |at: SocketAddr, answer: &'static [u8]| {
        let socket = UdpSocket::bind(at).unwrap();
        std::thread::spawn(move || {
            let mut query = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut query) {
                let _gone = socket.send_to(answer, from);
            }
        });
    };
    inside(&pair.near, move || answering((Ipv4Addr::LOCALHOST, 15_053).into(), b"agent"));
    inside(&pair.far, move || answering((FAR, 53).into(), b"resolver"));
    let asked_as = |user: &str| {
        let script = format!(
            "import socket;s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.settimeout(20);\
             s.sendto(b'q',('{FAR}',53));print(s.recv(64).decode())"
        );
        let output = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", pair.near))
            .args(["setpriv", &format!("--reuid={user}"), "--clear-groups", "python3", "-c", &script])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(asked_as("0"), "resolver");
    let output = capture(&pair.near, "apply", &file);
    assert!(output.status.success(), "{output:?}");
    assert_eq!((asked_as("0"), asked_as(&NOBODY.to_string())), ("agent".to_owned(), "resolver".to_owned()));
}

/// A DNS question for the address of a name.
fn question(name: &str) -> Vec<u8> {
    let mut packet = vec![0x15, 0x43, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).unwrap());
        packet.extend_from_slice(label.as_bytes());
    }
    packet.extend_from_slice(&[0, 0, 1, 0, 1]);
    packet
}

/// Asks from a machine; returns the code of the answer, its last four bytes, and how long it took.
fn ask(namespace: &str, server: SocketAddr, name: &str) -> (u8, Ipv4Addr, Duration) {
    let packet = question(name);
    inside(namespace, move || {
        let begun = Instant::now();
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.send_to(&packet, server).unwrap();
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).unwrap();
        let last: [u8; 4] = answer[length - 4..length].try_into().unwrap();
        (answer[3] & 15, last.into(), begun.elapsed())
    })
}

/// As dnscrypt-proxy#1937, through the capture: the agent's own queries are captured, too, and come back to it.
#[test]
fn capture_of_the_agents_own_queries_is_a_prompt_failure_and_no_storm() {
    if let Err(why) = requirements() {
        skip!("{why}");
    }
    const SERVFAIL: u8 = 2;
    let pair = Pair::new().unwrap();
    let mut cluster = Cluster::new("east").inside(&pair.near);
    cluster.set("virtual_addresses", "{ ipv4: 240.15.0.0/16 }");
    cluster.set(
        "dns",
        &format!(
            "{{ listen: '127.0.0.1:15053', clients: [127.0.0.0/8, 10.77.0.0/24], upstreams: ['{FAR}:53'] }}"
        ),
    );
    let database = service("db.shop", &["port: 3306"], &[(NEAR, 3306).into()]);
    cluster.register("db.yaml", &format!("services:\n{database}"));
    cluster.start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.yaml");
    std::fs::write(&file, capturing("dns: ['127.0.0.1:15053'], exclude_users: ['65532']")).unwrap();
    let output = capture(&pair.near, "apply", &file);
    assert!(output.status.success(), "{output:?}");
    let resolver = SocketAddr::from((FAR, 53));
    let before = cluster.process().time();
    let (code, _, took) = ask(&pair.near, resolver, "elsewhere.test");
    assert_eq!(code, SERVFAIL);
    assert!(took < AT_ONCE, "{took:?}");
    until("the own name is answered", || {
        let (code, address, _) = ask(&pair.near, resolver, "db.shop");
        code == 0 && address.octets()[..2] == [240, 15]
    });
    let busy = cluster.process().time() - before;
    assert!(busy < Duration::from_secs(1), "the agent was busy for {busy:?}");
}

/// A gateway's file with `capture:`, which is never run.
fn capturing(more: &str) -> String {
    format!(
        "trust: {{ certificate: a, key: b, bundles: c }}\n\
         listeners: [{{ address: '127.0.0.1:{PORT}', side: outbound, mode: originate, original_destination: redirect, \
         identity: spiffe://e.x/a, certificate: a, key: b }}]\n\
         capture: {{ ranges: [240.15.0.0/16], {more} }}\n"
    )
}

#[test]
fn capture_without_nft_names_the_package() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.yaml");
    let text = capturing("");
    std::fs::write(&file, text).unwrap();
    let output = Command::new(binary::gateway())
        .args(["capture", "apply", "--config"])
        .arg(&file)
        .env("PATH", folder.path())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("nft is not installed: install the package nftables"), "{error}");
    let printed =
        Command::new(binary::gateway()).args(["capture", "print", "--config"]).arg(&file).output().unwrap();
    assert!(String::from_utf8_lossy(&printed.stdout).contains("dnat ip to 127.0.0.1:15001"), "{printed:?}");
}
