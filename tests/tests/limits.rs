//! Limits on connections and descriptors, and PROXY headers from trusted sources. Row 3 of the hazards.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use isthmus_tests::client::{End, alert, dial, dial_from, echo, read_exactly, rest, rest_within, send};
use isthmus_tests::endpoint::{Endpoint, Scripted};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::{Hello, read_hello};
use isthmus_tests::lock::alone;
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::wait::{DEADLINE, quantile, until, within};
use isthmus_tests::{figure, http};

const HOST: &str = "web.example";

fn flight() -> Vec<u8> {
    Hello::new(HOST).bytes()
}

/// Opens a connection that must be served.
#[track_caller]
fn open(gateway: &Gateway) -> TcpStream {
    open_from(Ipv4Addr::LOCALHOST.into(), gateway)
}

#[track_caller]
fn open_from(source: IpAddr, gateway: &Gateway) -> TcpStream {
    let mut client = dial_from(source, gateway.address());
    client.write_all(&flight()).unwrap();
    assert_eq!(read_exactly(&mut client, 1), b"+");
    client
}

/// Whether a new connection is served.
fn serves(gateway: &Gateway) -> bool {
    TcpStream::connect(gateway.address()).is_ok_and(is_served)
}

fn serves_from(source: IpAddr, gateway: &Gateway) -> bool {
    is_served(dial_from(source, gateway.address()))
}

fn is_served(mut client: TcpStream) -> bool {
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut answer = [0];
    client.write_all(&flight()).and_then(|()| client.read(&mut answer)).is_ok() && answer == *b"+"
}

#[track_caller]
fn refused(gateway: &Gateway, mut client: TcpStream, code: Option<u8>, reason: &str) {
    let _gone = client.write_all(&flight());
    let wanted = code.map(alert).unwrap_or_default();
    let answer = rest_within(&mut client, Duration::from_secs(5));
    assert_eq!(answer, (wanted, End::Fin), "{reason}");
    let line = gateway.log().line_of(client.local_addr().unwrap());
    assert_eq!(line.reason(), reason, "{line:?}");
}

#[test]
fn limits_refuse_with_reason_and_release_on_close() {
    let other: IpAddr = "127.0.0.9".parse().unwrap();
    for (what, listener, key, more) in [
        ("limit_listener", "  max_connections: 3\n", "balance: random", ""),
        ("limit_total", "", "balance: random", "limits: { connections: 3 }"),
        ("limit_source", "", "balance: random", "limits: { per_source: 3 }"),
        ("limit_service", "", "max_connections: 3", ""),
    ] {
        let server = Scripted::echo(b"+");
        let gateway = Setup::new(service(HOST, &[key], &[server.address()]))
            .listeners(&format!("- address: ADDRESS\n{listener}"))
            .with(more)
            .start();
        for round in 0..20 {
            let mut clients: Vec<TcpStream> = (0..3).map(|_| open(&gateway)).collect();
            refused(&gateway, dial(gateway.address()), Some(80), what);
            let elsewhere = dial_from(other, gateway.address());
            if what == "limit_source" {
                drop(elsewhere);
                echo(&mut open_from(other, &gateway), b"from elsewhere");
            } else {
                refused(&gateway, elsewhere, Some(80), what);
            }
            // Established connections stay open.
            clients.iter_mut().for_each(|client| echo(client, b"still here"));
            drop(clients);
            until(&format!("{what}: round {round} is released"), || {
                gateway.metrics().sum("isthmus_connections_active", &[]) < 0.5
            });
        }
        figure!("{what}: 3 accepted, the 4th refused with alert 80, 20 times");
    }
}

/// The limit applies before the hello, so silent connections count.
#[test]
fn silent_connections_count_towards_the_limit() {
    let server = Scripted::echo(b"+");
    let gateway =
        Setup::new(service(HOST, &[], &[server.address()])).with("limits: { connections: 5 }").start();
    let silent: Vec<TcpStream> = (0..5).map(|_| dial(gateway.address())).collect();
    until("the silent connections are counted", || {
        gateway.metrics().sum("isthmus_connections_active", &[]) > 4.5
    });
    assert!(!serves(&gateway), "a sixth connection");
    drop(silent);
    until("the gateway serves again", || serves(&gateway));
}

/// Holds connections with most of a large hello each, and reconnects after each refusal.
fn hoard(gateway: &Gateway, source: IpAddr, count: usize, over: &AtomicBool) {
    let part = &Hello::new(HOST).padded_to(65_000).bytes()[..64_000];
    let come = || {
        let mut client = dial_from(source, gateway.address());
        // The gateway may refuse before everything is sent.
        let _sent = client.write_all(part);
        client.set_nonblocking(true).unwrap();
        client
    };
    let mut held: Vec<TcpStream> = Vec::new();
    while !over.load(SeqCst) {
        while held.len() < count && !over.load(SeqCst) {
            held.push(come());
        }
        let is_open = |client: &mut TcpStream| matches!(client.read(&mut [0; 64]), Err(error) if error.kind() == ErrorKind::WouldBlock);
        held.retain_mut(is_open);
        // Full speed would only test this machine.
        thread::park_timeout(Duration::from_millis(100));
    }
}

/// One source repeatedly claims the whole 64 MiB budget of hellos.
#[test]
fn hello_memory_hoarded_by_one_source_fails_no_other_call() {
    const HOARDED: usize = 1_040;
    const CALLS: usize = 100;
    let _alone = alone();
    let server = Scripted::echo(b"+");
    let gateway =
        Setup::new(service(HOST, &[], &[server.address()])).with("timeouts: { hello: 60s }").start();
    let [greedy, other]: [IpAddr; 2] = ["127.0.0.9", "127.0.0.1"].map(|ip| ip.parse().unwrap());
    let over = AtomicBool::new(false);
    let (mut filled, mut most, mut own) = (false, 0.0_f64, 0);
    let served = thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| hoard(&gateway, greedy, HOARDED / 4, &over));
        }
        let mut held = || {
            let held = gateway.metrics().sum("isthmus_hello_memory_bytes", &[]);
            most = most.max(held);
            held
        };
        filled = within(4 * DEADLINE, || held() > 40e6);
        let served = (0..CALLS).filter(|call| {
            if call % 20 == 0 {
                held();
            }
            serves_from(other, &gateway)
        });
        let served = served.count();
        own = (0..CALLS).filter(|_| serves_from(greedy, &gateway)).count();
        over.store(true, SeqCst);
        served
    });
    let turned_away = |of: &str| {
        gateway.log().count(|line| line.reason() == "limit_memory" && line.text("peer").starts_with(of))
    };
    figure!(
        "{HOARDED} connections of one source hold 64 000 bytes of hello each ({:.0} MiB at most): others' calls {served} of {CALLS}, those of its own address {own}; turned away: {} of its own, {} of others",
        most / 1_048_576.0,
        turned_away("127.0.0.9:"),
        turned_away("127.0.0.1:")
    );
    assert!(filled, "the hello memory never ran short");
    assert_eq!((served, turned_away("127.0.0.1:")), (CALLS, 0));
    assert!(most <= 64.0 * 1_048_576.0, "{most} bytes");
}

fn cpu_share(gateway: &Gateway, span: Duration, mut also: impl FnMut()) -> f64 {
    let (began, before) = (Instant::now(), gateway.process().time());
    while began.elapsed() < span {
        also();
        thread::park_timeout(Duration::from_millis(20));
    }
    (gateway.process().time() - before).as_secs_f64() / began.elapsed().as_secs_f64()
}

#[test]
fn descriptor_limit_of_256_survives_400_clients() {
    let _alone = alone();
    let server = Scripted::echo(b"+");
    let gateway = Setup::new(service(HOST, &[], &[server.address()])).descriptors(256).start();
    let lines = gateway.errors().len();
    let began = Instant::now();
    let clients: Vec<TcpStream> = (0..400).map(|_| send(gateway.address(), &flight())).collect();
    let share = cpu_share(&gateway, Duration::from_secs(3), || {
        assert_eq!(http::ask(gateway.at("admin"), "GET", "/status").status, 200);
        assert!(gateway.is_ready());
    });
    let logged = accept_lines(&gateway, lines);
    let most_lines = usize::try_from(began.elapsed().as_secs()).unwrap() + 2;
    let most = gateway.process().descriptors();
    drop(clients);
    let left = Instant::now();
    assert!(within(Duration::from_secs(5), || serves(&gateway)));
    let back = left.elapsed();
    figure!(
        "nofile 256, 400 clients: {:.0} % of a core, {logged} lines in 3 s, {most} descriptors, serves {back:?} after they closed",
        share * 100.0
    );
    assert!(share < 0.20 && logged <= most_lines && back < Duration::from_secs(2));
    assert!(most <= 231, "{most} descriptors exceed 90 % of 256");
}

/// Number of log lines about accepting, after the first ones.
fn accept_lines(gateway: &Gateway, first: usize) -> usize {
    gateway.errors()[first..].iter().filter(|line| line.contains("accept")).count()
}

fn allow_descriptors(gateway: &Gateway, most: usize) {
    let status = Command::new("prlimit")
        .args(["--pid", &gateway.process().0.to_string(), &format!("--nofile={most}:20000")])
        .status();
    assert!(status.unwrap().success());
}

/// Clients that scrape in a loop do not delay health checks beyond a kubelet's timeout (1 s); the figure is
/// the delay.
#[test]
fn health_page_answers_under_60_metrics_clients() {
    const LOOPING: usize = 60;
    const SERVICES: usize = 300;
    let _alone = alone();
    let server = Scripted::echo(b"+");
    let host = |number: usize| format!("s{number}.example");
    let services: String =
        (0..SERVICES).map(|number| service(&host(number), &[], &[server.address()])).collect();
    let gateway = Setup::new(services).start();
    for number in 0..SERVICES {
        // A service has its own counters from its first connection.
        let mut client = send(gateway.address(), &Hello::new(&host(number)).bytes());
        assert_eq!(read_exactly(&mut client, 1), b"+");
    }
    let (metrics, health) = (gateway.at("metrics"), gateway.at("health"));
    let (over, scraped) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut times = Vec::new();
    let statuses: Vec<u16> = thread::scope(|scope| {
        for _ in 0..LOOPING {
            scope.spawn(|| {
                while !over.load(SeqCst) {
                    assert_eq!(http::ask(metrics, "GET", "/metrics").status, 200);
                    scraped.fetch_add(1, SeqCst);
                }
            });
        }
        let looping = within(DEADLINE, || scraped.load(SeqCst) >= 2 * LOOPING);
        let answers = (0..if looping { 200 } else { 0 }).map(|_| {
            let began = Instant::now();
            let answer = http::ask_as(health, "localhost", "GET", "/healthz/ready");
            times.push(began.elapsed());
            answer.map_or(0, |answer| answer.status)
        });
        let statuses = answers.collect();
        over.store(true, SeqCst);
        statuses
    });
    assert_eq!(statuses, [200; 200]);
    figure!(
        "{LOOPING} clients loop over /metrics ({SERVICES} services): {} texts; of 200 health checks the median took {:?}, the slowest {:?}",
        scraped.load(SeqCst),
        quantile(&mut times, 0.5),
        quantile(&mut times, 1.0)
    );
}

/// The limit is lowered at run time, so that accept itself fails with EMFILE.
#[test]
fn accept_without_descriptors_neither_spins_nor_exits() {
    let _alone = alone();
    let server = Scripted::echo(b"+");
    let gateway = Setup::new(service(HOST, &[], &[server.address()])).start();
    let mut early = open(&gateway);
    let _known = gateway.metrics();
    allow_descriptors(&gateway, gateway.process().descriptors() + 7);
    let lines = gateway.errors().len();
    let began = Instant::now();
    let clients: Vec<TcpStream> = (0..400).map(|_| send(gateway.address(), &flight())).collect();
    until("descriptors run out", || {
        gateway.process().descriptors() >= 20 && gateway.process().network().len() > 400
    });
    let share = cpu_share(&gateway, Duration::from_secs(3), || echo(&mut early, b"established ones go on"));
    let logged = accept_lines(&gateway, lines);
    let most_lines = usize::try_from(began.elapsed().as_secs()).unwrap() + 2;
    drop(clients);
    let left = Instant::now();
    assert!(within(Duration::from_secs(10), || serves(&gateway)), "the gateway no longer accepts");
    let back = left.elapsed();
    figure!(
        "EMFILE for 3 s: {:.0} % of a core, {logged} lines, serves {back:?} after the clients closed",
        share * 100.0
    );
    assert!(share < 0.20 && logged <= most_lines, "{logged} lines: {:?}", gateway.errors());
    assert!(back < Duration::from_millis(2_500), "accepts again within 2 s: {back:?}");
    let pauses = gateway.metrics().sum("isthmus_accept_pauses_total", &[]);
    assert!(pauses >= 1.0);
    let line = gateway.log().lines().into_iter().find(|line| line.reason() == "local_resources");
    if let Some(line) = line {
        assert_eq!(line.number("attempts"), 1, "a local failure is not retried: {line:?}");
    }
    assert_eq!(gateway.metrics().sum("isthmus_ejections_total", &[]), 0.0);
}

/// A gateway that trusts PROXY headers of 127.0.0.2 and 127.0.0.16/28.
fn trusting() -> (Gateway, Endpoint) {
    let endpoint = Endpoint::new();
    let services = [
        service(HOST, &[], &[endpoint.address()]),
        service("near.example", &["sources: [192.0.2.0/24, \"2001:db8::/32\"]"], &[endpoint.address()]),
    ];
    let gateway = Setup::new(services.concat())
        .listeners("- address: ADDRESS\n  proxy_protocol: { from: [127.0.0.2, 127.0.0.16/28] }")
        .with("timeouts: { hello: 2s }")
        .start();
    (gateway, endpoint)
}

fn v1(source: &str) -> Vec<u8> {
    format!("PROXY TCP4 {source} 192.0.2.254 40000 15443\r\n").into_bytes()
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, body].concat()
}

fn v2_tcp4(source: [u8; 4], tlvs: &[u8]) -> Vec<u8> {
    v2(
        0x21,
        0x11,
        &[&source[..], &[192, 0, 2, 254], &40_000_u16.to_be_bytes(), &15_443_u16.to_be_bytes(), tlvs]
            .concat(),
    )
}

#[test]
fn proxy_header_from_trusted_source_is_accepted() {
    let (gateway, endpoint) = trusting();
    let v6: Vec<u8> = ["2001:db8::7", "2001:db8::1"]
        .iter()
        .flat_map(|ip| ip.parse::<std::net::Ipv6Addr>().unwrap().octets())
        .chain([0x9c, 0x40, 0x3c, 0x53])
        .collect();
    for (trusted, header, peer) in [
        ("127.0.0.2", v1("192.0.2.7"), "192.0.2.7:40000"),
        ("127.0.0.2", b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 443\r\n".to_vec(), "[2001:db8::7]:40000"),
        ("127.0.0.17", v2_tcp4([192, 0, 2, 8], b""), "192.0.2.8:40000"),
        ("127.0.0.17", v2_tcp4([192, 0, 2, 9], &[0xEA, 0, 3, 1, 2, 3]), "192.0.2.9:40000"),
        ("127.0.0.2", v2(0x21, 0x21, &v6), "[2001:db8::7]:40000"),
    ] {
        // At once, and byte by byte.
        for pieces in [usize::MAX, 1] {
            let mut client = dial_from(trusted.parse().unwrap(), gateway.address());
            let hello = Hello::new("near.example").bytes();
            let bytes = [header.clone(), hello.clone()].concat();
            bytes.chunks(pieces.min(bytes.len())).for_each(|piece| client.write_all(piece).unwrap());
            let (mut server, got) = endpoint.take();
            assert_eq!(got, hello, "the header is not forwarded");
            server.write_all(b"+").unwrap();
            assert_eq!(read_exactly(&mut client, 1), b"+");
            drop((client, server));
            let line = gateway.log().line_of(peer.parse().unwrap());
            assert_eq!(line.text("service"), "near.example:443");
        }
    }
    // LOCAL: the proxy's own health check; the source is the connection's own.
    for header in [v2(0x20, 0, b""), b"PROXY UNKNOWN\r\n".to_vec()] {
        let mut client = dial_from("127.0.0.2".parse().unwrap(), gateway.address());
        let peer = client.local_addr().unwrap();
        client.write_all(&[header, flight()].concat()).unwrap();
        let (server, got) = endpoint.take();
        assert_eq!(got, flight());
        drop((client, server));
        assert_eq!(gateway.log().line_of(peer).text("service"), "web.example:443");
    }
    figure!("PROXY v1, v2, IPv4, IPv6, LOCAL, TLVs: accepted from trusted sources");
}

#[test]
fn proxy_header_from_untrusted_source_is_refused() {
    let (gateway, endpoint) = trusting();
    let refuses = |source: &str, bytes: &[u8], reason: &str| {
        let mut client = dial_from(source.parse().unwrap(), gateway.address());
        let peer = client.local_addr().unwrap();
        let _gone = client.write_all(bytes);
        let (answer, end) = rest_within(&mut client, Duration::from_secs(6));
        assert!(answer.is_empty() && end != End::Open, "{reason}: {answer:?}, {end:?} for {bytes:02x?}");
        let line = gateway.log().line_of(peer);
        assert_eq!(line.reason(), reason, "{line:?} for {bytes:02x?}");
        assert!(endpoint.is_untouched());
    };
    let with_hello = |header: Vec<u8>| [header, flight()].concat();
    // Untrusted source: refused with any header.
    refuses("127.0.0.3", &with_hello(v1("192.0.2.7")), "proxy_denied");
    refuses("127.0.0.3", &with_hello(v2_tcp4([192, 0, 2, 8], b"")), "proxy_denied");
    refuses("127.0.0.3", &with_hello(v2(0x20, 0, b"")), "proxy_denied");
    // Trusted source: a missing or malformed header.
    refuses("127.0.0.2", &flight(), "proxy_malformed");
    for header in [
        b"PROXY TCP4 192.0.2.7 192.0.2.8 40000 443\n".to_vec(),
        b"PROXY TCP4 192.0.2.777 192.0.2.8 40000 443\r\n".to_vec(),
        b"PROXY TCP4 192.0.2.7 192.0.2.8 70000 443\r\n".to_vec(),
        b"PROXY TCP4 2001:db8::7 192.0.2.8 40000 443\r\n".to_vec(),
        b"PROXY TCP9 192.0.2.7 192.0.2.8 40000 443\r\n".to_vec(),
        b"PROXY\r\n".to_vec(),
        [b"PROXY ".as_slice(), &[b'x'; 200], b"\r\n"].concat(),
        v2(0x21, 0x11, &[1, 2, 3]),
        v2(0x21, 0x21, &[1; 12]),
        v2(0x31, 0x11, &[1; 12]),
        v2(0x22, 0x11, &[1; 12]),
    ] {
        refuses("127.0.0.2", &with_hello(header), "proxy_malformed");
    }
    // Outside the trusted range of 16 addresses.
    refuses("127.0.0.32", &with_hello(v1("192.0.2.7")), "proxy_denied");
    figure!(
        "PROXY from untrusted sources: proxy_denied; missing or malformed from trusted ones: proxy_malformed"
    );
}

/// HAProxy refuses it too: a TLV beyond the header's end makes the start of the payload ambiguous.
#[test]
fn proxy_header_with_overlong_tlv_is_malformed() {
    let (gateway, endpoint) = trusting();
    let mut client = dial_from("127.0.0.2".parse().unwrap(), gateway.address());
    client.write_all(&[v2_tcp4([192, 0, 2, 8], &[0xEA, 0, 9, 1]), flight()].concat()).unwrap();
    let (_, end) = rest_within(&mut client, Duration::from_secs(5));
    assert_ne!(end, End::Open, "the header was accepted");
    assert!(endpoint.is_untouched());
    gateway.log().wait("proxy_malformed", |line| line.reason() == "proxy_malformed");
}

#[test]
fn source_limit_counts_the_proxy_headers_source() {
    let server = Scripted::echo(b"+");
    let gateway = Setup::new(service(HOST, &[], &[server.address()]))
        .listeners("- address: ADDRESS\n  proxy_protocol: { from: [127.0.0.2] }")
        .with("limits: { per_source: 2 }")
        .start();
    let open_as = |source: &str| {
        let mut client = dial_from("127.0.0.2".parse().unwrap(), gateway.address());
        client.write_all(&[v1(source), flight()].concat()).unwrap();
        let mut first = [0];
        let read = client.read(&mut first).unwrap();
        (client, read == 1 && first == *b"+")
    };
    let held: Vec<_> = (0..2).map(|_| open_as("192.0.2.7")).collect();
    assert!(held.iter().all(|(_, served)| *served));
    assert!(!open_as("192.0.2.7").1, "the third connection of 192.0.2.7 was accepted");
    assert!(open_as("192.0.2.8").1, "the first connection of 192.0.2.8 was refused");
    gateway.log().wait("limit_source", |line| {
        line.reason() == "limit_source" && line.text("peer").starts_with("192.0.2.7")
    });
}

/// Reads a PROXY v2 header: source, destination, and its TLVs.
fn read_v2(stream: &mut TcpStream) -> (SocketAddr, SocketAddr, Vec<(u8, Vec<u8>)>) {
    let head = read_exactly(stream, 16);
    assert_eq!(&head[..14], &[SIGNATURE, &[0x21, 0x11]].concat()[..]);
    let body = read_exactly(stream, usize::from(u16::from_be_bytes([head[14], head[15]])));
    let ip = |at: usize| Ipv4Addr::new(body[at], body[at + 1], body[at + 2], body[at + 3]);
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let mut tlvs = Vec::new();
    let mut left = &body[12..];
    while let [kind, high, low, value @ ..] = left {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        tlvs.push((*kind, value[..length].to_vec()));
        left = &value[length..];
    }
    assert!(left.is_empty());
    ((ip(0), port(8)).into(), (ip(4), port(10)).into(), tlvs)
}

#[test]
fn upstream_proxy_header_carries_source_and_sni() {
    let endpoint = Endpoint::new();
    let gateway = Setup::new(service("*.example", &["proxy_protocol: v2"], &[endpoint.address()])).start();
    for name in ["web.example", "WEB.example."] {
        let mut client = dial_from("127.0.0.5".parse().unwrap(), gateway.address());
        let hello = Hello::new(name).bytes();
        client.write_all(&hello).unwrap();
        let mut server = endpoint.accept();
        let (source, destination, tlvs) = read_v2(&mut server);
        assert_eq!((source, destination), (client.local_addr().unwrap(), gateway.address()));
        let sni = tlvs.iter().find(|(kind, _)| *kind == 2).map(|(_, value)| value.to_ascii_lowercase());
        let sni = String::from_utf8(sni.expect("the SNI as TLV 2")).unwrap();
        assert_eq!(sni.trim_end_matches('.'), "web.example");
        assert_eq!(read_hello(&mut server).unwrap(), hello);
    }
}

/// A replay sends its own header exactly once.
#[test]
fn upstream_proxy_header_precedes_replayed_hello() {
    let endpoints = [Endpoint::new(), Endpoint::new()];
    let addresses = [endpoints[0].address(), endpoints[1].address()];
    let gateway = Setup::new(service(HOST, &["proxy_protocol: v2"], &addresses)).start();
    let mut client = send(gateway.address(), &flight());
    let mut first = None;
    until("an endpoint is tried", || {
        first = endpoints.iter().position(|endpoint| {
            let Some(mut stream) = endpoint.waiting() else { return false };
            read_v2(&mut stream);
            assert_eq!(read_hello(&mut stream).unwrap(), flight());
            stream.write_all(&alert(80)).unwrap();
            true
        });
        first.is_some()
    });
    let mut server = endpoints[1 - first.unwrap()].accept();
    assert_eq!(read_v2(&mut server).0, client.local_addr().unwrap());
    assert_eq!(read_hello(&mut server).unwrap(), flight());
    server.write_all(b"+").unwrap();
    drop(server);
    assert_eq!(rest(&mut client), (b"+".to_vec(), End::Fin));
}

/// Many refusals leave memory and descriptors unchanged.
#[test]
fn refused_client_flood_leaks_nothing() {
    let server = Scripted::echo(b"+");
    let gateway =
        Setup::new(service(HOST, &[], &[server.address()])).with("limits: { connections: 1 }").start();
    let mut held = open(&gateway);
    let at_rest = gateway.process().sockets().len();
    let flood: Vec<TcpStream> = (0..1_500).map(|_| send(gateway.address(), &flight())).collect();
    until("all connections of the flood are closed", || gateway.process().sockets().len() <= at_rest);
    drop(flood);
    echo(&mut held, b"still here");
    drop(held);
    until("the gateway serves again", || serves(&gateway));
}
