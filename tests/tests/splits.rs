//! Splits and priorities of a running gateway: shares are exact, an edit loses no connection, a part that fails is taken
//! out, and nearer endpoints come first.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;

use isthmus_model::admin::gateway::Explanation;
use isthmus_tests::client::{End, alert, read_exactly, rest, send};
use isthmus_tests::endpoint::{Scripted, closed};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::hello;
use isthmus_tests::setup::{Setup, service_of};
use isthmus_tests::wait::until;

const HOST: &str = "web.example";

/// An endpoint that answers each hello with one byte and closes.
fn answering() -> Scripted {
    Scripted::echo(b"+")
}

fn labelled(address: std::net::SocketAddr, version: &str) -> String {
    format!("{{ address: \"{address}\", labels: {{ version: {version} }} }}")
}

fn split([stable, canary]: [u16; 2], more: &str) -> String {
    format!(
        "traffic: {{ split: [{{ labels: {{ version: v1 }}, weight: {stable} }}, {{ labels: {{ version: v2 }}, weight: {canary}{more} }}] }}"
    )
}

fn services(weights: [u16; 2], more: &str, endpoints: &[String]) -> String {
    service_of(HOST, &[&split(weights, more)], endpoints)
}

#[track_caller]
fn call(gateway: &Gateway, hello: &[u8]) {
    let mut client = send(gateway.address(), hello);
    assert_eq!(read_exactly(&mut client, 1), b"+");
}

#[test]
fn split_is_exact_over_ten_thousand_connections() {
    let (stable, canary) = (answering(), answering());
    let endpoints = [labelled(stable.address(), "v1"), labelled(canary.address(), "v2")];
    let gateway = Setup::new(services([90, 10], "", &endpoints)).start();
    let hello = Arc::new(hello(HOST));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..2_500).for_each(|_| call(&gateway, &hello)));
        }
    });
    let share = canary.accepted();
    assert_eq!(stable.accepted() + share, 10_000);
    assert!((990..=1_010).contains(&share), "{share} of 10000 for a weight of 10 %");
}

#[test]
fn edit_of_a_split_loses_no_connection() {
    let (stable, canary) = (answering(), answering());
    let endpoints = [labelled(stable.address(), "v1"), labelled(canary.address(), "v2")];
    let gateway = Setup::new(services([100, 0], "", &endpoints)).start();
    let hello = hello(HOST);
    let mut open = send(gateway.address(), &hello);
    assert_eq!(read_exactly(&mut open, 1), b"+");
    let (ends, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    let address = gateway.address();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(Relaxed) {
                let mut client = send(address, &hello);
                assert_eq!(read_exactly(&mut client, 1), b"+", "a call failed during an edit");
                calls.fetch_add(1, Relaxed);
            }
        });
        for [from, to] in [[[100, 0], [90, 10]], [[90, 10], [50, 50]], [[50, 50], [0, 100]]] {
            gateway.edit(&services(from, "", &endpoints), &services(to, "", &endpoints));
            let before = canary.accepted();
            until("the part that was given weight gets calls", || canary.accepted() > before);
        }
        let before = stable.accepted();
        let made = calls.load(Relaxed);
        until("more calls are made", || calls.load(Relaxed) > made + 50);
        assert!(stable.accepted() <= before + 1, "a part of weight 0 gets none but what was on its way");
        ends.store(true, Relaxed);
    });
    isthmus_tests::client::echo(&mut open, b"still here");
}

#[test]
fn split_part_that_refuses_is_taken_out_without_a_failed_call() {
    let stable = answering();
    let endpoints = [labelled(stable.address(), "v1"), labelled(closed(), "v2")];
    let gateway = Setup::new(services([50, 50], ", abort_if: failures > 5 %", &endpoints))
        .with("upstream: { demotion: off, ejection: { failures: 0 } }")
        .start();
    let hello = hello(HOST);
    let aborts = || gateway.metrics().sum("isthmus_split_aborts_total", &[]);
    let mut calls = 0;
    while aborts() < 1.0 {
        assert!(calls < 1_000, "the part stays");
        call(&gateway, &hello);
        calls += 1;
    }
    for _ in 0..20 {
        call(&gateway, &hello);
    }
    let status = gateway.status();
    assert_eq!(status.split_aborts[0].part, "labels: { version: \"v2\" }", "{status:?}");
    let explained: Explanation = gateway.admin("GET", &format!("/explain?sni={HOST}")).page();
    assert!(explained.matched.unwrap().split[1].aborted);
}

/// Probes alone count as much as connects.
#[test]
fn split_part_that_fails_its_probes_is_taken_out_before_any_call() {
    let stable = answering();
    let canaries = (0..60).map(|_| labelled(closed(), "v2"));
    let endpoints: Vec<_> = std::iter::once(labelled(stable.address(), "v1")).chain(canaries).collect();
    let keys = [&*split([90, 10], ", abort_if: failures > 5 %"), "health: { probe: tls, interval: 1s }"];
    let gateway = Setup::new(service_of(HOST, &keys, &endpoints)).start();
    until("the part is taken out", || !gateway.status().split_aborts.is_empty());
    assert_eq!(gateway.metrics().sum("isthmus_connections_accepted_total", &[]), 0.0);
    call(&gateway, &hello(HOST));
}

/// kgateway#11548.
#[test]
fn service_without_weight_refuses_its_name_and_harms_no_other() {
    let good = answering();
    let idle = answering();
    let services = |good: &Scripted| {
        let weightless = format!("{{ address: \"{}\", weight: 0 }}", idle.address());
        let other = format!("{{ address: \"{}\" }}", good.address());
        service_of("idle.example", &[], &[weightless]) + &service_of(HOST, &[], &[other])
    };
    let gateway = Setup::new(services(&good)).start();
    let mut client = send(gateway.address(), &hello("idle.example"));
    assert_eq!(rest(&mut client), (alert(80), End::Fin));
    call(&gateway, &hello(HOST));
    let later = answering();
    gateway.edit(&services(&good), &services(&later));
    call(&gateway, &hello(HOST));
    assert_eq!((later.accepted(), idle.accepted()), (1, 0));
}

#[test]
fn nearer_endpoints_come_first_and_farther_ones_serve_when_they_are_gone() {
    let (zone, region, far) = (answering(), answering(), answering());
    let place = |server: &Scripted, region: &str, zone: &str| {
        format!("{{ address: \"{}\", locality: {{ region: {region}, zone: {zone} }} }}", server.address())
    };
    let endpoints = [place(&far, "us", "a"), place(&region, "eu", "b"), place(&zone, "eu", "a")];
    let gateway = Setup::new(service_of(HOST, &[], &endpoints))
        .with("node: { locality: { region: eu, zone: a } }")
        .start();
    let hello = hello(HOST);
    for _ in 0..10 {
        call(&gateway, &hello);
    }
    assert_eq!((zone.accepted(), region.accepted(), far.accepted()), (10, 0, 0));
    drop(zone);
    for _ in 0..10 {
        call(&gateway, &hello);
    }
    assert_eq!((region.accepted(), far.accepted()), (10, 0));
}
