//! Failover: until the server's first byte a connection can move to another endpoint, unseen by the client.
//! Covers which connections move, which must not, and the replay budgets. Row 8 of the hazards.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use isthmus_tests::client::{End, alert, dial, dial_from, read_exactly, reset, rest, send};
use isthmus_tests::endpoint::{BlackHole, Endpoint, Scripted, closed, free};
use isthmus_tests::figure;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::{Hello, hello, read_hello, records};
use isthmus_tests::log::Line;
use isthmus_tests::setup::{Setup, service, service_of};
use isthmus_tests::wait::{throughout, until};
use socket2::{Domain, Socket, Type};

const HOST: &str = "web.example";
/// Unlimited replays and no demotion.
const REPLAYS: &str = "upstream: { demotion: off, replay: { ratio: 1, burst: 1000, source_share: 1 } }";

fn gateway(endpoints: &[SocketAddr], more: &str) -> Gateway {
    Setup::new(service(HOST, &["balance: round_robin"], endpoints)).with(more).start()
}

/// Closes a client and returns its log line.
#[track_caller]
fn line_of(gateway: &Gateway, client: TcpStream) -> Line {
    let peer = client.local_addr().unwrap();
    drop(client);
    gateway.log().line_of(peer)
}

/// Makes calls until `bad` has been tried several times; `good` serves each call and gets its hello once.
#[track_caller]
fn assert_fails_over(what: &str, bad: &Scripted) {
    let good = Scripted::echo(b"+");
    let gateway = gateway(&[bad.address(), good.address()], REPLAYS);
    let hello = hello(HOST);
    let mut moved = 0;
    for _ in 0..8 {
        let line = gateway.call(&hello);
        assert_eq!(line.reason(), "client_closed", "{line:?}");
        assert_eq!(line.text("endpoint"), good.address().to_string());
        moved += usize::from(line.number("attempts") == 2);
    }
    assert!(moved >= 2, "{what}: the bad endpoint was tried {moved} times");
    assert_eq!(bad.accepted(), moved, "{what}: connections to the bad endpoint");
    assert!(bad.hellos().iter().all(|sent| *sent == hello), "{what}: the bad endpoint received other bytes");
    assert_eq!(good.hellos(), vec![hello; 8], "{what}: the good endpoint receives each hello once");
    figure!("{what}: 8 calls served, {moved} of them moved");
}

#[test]
fn failover_from_refused_connection() {
    let good = Scripted::echo(b"+");
    let gateway = gateway(&[closed(), good.address()], "");
    let hello = hello(HOST);
    let moved = (0..4).filter(|_| gateway.call(&hello).number("attempts") == 2).count();
    assert!(moved >= 1, "the closed port was never tried");
    assert_eq!(good.hellos(), vec![hello; 4]);
    figure!("refused: 4 calls served, {moved} of them moved");
}

#[test]
fn failover_from_connect_timeout() {
    let hole = BlackHole::new();
    let good = Scripted::echo(b"+");
    let gateway = gateway(&[hole.address(), good.address()], "timeouts: { connect: 300ms }");
    let hello = hello(HOST);
    let mut moved = 0;
    for _ in 0..3 {
        let line = gateway.call(&hello);
        if line.number("attempts") == 2 {
            moved += 1;
            let took = line.number("connect_ms");
            assert!((290..3_000).contains(&took), "{line:?}");
            figure!("black hole with connect timeout 300 ms: moved after {took} ms");
        }
    }
    assert!(moved >= 1, "the black hole was never tried");
    assert_eq!(good.hellos(), vec![hello; 3]);
}

#[test]
fn failover_from_close_after_reading() {
    assert_fails_over("close after the hello", &Scripted::new(|stream, _| drop(stream)));
}

#[test]
fn failover_from_close_without_reading() {
    let good = Scripted::echo(b"+");
    let bad = Scripted::unread(drop);
    let gateway = gateway(&[bad.address(), good.address()], REPLAYS);
    for _ in 0..8 {
        assert_eq!(gateway.call(&hello(HOST)).text("endpoint"), good.address().to_string());
    }
    assert!(bad.accepted() >= 2);
}

#[test]
fn failover_from_reset() {
    assert_fails_over("reset after the hello", &Scripted::new(|stream, _| reset(stream)));
}

#[test]
fn failover_from_half_close() {
    let half = Scripted::new(|mut stream, _| {
        stream.shutdown(Shutdown::Write).unwrap();
        let _rest = rest(&mut stream);
    });
    assert_fails_over("half-close after the hello", &half);
}

#[test]
fn failover_on_fatal_alert_80_or_112() {
    assert_fails_over("fatal alert 80", &Scripted::alerting(80));
    assert_fails_over("fatal alert 112", &Scripted::alerting(112));
}

#[test]
fn failover_on_fragmented_alert() {
    let bad = Scripted::new(|mut stream, _| {
        for byte in alert(112) {
            let _gone = stream.write_all(&[byte]);
            std::thread::yield_now();
        }
    });
    assert_fails_over("fatal alert 112, byte by byte", &bad);
}

#[test]
fn failover_on_alert_with_connection_left_open() {
    let bad = Scripted::new(|mut stream, _| {
        let _gone = stream.write_all(&alert(80));
        let _rest = rest(&mut stream);
    });
    assert_fails_over("fatal alert 80, connection left open", &bad);
}

/// Asserts that an endpoint's first bytes are forwarded unchanged and no other endpoint is tried.
#[track_caller]
fn assert_forwarded(what: &str, bytes: &'static [u8]) {
    let bad = move || {
        Scripted::new(move |mut stream, _| {
            let _gone = stream.write_all(bytes);
        })
    };
    let endpoints = [bad(), bad()];
    let gateway = gateway(&[endpoints[0].address(), endpoints[1].address()], REPLAYS);
    for round in 1..=4 {
        let mut client = send(gateway.address(), &hello(HOST));
        let answer = rest(&mut client);
        assert_eq!(answer, (bytes.to_vec(), End::Fin), "{what}");
        let line = line_of(&gateway, client);
        assert_eq!(line.number("attempts"), 1, "{what}: {line:?}");
        assert_eq!(endpoints[0].accepted() + endpoints[1].accepted(), round, "{what}");
    }
    figure!("{what}: forwarded unchanged, no second attempt");
}

#[test]
fn no_failover_on_other_alerts() {
    assert_forwarded("fatal alert 40", &[21, 3, 3, 0, 2, 2, 40]);
    assert_forwarded("fatal alert 116", &[21, 3, 3, 0, 2, 2, 116]);
    assert_forwarded("warning 112", &[21, 3, 3, 0, 2, 1, 112]);
    assert_forwarded("a record of 3 bytes with the prefix of alert 80", &[21, 3, 3, 0, 3, 2, 80, 0]);
}

#[test]
fn no_failover_after_first_byte() {
    assert_forwarded("one byte of a handshake record", &[22]);
    assert_forwarded("half a handshake record", &[22, 3, 3, 0, 90, 2, 0, 0]);
    assert_forwarded("plain text", b"HTTP/1.1 400 Bad Request\r\n\r\n");
}

#[test]
fn no_failover_after_half_an_alert() {
    assert_forwarded("half an alert", &[21, 3, 3, 0, 2]);
}

#[test]
fn failover_forwards_last_alert_when_all_endpoints_fail() {
    for code in [80, 112] {
        let endpoints: Vec<_> = (0..4).map(|_| Scripted::alerting(code)).collect();
        let addresses: Vec<_> = endpoints.iter().map(Scripted::address).collect();
        let gateway = gateway(&addresses, REPLAYS);
        let hello = hello(HOST);
        let mut client = send(gateway.address(), &hello);
        assert_eq!(rest(&mut client), (alert(code), End::Fin));
        let line = line_of(&gateway, client);
        assert_eq!((line.reason(), line.number("attempts")), ("upstream_rejected", 3), "{line:?}");
        let failed = [r#"reason="upstream_rejected""#];
        assert_eq!(gateway.metrics().sum("isthmus_attempts_failed_total", &failed), 3.0);
        let mut asked: Vec<_> = endpoints.iter().map(Scripted::accepted).collect();
        asked.sort_unstable();
        assert_eq!(asked, [0, 1, 1, 1], "three different endpoints are tried");
        let hellos: Vec<_> = endpoints.iter().flat_map(Scripted::hellos).collect();
        assert_eq!(hellos, vec![hello; 3]);
    }
}

#[test]
fn failover_tries_an_only_endpoint_once() {
    let bad = Scripted::alerting(80);
    let gateway = gateway(&[bad.address()], REPLAYS);
    let mut client = send(gateway.address(), &hello(HOST));
    assert_eq!(rest(&mut client), (alert(80), End::Fin));
    assert_eq!(line_of(&gateway, client).reason(), "upstream_rejected");
    assert_eq!(bad.accepted(), 1);
}

#[test]
fn upstream_rejected_is_logged_whichever_side_closes_first() {
    // The client closes first; the endpoint waits for that.
    let bad = Scripted::new(|mut stream, _| {
        let _gone = stream.write_all(&alert(112));
        let _rest = rest(&mut stream);
    });
    let gateway = gateway(&[bad.address()], "");
    for _ in 0..8 {
        let mut client = send(gateway.address(), &hello(HOST));
        assert_eq!(read_exactly(&mut client, 7), alert(112));
        assert_eq!(line_of(&gateway, client).reason(), "upstream_rejected");
    }
}

#[test]
fn all_endpoints_refusing_gives_alert_and_reason() {
    let gateway = gateway(&[closed(), closed()], "");
    let mut client = send(gateway.address(), &hello(HOST));
    assert_eq!(rest(&mut client), (alert(80), End::Fin));
    let line = line_of(&gateway, client);
    assert_eq!((line.reason(), line.number("attempts")), ("connect_refused", 2), "{line:?}");
}

#[test]
fn failover_tries_three_endpoints_at_most() {
    let dead: Vec<_> = (0..6).map(|_| closed()).collect();
    let gateway = gateway(&dead, "");
    for _ in 0..2 {
        let mut client = send(gateway.address(), &hello(HOST));
        assert_eq!(rest(&mut client), (alert(80), End::Fin));
        let line = line_of(&gateway, client);
        assert_eq!((line.reason(), line.number("attempts")), ("connect_refused", 3), "{line:?}");
    }
    figure!("6 endpoints that refuse: 3 attempts a call, then alert 80");
}

#[test]
fn connect_total_timeout_bounds_all_attempts() {
    let holes = [BlackHole::new(), BlackHole::new(), BlackHole::new()];
    let addresses: Vec<_> = holes.iter().map(BlackHole::address).collect();
    let gateway = gateway(&addresses, "timeouts: { connect: 2s, connect_total: 3s }");
    let mut client = send(gateway.address(), &hello(HOST));
    let started = Instant::now();
    assert_eq!(rest(&mut client), (alert(80), End::Fin));
    let took = started.elapsed();
    assert!(took > Duration::from_millis(2_900) && took < Duration::from_millis(5_500), "{took:?}");
    let line = line_of(&gateway, client);
    assert_eq!((line.reason(), line.number("attempts")), ("connect_timeout", 2), "{line:?}");
    figure!("three black holes, 2 s each, 3 s in total: failed after {took:?}");
}

/// Asserts that a connection with these bytes ends when its first endpoint closes.
#[track_caller]
fn assert_no_failover(what: &str, hello: &[u8], more: &[u8]) {
    let first = Endpoint::new();
    let second = Endpoint::new();
    let gateway = gateway(&[first.address(), second.address()], REPLAYS);
    let mut client = dial(gateway.address());
    client.write_all(&[hello, more].concat()).unwrap();
    let (mut server, other) = either(&first, &second);
    let mut got = read_hello(&mut server).unwrap();
    got.extend(read_exactly(&mut server, more.len()));
    assert_eq!(got, [hello, more].concat(), "{what}: forwarded exactly");
    drop(server);
    let (answer, end) = rest(&mut client);
    assert_ne!(end, End::Open, "{what}");
    assert!(answer.is_empty() || answer == alert(80), "{what}: {answer:?}");
    let line = line_of(&gateway, client);
    assert_eq!(line.number("attempts"), 1, "{what}: {line:?}");
    assert!(other.is_untouched(), "{what}: another endpoint was tried");
    figure!("{what}: not replayed, {} at the client, reason {}", answer.len(), line.reason());
}

/// Accepts a connection on one of two endpoints; also returns the other endpoint.
fn either<'a>(one: &'a Endpoint, two: &'a Endpoint) -> (TcpStream, &'a Endpoint) {
    let mut found = None;
    until("an endpoint is tried", || {
        for (own, other) in [(one, two), (two, one)] {
            if let Some(stream) = own.waiting() {
                found = Some((stream, other));
                return true;
            }
        }
        false
    });
    found.unwrap()
}

#[test]
fn no_failover_with_early_data_or_bytes_after_hello() {
    let early = Hello::new(HOST).and((42, Vec::new())).bytes();
    assert_no_failover("early data offered", &early, b"");
    assert_no_failover("early data sent", &early, &[23, 3, 3, 0, 4, 1, 2, 3, 4]);
    assert_no_failover("bytes after the hello", &hello(HOST), &[20, 3, 3, 0, 1, 1]);
    assert_no_failover("one byte after the hello", &hello(HOST), &[20]);
}

/// An endpoint with a receive buffer of a few KiB.
fn small() -> (TcpListener, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.listen(16).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    (listener, address)
}

const SMALL: &str = "tcp: { send_buffer: 4KiB }";

/// A reset after a part of the first flight was received is not a refused connection.
#[test]
fn no_failover_after_partial_early_data() {
    let (first, address) = small();
    let second = Endpoint::new();
    let gateway = gateway(&[address, second.address()], &format!("{SMALL}\n{REPLAYS}"));
    let early = Hello::new(HOST).and((42, Vec::new())).padded_to(60_000).bytes();
    for _ in 0..4 {
        let mut client = send(gateway.address(), &early);
        let mut server = None;
        until("an endpoint is tried", || {
            first.set_nonblocking(true).unwrap();
            server = first.accept().ok();
            server.is_some() || !second.is_untouched()
        });
        let Some((server, _)) = server else { continue };
        assert_ne!(server.peek(&mut [0; 100]).unwrap_or(1), 0);
        reset(server);
        assert_eq!(rest(&mut client), (Vec::new(), End::Reset));
        let line = line_of(&gateway, client);
        assert_eq!((line.number("attempts"), line.reason()), (1, "upstream_rejected"), "{line:?}");
        assert!(second.is_untouched(), "another endpoint was tried");
    }
}

/// An endpoint that accepts and reads a large hello slowly counts as connected.
#[test]
fn slow_reading_endpoint_counts_as_connected() {
    let (slow, address) = small();
    let more = "timeouts: { connect: 300ms }\nupstream: { ejection: { failures: 1, base: 300s, max: 300s } }";
    let gateway = gateway(&[address], &format!("{SMALL}\n{more}"));
    let hello = Hello::new(HOST).padded_to(60_000).bytes();
    let mut client = send(gateway.address(), &hello);
    let (mut server, _) = slow.accept().unwrap();
    client.set_nonblocking(true).unwrap();
    throughout(Duration::from_secs(1), "the client waits", || client.peek(&mut [0]).is_err());
    client.set_nonblocking(false).unwrap();
    assert!(is_healthy(&gateway, address), "a client has ejected the endpoint");
    assert_eq!(read_hello(&mut server).unwrap(), hello);
    server.write_all(b"+").unwrap();
    assert_eq!(read_exactly(&mut client, 1), b"+");
}

/// A refusing endpoint has received no byte, so sending all bytes to the next one is not a replay.
#[test]
fn failover_from_refusal_moves_early_data() {
    let good = Endpoint::new();
    let gateway = gateway(&[closed(), good.address()], "");
    let early = Hello::new(HOST).and((42, Vec::new())).bytes();
    for hello in [early.clone(), [early, vec![23, 3, 3, 0, 2, 1, 2]].concat()] {
        for _ in 0..2 {
            let mut client = send(gateway.address(), &hello);
            let mut server = good.accept();
            assert_eq!(read_exactly(&mut server, hello.len()), hello);
            server.write_all(b"+").unwrap();
            assert_eq!(read_exactly(&mut client, 1), b"+");
        }
    }
}

#[test]
fn no_failover_after_later_client_bytes() {
    let first = Endpoint::new();
    let second = Endpoint::new();
    let gateway = gateway(&[first.address(), second.address()], REPLAYS);
    let mut client = send(gateway.address(), &hello(HOST));
    let (mut server, other) = either(&first, &second);
    read_hello(&mut server).unwrap();
    client.write_all(b"more").unwrap();
    // Forwarded before the server's first byte.
    assert_eq!(read_exactly(&mut server, 4), b"more");
    drop(server);
    let (answer, end) = rest(&mut client);
    assert!(answer.is_empty() && end != End::Open, "{answer:?} {end:?}");
    assert!(other.is_untouched());
    let line = line_of(&gateway, client);
    assert!(line.0["first_byte_ms"].is_null(), "there was no first byte: {line:?}");
}

#[test]
fn failover_replays_hello_unchanged() {
    let bad = Scripted::alerting(80);
    let good = Scripted::echo(b"+");
    let gateway = gateway(&[bad.address(), good.address()], REPLAYS);
    let message = Hello::new(HOST).padded_to(20_000).message();
    for most in [1, 7, 1_000, 16_384] {
        let hello = records(&message, most);
        for _ in 0..2 {
            gateway.call(&hello);
            assert_eq!(good.hellos().last(), Some(&hello), "records of {most}");
        }
        assert_eq!(bad.hellos().last(), Some(&hello), "records of {most}");
    }
}

#[test]
fn client_reset_cancels_connecting() {
    let hole = BlackHole::new();
    let other = BlackHole::new();
    let gateway =
        gateway(&[hole.address(), other.address()], "timeouts: { connect: 20s, connect_total: 60s }");
    let client = send(gateway.address(), &hello(HOST));
    let peer = client.local_addr().unwrap();
    until("the gateway connects", || gateway.process().sockets().iter().any(|socket| socket.state == 2));
    let started = Instant::now();
    reset(client);
    let line = gateway.log().line_of(peer);
    assert_eq!(line.reason(), "client_gone", "{line:?}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    figure!("a reset cancelled a connect after {:?}", started.elapsed());
}

#[test]
fn no_failover_after_client_reset() {
    let first = Endpoint::new();
    let second = Endpoint::new();
    let gateway = gateway(&[first.address(), second.address()], REPLAYS);
    let client = send(gateway.address(), &hello(HOST));
    let peer = client.local_addr().unwrap();
    let (mut server, other) = either(&first, &second);
    read_hello(&mut server).unwrap();
    reset(client);
    assert_ne!(rest(&mut server).1, End::Open);
    assert_eq!(gateway.log().line_of(peer).reason(), "client_gone");
    assert!(other.is_untouched());
}

#[test]
fn half_closed_client_is_served() {
    let hole = BlackHole::new();
    let good = Endpoint::new();
    let gateway = gateway(&[hole.address(), good.address()], "timeouts: { connect: 500ms }");
    for _ in 0..2 {
        let mut client = send(gateway.address(), &hello(HOST));
        client.shutdown(Shutdown::Write).unwrap();
        let (mut server, _) = good.take();
        assert_eq!(server.read(&mut [0]).unwrap(), 0, "the FIN is forwarded");
        server.write_all(b"answer").unwrap();
        drop(server);
        assert_eq!(rest(&mut client), (b"answer".to_vec(), End::Fin));
    }
}

#[test]
fn failover_for_half_closed_client() {
    let bad = Scripted::alerting(112);
    let good = Endpoint::new();
    let gateway = gateway(&[bad.address(), good.address()], REPLAYS);
    for _ in 0..4 {
        let mut client = send(gateway.address(), &hello(HOST));
        client.shutdown(Shutdown::Write).unwrap();
        let (mut server, got) = good.take();
        assert_eq!(read_hello(&mut got.as_slice()).unwrap(), got);
        assert_eq!(server.read(&mut [0]).unwrap(), 0, "the FIN is forwarded");
        server.write_all(b"answer").unwrap();
        drop(server);
        assert_eq!(rest(&mut client), (b"answer".to_vec(), End::Fin));
    }
    assert!(bad.accepted() >= 1);
}

/// Makes calls against endpoints that all reject; returns the number of replays.
fn replays(gateway: &Gateway, source: &str, calls: usize) -> u64 {
    let source: IpAddr = source.parse().unwrap();
    (0..calls)
        .map(|_| {
            let mut client = dial_from(source, gateway.address());
            client.write_all(&hello(HOST)).unwrap();
            assert_eq!(rest(&mut client), (alert(80), End::Fin));
            line_of(gateway, client).number("attempts") - 1
        })
        .sum()
}

#[test]
fn replay_budget_limits_a_service() {
    let endpoints: Vec<_> = (0..3).map(|_| Scripted::alerting(80)).collect();
    let addresses: Vec<_> = endpoints.iter().map(Scripted::address).collect();
    let gateway = gateway(&addresses, "upstream: { replay: { ratio: 0, burst: 5, source_share: 1 } }");
    let spent = replays(&gateway, "127.0.0.1", 12);
    figure!("burst 5, ratio 0: 12 rejected calls cost {spent} replays");
    assert_eq!(spent, 5);
}

/// Each connection of a client adds to the budget, not each of its attempts.
#[test]
fn replay_budget_does_not_grow_by_replays() {
    let endpoints: Vec<_> = (0..3).map(|_| Scripted::alerting(80)).collect();
    let addresses: Vec<_> = endpoints.iter().map(Scripted::address).collect();
    let gateway = gateway(&addresses, "upstream: { replay: { ratio: 0.5, burst: 4, source_share: 1 } }");
    let spent: u64 = (1..=13).map(|source| replays(&gateway, &format!("127.0.0.{source}"), 1)).sum();
    figure!("burst 4, ratio 0.5: 13 rejected calls cost {spent} replays");
    assert_eq!(spent, 10, "the burst, and 0.5 for each call after the first");
}

#[test]
fn replay_budget_limits_share_of_a_source() {
    let endpoints: Vec<_> = (0..3).map(|_| Scripted::alerting(80)).collect();
    let addresses: Vec<_> = endpoints.iter().map(Scripted::address).collect();
    let gateway = gateway(&addresses, "upstream: { replay: { ratio: 0, burst: 20, source_share: 0.25 } }");
    let greedy = replays(&gateway, "127.0.0.1", 12);
    let modest = replays(&gateway, "127.0.0.2", 2);
    figure!("share 0.25 of burst 20: a greedy source got {greedy} replays, a modest one still {modest}");
    assert_eq!((greedy, modest), (5, 4));
}

/// An endpoint's health in `/services`.
#[track_caller]
fn is_healthy(gateway: &Gateway, endpoint: SocketAddr) -> bool {
    let answer = gateway.admin("GET", "/services");
    assert_eq!(answer.status, 200, "{}", answer.body);
    let page = answer.json();
    let endpoints = page["items"][0]["endpoints"].as_array().unwrap();
    let own = endpoints.iter().find(|one| one["address"] == endpoint.to_string());
    own.and_then(|one| one["healthy"].as_bool()).unwrap_or_else(|| panic!("{endpoint} in {page}"))
}

/// No answer to a client's hello changes the endpoint's health.
#[test]
fn ejection_cannot_be_caused_by_a_client() {
    let moods: [fn(TcpStream); 4] = [
        |mut stream| drop(stream.write_all(&alert(80))),
        |mut stream| drop(stream.write_all(&alert(40))),
        drop,
        reset,
    ];
    for mood in moods {
        let touchy = Scripted::new(move |mut stream, hello| {
            let ill_suited = hello.windows(3).any(|window| window == b"h2c");
            if ill_suited {
                mood(stream);
            } else {
                let _gone = stream
                    .write_all(b"+")
                    .and_then(|()| std::io::copy(&mut stream.try_clone()?, &mut stream));
            }
        });
        let more = "upstream: { ejection: { failures: 2, base: 300s, max: 300s, max_percent: 100 } }";
        let gateway = gateway(&[touchy.address()], more);
        let ill = Hello::new(HOST).and(isthmus_tests::hello::alpn(&["h2c"])).bytes();
        for _ in 0..40 {
            let mut client = send(gateway.address(), &ill);
            let _answer = rest(&mut client);
        }
        let line = gateway.call(&Hello::new(HOST).bytes());
        assert_eq!(line.text("endpoint"), touchy.address().to_string());
        assert_eq!(gateway.metrics().sum("isthmus_ejections_total", &[]), 0.0);
        assert!(is_healthy(&gateway, touchy.address()));
    }
}

#[test]
fn ejection_follows_refused_connections() {
    let good = Scripted::echo(b"+");
    let dead = closed();
    let more =
        "upstream: { demotion: off, ejection: { failures: 2, base: 300s, max: 300s, max_percent: 50 } }";
    let gateway = gateway(&[dead, good.address()], more);
    let attempts: Vec<_> = (0..20).map(|_| gateway.call(&hello(HOST)).number("attempts")).collect();
    figure!("2 refusals eject: attempts of 20 calls {attempts:?}");
    assert_eq!(attempts.iter().filter(|attempts| **attempts == 2).count(), 2, "{attempts:?}");
    assert!(attempts[8..].iter().all(|attempts| *attempts == 1), "{attempts:?}");
    assert!(!is_healthy(&gateway, dead) && is_healthy(&gateway, good.address()));
}

/// An endpoint that may be dead is better than none.
#[test]
fn ejected_endpoints_serve_as_last_resort() {
    let dead = [free(), free()];
    let more =
        "upstream: { demotion: off, ejection: { failures: 1, base: 300s, max: 300s, max_percent: 100 } }";
    let gateway = gateway(&dead, more);
    let mut client = send(gateway.address(), &hello(HOST));
    assert_eq!(rest(&mut client), (alert(80), End::Fin));
    assert_eq!(
        dead.map(|endpoint| is_healthy(&gateway, endpoint)),
        [false, false],
        "both endpoints are ejected"
    );
    let back = dead.map(|address| Scripted::echo_at(Endpoint::at(address), b"+"));
    for _ in 0..4 {
        assert_eq!(gateway.call(&hello(HOST)).reason(), "client_closed");
    }
    figure!("all ejected: 4 of 4 calls served once the endpoints listen again");
    assert_eq!(back[0].accepted() + back[1].accepted(), 4);
}

#[test]
fn ejected_endpoints_return() {
    let endpoint = Endpoint::new();
    let address = endpoint.address();
    drop(endpoint);
    let good = Scripted::echo(b"+");
    let more = "upstream: { ejection: { failures: 1, base: 1s, max: 1s, max_percent: 50 } }";
    let gateway = gateway(&[address, good.address()], more);
    let hello = hello(HOST);
    until("the dead endpoint is tried", || gateway.call(&hello).number("attempts") == 2);
    let back = Scripted::echo_at(Endpoint::at(address), b"+");
    until("the ejected endpoint serves again", || {
        gateway.call(&hello).text("endpoint") == back.address().to_string()
    });
}

#[test]
fn attempts_1_disables_failover() {
    let endpoints = [Scripted::alerting(80), Scripted::alerting(80)];
    let addresses: Vec<_> = endpoints.iter().map(Scripted::address).collect();
    let gateway = gateway(&addresses, "upstream: { attempts: 1, demotion: off }");
    let mut client = send(gateway.address(), &hello(HOST));
    assert_eq!(rest(&mut client), (alert(80), End::Fin));
    throughout(Duration::from_millis(200), "one endpoint was asked", || {
        endpoints[0].accepted() + endpoints[1].accepted() == 1
    });
}

/// A gateway with a balancing policy and weights.
fn weighted(balance: &str, endpoints: &[(SocketAddr, u16)]) -> Gateway {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(address, weight)| format!("{{address: \"{address}\", weight: {weight}}}"))
        .collect();
    Setup::new(service_of(HOST, &[&format!("balance: {balance}")], &endpoints)).start()
}

#[test]
fn round_robin_follows_weights_exactly() {
    for weights in [[1, 1, 1], [3, 2, 1]] {
        let endpoints = [(); 3].map(|()| Scripted::echo(b"+"));
        let list: Vec<_> = endpoints.iter().map(Scripted::address).zip(weights).collect();
        let gateway = weighted("round_robin", &list);
        let rounds = 10;
        for _ in 0..weights.iter().sum::<u16>() * rounds {
            gateway.call(&hello(HOST));
        }
        let got = endpoints.each_ref().map(Scripted::accepted);
        figure!("round_robin, weights {weights:?}, {rounds} rounds, 2 workers: {got:?}");
        assert_eq!(got, weights.map(|weight| usize::from(weight * rounds)));
    }
}

/// Not even as a last resort: weight 0 drains on purpose.
#[test]
fn weight_0_endpoint_gets_no_connection() {
    for balance in ["round_robin", "least_connections", "random", "source_hash"] {
        let [drained, good] = [(); 2].map(|()| Scripted::echo(b"+"));
        let gateway = weighted(balance, &[(drained.address(), 0), (good.address(), 1)]);
        for _ in 0..20 {
            gateway.call(&hello(HOST));
        }
        assert_eq!((drained.accepted(), good.accepted()), (0, 20), "{balance}");
        let gateway = weighted(balance, &[(drained.address(), 0), (closed(), 1)]);
        let mut client = send(gateway.address(), &hello(HOST));
        assert_eq!(rest(&mut client), (alert(80), End::Fin), "{balance}");
        assert_eq!(drained.accepted(), 0, "{balance}: it took over from a refusing endpoint");
    }
}

/// The endpoint of each of 40 sources, the same in two calls.
#[track_caller]
fn by_source(gateway: &Gateway) -> Vec<String> {
    let serve = |number: u8| {
        let mut client = dial_from(IpAddr::from([127, 0, 7, number]), gateway.address());
        client.write_all(&hello(HOST)).unwrap();
        assert_eq!(read_exactly(&mut client, 1), b"+");
        line_of(gateway, client).text("endpoint").to_owned()
    };
    (1..=40)
        .map(|number| {
            let first = serve(number);
            assert_eq!(serve(number), first, "a source keeps its endpoint");
            first
        })
        .collect()
}

#[test]
fn source_hash_keeps_sources_on_their_endpoints() {
    let endpoints = [(); 4].map(|()| Scripted::echo(b"+"));
    let addresses = endpoints.each_ref().map(Scripted::address);
    let keys = ["balance: source_hash"];
    let gateway = Setup::new(service(HOST, &keys, &addresses)).start();
    let before = by_source(&gateway);
    let gone = addresses[0].to_string();
    let text = std::fs::read_to_string(gateway.file()).unwrap();
    let fewer = text.replace(&format!("{{address: \"{gone}\"}}, "), "");
    assert_ne!(fewer, text);
    let beside = gateway.file().with_extension("new");
    std::fs::write(&beside, fewer).unwrap();
    std::fs::rename(&beside, gateway.file()).unwrap();
    until("the edit is live", || !gateway.admin("GET", "/services").body.contains(&gone));
    let after = by_source(&gateway);
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    let had = before.iter().filter(|endpoint| **endpoint == gone).count();
    let used: std::collections::BTreeSet<_> = before.iter().collect();
    figure!("source_hash: 40 sources on {} endpoints; one with {had} is removed, {moved} move", used.len());
    assert!(used.len() >= 3, "{used:?}");
    assert_eq!(moved, had, "only sources of the removed endpoint move");
}
