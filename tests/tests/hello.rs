//! Valid and malformed first flights against a live gateway: the verdict does not depend on fragmentation,
//! refused flights reach no endpoint, and all others arrive unchanged. Rows 1, 2 and 6c of the hazards.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use isthmus_tests::client::{End, alert, dial, read_exactly, rest, rest_within, send};
use isthmus_tests::endpoint::{Endpoint, Scripted};
use isthmus_tests::figure;
use isthmus_tests::flights::{malformed, not_tls, well_formed};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::{Hello, alpn, hello, hello_of};
use isthmus_tests::lock::alone;
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::wait::{quantile, until};
use rustls::version;

const HOST: &str = "web.example";

struct World {
    gateway: Gateway,
    endpoint: Endpoint,
}

impl World {
    fn new(more: &str) -> World {
        let endpoint = Endpoint::new();
        let gateway = Setup::new(service(HOST, &[], &[endpoint.address()])).with(more).start();
        World { gateway, endpoint }
    }

    /// Asserts that a first flight sent in these pieces arrives at the endpoint unchanged.
    #[track_caller]
    fn assert_forwarded(&self, what: &str, pieces: &[&[u8]]) {
        let mut client = dial(self.gateway.address());
        for piece in pieces {
            client.write_all(piece).unwrap();
        }
        let bytes = pieces.concat();
        let mut server = self.endpoint.accept();
        assert!(read_exactly(&mut server, bytes.len()) == bytes, "{what}: other bytes arrived");
        server.write_all(b"+").unwrap();
        assert_eq!(read_exactly(&mut client, 1), b"+", "{what}");
    }

    /// Asserts that a first flight is refused with this reason and alert, and reaches no endpoint.
    #[track_caller]
    fn assert_refused(&self, what: &str, bytes: &[u8], reason: &str, code: u8) {
        let mut client = send(self.gateway.address(), bytes);
        let answer = rest_within(&mut client, Duration::from_secs(4));
        assert_eq!(answer, (alert(code), End::Fin), "{what}");
        let line = self.gateway.log().line_of(client.local_addr().unwrap());
        assert_eq!(line.reason(), reason, "{what}: {line:?}");
        assert!(self.endpoint.is_untouched(), "{what}: the endpoint was contacted");
        assert_eq!(line.text("endpoint"), "", "{what}: {line:?}");
    }
}

#[test]
fn hello_is_forwarded_intact_at_every_fragmentation() {
    let world = World::new("");
    let flights = well_formed(HOST);
    for (what, pieces) in &flights {
        world.assert_forwarded(what, &pieces.iter().map(Vec::as_slice).collect::<Vec<_>>());
    }
    figure!("{} well-formed hellos, down to records and segments of one byte: unchanged", flights.len());
}

#[test]
fn bytes_after_the_hello_are_forwarded() {
    let world = World::new("");
    let first = hello(HOST);
    for size in [1, 1_000, 100_000] {
        let more = isthmus_tests::bulk::random(size);
        let mut client = dial(world.gateway.address());
        client.write_all(&[first.clone(), more.clone()].concat()).unwrap();
        let mut server = world.endpoint.accept();
        assert!(read_exactly(&mut server, first.len() + size) == [first.clone(), more].concat());
    }
}

#[test]
fn malformed_first_flights_are_refused_with_reason() {
    let world = World::new("");
    for bytes in not_tls() {
        world.assert_refused("not TLS", &bytes, "not_tls", 50);
    }
    for (what, bytes) in malformed(HOST) {
        world.assert_refused(&what, &bytes, "hello_malformed", 50);
    }
}

#[test]
fn sni_refusals_have_reason_and_alert() {
    let endpoint = Endpoint::new();
    let address = [endpoint.address()];
    let services = [
        service(HOST, &[], &address),
        service("h2.example", &["alpn: [h2]"], &address),
        service("near.example", &["sources: [10.0.0.0/8]"], &address),
        service("*.wild.example", &[], &address),
        service("empty.example", &[], &[]),
    ];
    let world = World { gateway: Setup::new(services.concat()).start(), endpoint };
    let named = |name: &str| Hello::new(name).bytes();
    world.assert_refused("no name", &Hello::new(HOST).without(0).bytes(), "no_sni", 112);
    world.assert_refused(
        "a real hello without a name",
        &hello_of(None, &[], &[&version::TLS13]),
        "no_sni",
        112,
    );
    for name in [
        "other.example",
        "web.example.example",
        "b.example",
        "example",
        "wild.example",
        "outbound_.80_._.web.example",
        "outbound_.443_._.other.example",
        "xds_cluster",
        "x.web.example",
        "outbound_.443_.v1_.web.example",
    ] {
        world.assert_refused(name, &named(name), "sni_unmatched", 112);
    }
    world.assert_refused("no ALPN", &named("h2.example"), "alpn_unmatched", 112);
    let http1 = Hello::new("h2.example").and(alpn(&["http/1.1"])).bytes();
    world.assert_refused("other ALPN", &http1, "alpn_unmatched", 112);
    world.assert_refused("a source outside the allowed range", &named("near.example"), "source_denied", 49);
    world.assert_refused("no endpoint", &named("empty.example"), "no_endpoint", 80);
    world.assert_forwarded(
        "ALPN that fits",
        &[&Hello::new("h2.example").and(alpn(&["http/1.1", "h2"])).bytes()],
    );
    world.assert_forwarded("one label under a wildcard", &[&named("a.wild.example")]);
    world.assert_forwarded("two labels under a wildcard", &[&named("a.b.wild.example")]);
}

#[test]
fn oversized_hello_is_refused() {
    let world = World::new("limits: { hello_size: 2KiB }");
    world.assert_forwarded("2 KiB of hello", &[&Hello::new(HOST).padded_to(2_048).bytes()]);
    world.assert_refused(
        "a hello over the limit",
        &Hello::new(HOST).padded_to(2_049).bytes(),
        "hello_too_large",
        50,
    );
    let world = World::new("");
    world.assert_forwarded("64 KiB of hello", &[&Hello::new(HOST).padded_to(65_536).bytes()]);
    // The length is in the first bytes, so the gateway does not wait for the rest.
    let mut header = vec![22, 3, 1, 0x40, 0, 1, 1, 0, 0];
    world.assert_refused("64 KiB and one, announced", &header, "hello_too_large", 50);
    header[6..9].copy_from_slice(&[0xff, 0xff, 0xff]);
    world.assert_refused("16 MiB, announced", &header, "hello_too_large", 50);
}

#[test]
fn truncated_hello_is_incomplete() {
    let world = World::new("timeouts: { hello: 20s }");
    let whole = Hello::new(HOST).bytes();
    let mut cuts = 0;
    for length in 1..whole.len() {
        let mut client = send(world.gateway.address(), &whole[..length]);
        client.shutdown(Shutdown::Write).unwrap();
        let (answer, end) = rest_within(&mut client, Duration::from_secs(10));
        assert!(answer == alert(50) || answer.is_empty(), "{answer:?}");
        assert_eq!(end, End::Fin, "cut after {length}");
        cuts += 1;
    }
    until("every truncated hello is logged", || {
        world.gateway.log().count(|line| line.reason() == "hello_incomplete") == cuts
    });
    assert!(world.endpoint.is_untouched());
    figure!("a hello truncated at each of {cuts} offsets: always hello_incomplete");
}

#[test]
fn empty_connections_are_counted_but_not_logged() {
    let world = World::new("");
    for _ in 0..5 {
        let mut client = dial(world.gateway.address());
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&mut client), (Vec::new(), End::Fin));
    }
    let counted = || world.gateway.metrics().sum("isthmus_connections_ended_total", &["reason=\"no_data\""]);
    until("the empty connections are counted", || (counted() - 5.0).abs() < 0.1);
    world.assert_refused("the next", b"x", "not_tls", 50);
    assert_eq!(world.gateway.log().lines().len(), 0, "no further log lines");
}

/// A load balancer's health check may send its own header, which is no client data.
#[test]
fn proxy_header_alone_counts_as_health_check() {
    let listener = "- { address: ADDRESS, proxy_protocol: { from: [127.0.0.0/8] } }";
    let gateway = Setup::new(service(HOST, &[], &[])).listeners(listener).start();
    let headers: [&[u8]; 2] = [b"PROXY UNKNOWN\r\n", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"];
    for header in headers {
        let mut client = send(gateway.address(), header);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&mut client), (Vec::new(), End::Fin));
    }
    let ended = |reason: &str| {
        let reason = format!("reason=\"{reason}\"");
        gateway.metrics().sum("isthmus_connections_ended_total", &[&reason])
    };
    until("both connections are counted", || ended("no_data") + ended("hello_incomplete") > 1.9);
    assert_eq!((ended("no_data"), ended("hello_incomplete")), (2.0, 0.0));
}

/// Sends a first flight cut at these offsets; returns the client's address and the answer.
fn ask(world: &World, flight: &[u8], cuts: &[usize]) -> (SocketAddr, Vec<u8>) {
    let mut client = dial(world.gateway.address());
    let peer = client.local_addr().unwrap();
    let mut start = 0;
    for cut in cuts.iter().copied().chain([flight.len()]) {
        if client.write_all(&flight[start..cut]).is_err() {
            break;
        }
        start = cut;
    }
    let _gone = client.shutdown(Shutdown::Write);
    let (answer, end) = rest(&mut client);
    assert_ne!(end, End::Open);
    (peer, if end == End::Reset { b"reset".to_vec() } else { answer })
}

/// A hello with some bytes altered, removed or repeated, or noise.
fn mutated(random: &mut fastrand::Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut flight = seeds[random.usize(..seeds.len())].clone();
    match random.u8(..6) {
        0 => flight = (0..random.usize(1..200)).map(|_| random.u8(..)).collect(),
        1 => flight.truncate(random.usize(1..flight.len())),
        2 => {
            let at = random.usize(..flight.len());
            flight.insert(at, random.u8(..));
        }
        3 => {
            flight.remove(random.usize(..flight.len()));
        }
        _ => {
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..flight.len().min(120));
                flight[at] = [0, 1, 255, random.u8(..)][random.usize(..4)];
            }
        }
    }
    flight
}

#[test]
fn hello_verdict_is_independent_of_fragmentation() {
    let server = Scripted::unread(|mut stream| {
        let _forwarded = rest(&mut stream);
    });
    let endpoint = Endpoint::new();
    let gateway = Setup::new(service(HOST, &[], &[server.address()])).start();
    let world = World { gateway, endpoint };
    let at_rest = world.gateway.process().sockets().len();
    let small = Hello::new(HOST).and(alpn(&["h2", "http/1.1"]));
    let seeds =
        [small.bytes(), small.records(40), Hello::new("other.example").bytes(), small.without(0).bytes()];
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut seen = std::collections::BTreeMap::new();
    for batch in 0..20 {
        let mut asked = Vec::new();
        for _ in 0..100 {
            let flight = mutated(&mut random, &seeds);
            let mut answers = vec![ask(&world, &flight, &[])];
            for _ in 0..2 {
                let mut cuts: Vec<usize> =
                    (0..random.usize(1..6)).map(|_| random.usize(..flight.len())).collect();
                cuts.sort_unstable();
                answers.push(ask(&world, &flight, &cuts));
            }
            asked.push((flight, answers));
        }
        for (flight, answers) in asked {
            let verdicts = answers
                .into_iter()
                .map(|(peer, answer)| (world.gateway.log().line_of(peer).reason().to_owned(), answer))
                .collect::<Vec<_>>();
            assert!(
                verdicts.iter().all(|verdict| *verdict == verdicts[0]),
                "seed {seed}, batch {batch}: {verdicts:?} for {flight:02x?}"
            );
            *seen.entry(verdicts[0].0.clone()).or_insert(0) += 1;
        }
    }
    figure!("2000 flights in 3 fragmentations each, same verdicts: {seen:?}");
    assert!(seen.len() >= 4, "{seen:?}");
    until("all sockets are released", || world.gateway.process().sockets().len() <= at_rest);
    assert!(
        !world.gateway.errors().iter().any(|line| line.contains("panic")),
        "{:?}",
        world.gateway.errors()
    );
}

#[test]
fn refusal_alert_arrives_while_client_still_sends() {
    let world = World::new("");
    let flight = Hello::new("other.example").padded_to(20_000).bytes();
    let unknown = Hello::new("other.example").bytes();
    let mut arrived = 0;
    for round in 0..40 {
        let mut client = dial(world.gateway.address());
        // Refused at the first record; the rest is still being sent in pieces.
        let bytes = if round % 2 == 0 {
            [unknown.clone(), vec![0; 40_000]].concat()
        } else {
            [b"GET /".to_vec(), flight.clone()].concat()
        };
        for piece in bytes.chunks(1_000) {
            if client.write_all(piece).is_err() {
                break;
            }
            std::thread::yield_now();
        }
        let (answer, end) = rest(&mut client);
        let wanted = alert(if round % 2 == 0 { 112 } else { 50 });
        arrived += usize::from(answer == wanted && end == End::Fin);
    }
    figure!("refused while sending: the alert arrived {arrived} of 40 times");
    assert_eq!(arrived, 40);
}

/// A client that keeps sending after a refusal is closed soon.
#[test]
fn refused_client_that_keeps_sending_is_closed() {
    let world = World::new("");
    let mut client = send(world.gateway.address(), &Hello::new("other.example").bytes());
    let started = Instant::now();
    let block = [0; 1_000];
    while client.write_all(&block).is_ok() {
        assert!(started.elapsed() < Duration::from_secs(10), "the gateway keeps reading");
    }
    figure!("a refused client that keeps sending is closed after {:?}", started.elapsed());
}

/// A refused client that neither closes nor sends is closed soon.
#[test]
fn refused_client_that_stays_silent_is_closed() {
    let world = World::new("");
    let at_rest = world.gateway.process().sockets().len();
    let clients: Vec<TcpStream> =
        (0..50).map(|_| send(world.gateway.address(), &Hello::new("other.example").bytes())).collect();
    let started = Instant::now();
    until("all connections are closed", || {
        world.gateway.log().count(|_| true) == 50 && world.gateway.process().sockets().len() <= at_rest
    });
    let took = started.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    figure!("50 silent refused clients: closed after {took:?}");
    drop(clients);
}

#[test]
fn hello_timeout_is_absolute() {
    let world = World::new("timeouts: { hello: 2s }");
    let mut client = dial(world.gateway.address());
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let started = Instant::now();
    let flight = hello(HOST);
    let mut answer: Vec<u8> = Vec::new();
    for byte in flight {
        let _gone = client.write_all(&[byte]);
        let mut part = [0; 16];
        match client.read(&mut part) {
            Ok(0) => break,
            Ok(read) => answer.extend(&part[..read]),
            Err(_) => {}
        }
        assert!(started.elapsed() < Duration::from_secs(6), "bytes extended the deadline");
    }
    let took = started.elapsed();
    assert_eq!(answer, alert(50));
    assert!(took > Duration::from_millis(1_900) && took < Duration::from_secs(4), "{took:?}");
    assert_eq!(world.gateway.log().line_of(client.local_addr().unwrap()).reason(), "hello_timeout");
    assert!(world.endpoint.is_untouched());
}

/// Times of other clients to their first answer.
fn others(gateway: SocketAddr, count: usize) -> Vec<Duration> {
    let flight = hello(HOST);
    (0..count)
        .map(|_| {
            let started = Instant::now();
            let mut client = send(gateway, &flight);
            assert_eq!(read_exactly(&mut client, 1), b"+");
            started.elapsed()
        })
        .collect()
}

#[test]
fn slow_clients_delay_nobody_and_time_out() {
    const CLIENTS: usize = 2_000;
    let _alone = alone();
    let server = Scripted::echo(b"+");
    let gateway = Setup::new(service(HOST, &[], &[server.address()])).start();
    let flight = hello(HOST);
    let mut baseline = others(gateway.address(), 300);
    let before = gateway.process().memory();
    let started = Instant::now();
    let mut slow: Vec<(TcpStream, Instant)> = (0..CLIENTS)
        .map(|_| {
            let client = send(gateway.address(), &flight[..1]);
            client.set_nonblocking(true).unwrap();
            (client, Instant::now())
        })
        .collect();
    let opened = started.elapsed();
    let mut open: Vec<usize> = (0..CLIENTS).collect();
    let mut closed = Vec::new();
    let mut most = 0;
    let mut beside = Vec::new();
    let mut next = 1;
    while !open.is_empty() {
        assert!(started.elapsed() < Duration::from_secs(30), "{} are still open", open.len());
        // One byte per second each.
        if started.elapsed() >= Duration::from_secs(next as u64) {
            for index in &open {
                let _gone = slow[*index].0.write(&flight[next..=next]);
            }
            next += 1;
            most = most.max(gateway.process().memory());
        }
        if started.elapsed() > opened && closed.is_empty() {
            beside.extend(others(gateway.address(), 20));
        }
        open.retain(|index| {
            let (client, since) = &mut slow[*index];
            let mut answer = [0; 16];
            let still = matches!(client.read(&mut answer), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
            if !still {
                closed.push(since.elapsed());
            }
            still
        });
        std::thread::yield_now();
    }
    let each = most.saturating_sub(before) / CLIENTS as u64;
    let [base, with] = [&mut baseline, &mut beside].map(|times| quantile(times, 0.99));
    let [first, last] = [0.0, 1.0].map(|share| quantile(&mut closed, share));
    figure!(
        "2000 clients at 1 byte/s: closed after {first:?} to {last:?}; {each} bytes each; p99 of others {with:?}, {base:?} without them"
    );
    assert!(first > Duration::from_secs(4) && last < Duration::from_secs(6), "{first:?} to {last:?}");
    assert!(each <= 24 * 1024, "{each} bytes each");
    assert!(with <= base * 2 + Duration::from_millis(20), "others' p99 {with:?}, without {base:?}");
    until("all timeouts are logged", || {
        gateway.log().count(|line| line.reason() == "hello_timeout") == CLIENTS
    });
}

#[test]
fn hello_memory_is_bounded() {
    let server = Scripted::echo(b"+");
    let gateway = Setup::new(service(HOST, &[], &[server.address()]))
        .with("limits: { hello_size: 64KiB, hello_memory: 256KiB }\ntimeouts: { hello: 20s }")
        .start();
    let part = &Hello::new(HOST).padded_to(65_000).bytes()[..50_000];
    let clients: Vec<TcpStream> = (0..100).map(|_| send(gateway.address(), part)).collect();
    let refused = || gateway.log().count(|line| line.reason() == "limit_memory");
    until("most hellos are refused", || refused() >= 94);
    figure!("hello_memory 256 KiB: of 100 unfinished hellos of 50 kB {} are refused", refused());
    assert!(refused() < 100, "some fit");
    drop(clients);
    let flight = Hello::new(HOST).padded_to(60_000).bytes();
    until("hellos fit again", || {
        let mut client = send(gateway.address(), &flight);
        let mut answer = [0];
        client.read(&mut answer).is_ok() && answer == *b"+"
    });
}
