//! Circuit breakers and the retry budget: what is beyond a limit is refused at once, and every counter returns to zero.

use isthmus_tests::client::{End, alert, read_exactly, reset, rest, send};
use isthmus_tests::endpoint::{BlackHole, Scripted};
use isthmus_tests::figure;
use isthmus_tests::hello::hello;
use isthmus_tests::wait::until;

use super::{HOST, call, gateway, refused, until_idle};

#[test]
fn limit_pending_refuses_connects_at_once() {
    let (hole, good) = (BlackHole::new(), Scripted::echo(b"+"));
    let more = "timeouts: { connect: 5m, connect_total: 10m }\nupstream: { demotion: off }";
    let gateway = gateway(&["traffic: { max_pending: 2 }"], &[good.address()], more);
    call(&gateway, &hello(HOST));
    gateway.edit(&good.address().to_string(), &hole.address().to_string());
    let pending = || gateway.metrics().sum("isthmus_service_connects_pending", &[]);
    let waiting: Vec<_> = (1..=2)
        .map(|count| {
            let client = send(gateway.address(), &hello(HOST));
            until("the connect is pending", || pending() == f64::from(count));
            client
        })
        .collect();
    for _ in 0..5 {
        let line = refused(&gateway, &hello(HOST));
        assert_eq!((line.reason(), line.number("attempts")), ("limit_pending", 0), "{line:?}");
    }
    waiting.into_iter().for_each(reset);
    until_idle(&gateway);
    gateway.edit(&hole.address().to_string(), &good.address().to_string());
    call(&gateway, &hello(HOST));
}

#[test]
fn limit_endpoint_passes_over_full_endpoints() {
    for balance in ["round_robin", "least_connections", "random", "source_hash"] {
        let endpoints = [(); 2].map(|()| Scripted::echo(b"+"));
        let addresses = endpoints.each_ref().map(Scripted::address);
        let keys = [&format!("balance: {balance}"), "traffic: { max_connections_per_endpoint: 2 }"];
        let gateway = gateway(&keys, &addresses, "");
        let mut open: Vec<_> = (0..4)
            .map(|_| {
                let mut client = send(gateway.address(), &hello(HOST));
                assert_eq!(read_exactly(&mut client, 1), b"+", "{balance}");
                client
            })
            .collect();
        assert_eq!(endpoints.each_ref().map(Scripted::accepted), [2, 2], "{balance}");
        let line = refused(&gateway, &hello(HOST));
        assert_eq!((line.reason(), line.number("attempts")), ("limit_endpoint", 0), "{line:?}");
        let peer = open[0].local_addr().unwrap();
        drop(open.remove(0));
        gateway.log().line_of(peer);
        call(&gateway, &hello(HOST));
        drop(open);
        until_idle(&gateway);
    }
}

/// All endpoints are ejected and connect nobody: of 100 calls at once a fifth may retry at another one.
#[test]
fn retry_budget_bounds_retries_of_simultaneous_connects() {
    let good = Scripted::echo(b"+");
    let holes = [BlackHole::new(), BlackHole::new()];
    let more = "timeouts: { connect: 1s }\nupstream: { demotion: off, attempts: 2, ejection: { failures: 1, base: 300s, max: 300s, max_percent: 100 } }";
    let gateway = gateway(&["balance: round_robin"], &[good.address()], more);
    call(&gateway, &hello(HOST));
    let one = format!("{{address: \"{}\"}}", good.address());
    let two = format!("{{address: \"{}\"}}, {{address: \"{}\"}}", holes[0].address(), holes[1].address());
    gateway.edit(&one, &two);
    let line = refused(&gateway, &hello(HOST));
    assert_eq!((line.reason(), line.number("attempts")), ("connect_timeout", 2), "{line:?}");
    assert_eq!(gateway.metrics().sum("isthmus_ejections_total", &[]), 2.0);
    let before = gateway.metrics().sum("isthmus_moves_total", &[]);
    let clients: Vec<_> = (0..100).map(|_| send(gateway.address(), &hello(HOST))).collect();
    for mut client in clients {
        assert_eq!(rest(&mut client), (alert(80), End::Fin));
    }
    let retries = gateway.metrics().sum("isthmus_moves_total", &[]) - before;
    figure!("100 calls at once to ejected endpoints: {retries} retries");
    assert!((3.0..=20.0).contains(&retries), "{retries} retries");
    until_idle(&gateway);
}
