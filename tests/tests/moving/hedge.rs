//! A connect that takes longer than usual has a second one beside it.

use std::io::Write as _;

use isthmus_tests::client::{echo, read_exactly, send};
use isthmus_tests::endpoint::{BlackHole, Endpoint, Scripted};
use isthmus_tests::ends::{Domains, connect};
use isthmus_tests::figure;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::{Hello, hello, read_hello};
use isthmus_tests::wait::until;

use super::{HOST, call, gateway, put_first, until_idle};

/// Far beyond what a test waits: what is served was not served by a timeout.
const PATIENT: &str =
    "timeouts: { connect: 5m, connect_total: 10m }\nupstream: { demotion: off, ejection: { failures: 0 } }";

/// Connects before the service's connect time is known.
const SAMPLES: usize = 20;

fn hedges(gateway: &Gateway, result: &str) -> f64 {
    gateway.metrics().sum("isthmus_hedges_total", &[&format!(r#"result="{result}""#)])
}

#[test]
fn hedge_serves_calls_beside_a_black_hole() {
    let (hole, good) = (BlackHole::new(), Scripted::echo(b"+"));
    let gateway = gateway(&["balance: round_robin"], &[good.address()], PATIENT);
    (0..SAMPLES).for_each(|_| drop(call(&gateway, &hello(HOST))));
    put_first(&gateway, hole.address());
    let early = Hello::new(HOST).and((42, Vec::new())).bytes();
    let mut hedged = 0;
    for hello in [hello(HOST), early.clone(), hello(HOST), [early, vec![23, 3, 3, 0, 2, 1, 2]].concat()] {
        let mut client = send(gateway.address(), &hello);
        assert_eq!(read_exactly(&mut client, 1), b"+");
        let peer = client.local_addr().unwrap();
        drop(client);
        let line = gateway.log().line_of(peer);
        assert_eq!(line.text("endpoint"), good.address().to_string(), "{line:?}");
        hedged += u32::from(line.number("attempts") == 2);
    }
    assert!(hedged >= 1, "the black hole was never tried");
    assert_eq!((hedges(&gateway, "won"), hedges(&gateway, "lost")), (f64::from(hedged), 0.0));
    assert_eq!(gateway.metrics().sum("isthmus_attempts_failed_total", &[]), 0.0);
    until_idle(&gateway);
    figure!("4 calls, {hedged} of them beside a black hole: all served without a timeout");
}

#[test]
fn hedge_begins_after_enough_connects() {
    let (hole, good) = (BlackHole::new(), Scripted::echo(b"+"));
    let more = "timeouts: { connect: 400ms }\nupstream: { demotion: off }";
    let gateway = gateway(&["balance: round_robin"], &[good.address()], more);
    call(&gateway, &hello(HOST));
    put_first(&gateway, hole.address());
    let failed = || gateway.metrics().sum("isthmus_attempts_failed_total", &[r#"reason="connect_timeout""#]);
    until("the black hole is tried", || {
        call(&gateway, &hello(HOST));
        failed() > 0.0
    });
    assert_eq!(hedges(&gateway, "won") + hedges(&gateway, "lost"), 0.0);
}

/// The slow endpoint is learned from, as one that timed out is.
#[test]
fn hedge_puts_the_slow_endpoint_last() {
    let (hole, good) = (BlackHole::new(), Scripted::echo(b"+"));
    let more = "timeouts: { connect: 5m, connect_total: 10m }\nupstream: { demotion: 300s }";
    let gateway = gateway(&["balance: round_robin"], &[good.address()], more);
    (0..SAMPLES).for_each(|_| drop(call(&gateway, &hello(HOST))));
    put_first(&gateway, hole.address());
    let attempts: Vec<_> = (0..8).map(|_| call(&gateway, &hello(HOST)).number("attempts")).collect();
    assert_eq!(attempts.iter().filter(|attempts| **attempts == 2).count(), 1, "{attempts:?}");
    assert_eq!(gateway.metrics().sum("isthmus_demotions_total", &[]), 1.0);
    assert_eq!(gateway.metrics().sum("isthmus_ejections_total", &[]), 0.0);
}

/// Both are slow, the first comes round after all: the second was tried, and has received nothing.
#[test]
fn hedge_that_loses_gets_no_byte() {
    let good = Scripted::echo(b"+");
    let (first, second) = (BlackHole::new(), BlackHole::new());
    let gateway = gateway(&["balance: round_robin"], &[good.address()], PATIENT);
    (0..SAMPLES).for_each(|_| drop(call(&gateway, &hello(HOST))));
    let all = format!("endpoints: [{{address: \"{}\"}}]", good.address());
    let slow =
        format!("endpoints: [{{address: \"{}\"}}, {{address: \"{}\"}}]", first.address(), second.address());
    gateway.edit(&all, &slow);
    let sent = hello(HOST);
    let mut client = send(gateway.address(), &sent);
    let connecting = || {
        let sockets = gateway.process().sockets();
        sockets.iter().filter(|socket| socket.state == 2).count()
    };
    until("both are being connected", || connecting() == 2);
    let opened = first.open();
    let (mut server, got) = std::iter::from_fn(|| opened.accept().ok())
        .find_map(|(mut stream, _)| read_hello(&mut stream).ok().map(|got| (stream, got)))
        .unwrap();
    assert_eq!(got, sent);
    until("the second is given up", || connecting() == 0);
    server.write_all(b"+").unwrap();
    assert_eq!(read_exactly(&mut client, 1), b"+");
    let second = second.open();
    second.set_nonblocking(true).unwrap();
    for (mut stream, _) in std::iter::from_fn(|| second.accept().ok()) {
        stream.set_nonblocking(true).unwrap();
        assert!(!read_hello(&mut stream).is_ok_and(|bytes| !bytes.is_empty()), "the second got bytes");
    }
    assert_eq!((hedges(&gateway, "won"), hedges(&gateway, "lost")), (0.0, 1.0));
}

/// MariaDB blocks a host whose connections end without a byte.
#[test]
fn hedge_leaves_servers_without_tls_alone() {
    let domains = Domains::new();
    let backend = Endpoint::new();
    let hole = BlackHole::new();
    let more = "timeouts: { connect: 400ms }\nupstream: { demotion: off }";
    let gateway = domains.terminating(&["app"], backend.address()).with(more).start();
    domains.issue("east", "app");
    let client = domains.client("east", "app");
    let served = || {
        let mut tls = connect(&client, gateway.address());
        tls.write_all(b"hello").unwrap();
        let mut server = backend.accept();
        assert_eq!(read_exactly(&mut server, 5), b"hello");
    };
    (0..SAMPLES).for_each(|_| served());
    put_first(&gateway, hole.address());
    let failed = || gateway.metrics().sum("isthmus_attempts_failed_total", &[r#"reason="connect_timeout""#]);
    until("the black hole is tried", || {
        served();
        failed() > 0.0
    });
    assert_eq!(hedges(&gateway, "won") + hedges(&gateway, "lost"), 0.0);
}

/// Of many calls at once a fifth may hedge, the others wait for their own connect.
#[test]
fn hedge_beyond_the_budget_waits_for_its_own_connect() {
    let (hole, good) = (BlackHole::new(), Scripted::echo(b"+"));
    let more = "timeouts: { connect: 2s, connect_total: 10m }\nupstream: { demotion: off, ejection: { failures: 0 } }";
    let gateway = gateway(&["balance: round_robin"], &[good.address()], more);
    (0..SAMPLES).for_each(|_| drop(call(&gateway, &hello(HOST))));
    put_first(&gateway, hole.address());
    let mut clients: Vec<_> = (0..60).map(|_| send(gateway.address(), &hello(HOST))).collect();
    for client in &mut clients {
        assert_eq!(read_exactly(client, 1), b"+");
        echo(client, b"ping");
    }
    drop(clients);
    until_idle(&gateway);
}
