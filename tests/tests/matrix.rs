//! The gateway matrix: gateways measure the way to other clusters' gateways, prefer the nearer, avoid those that are
//! down, and report to their agent, which counts unhealthy endpoints out for other clusters.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::Read as _;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use isthmus_tests::client::{alert, rest, send};
use isthmus_tests::cluster::{Cluster, east_west, outbound};
use isthmus_tests::endpoint::{Endpoint, Scripted};
use isthmus_tests::figure;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::hello;
use isthmus_tests::relay::Relay;
use isthmus_tests::wait::{DEADLINE, until, until_some};
use serde_json::Value;

const HOST: &str = "details.bookinfo.svc.cluster.local";
const UNRECOGNIZED_NAME: u8 = 112;
const PROBE: &str = "_probe.isthmus.invalid";
/// Ejections that end soon: what is tested here is the matrix.
const SHORT_EJECTIONS: &str = "upstream: { ejection: { base: 1s, max: 1s } }";

/// A cluster that exports a service, whose gateway stands at a distance.
struct Remote {
    cluster: Cluster,
    gateway: Gateway,
    relay: Relay,
}

impl Remote {
    fn new(name: &str, round_trip: Duration) -> Remote {
        let mut cluster = Cluster::new(name);
        cluster.start();
        let gateway = cluster.gateway("gw-1");
        cluster.stop();
        let relay = Relay::new(east_west(&gateway), round_trip);
        let port = relay.address().port();
        cluster.set("gateways", &format!("[{{ name: gw-1, address: 127.0.0.1, port: {port} }}]"));
        cluster.set("exports", "[{ workspace: [bookinfo] }]");
        Remote { cluster, gateway, relay }
    }

    /// Offers a service at these endpoints.
    fn offer(&self, endpoints: &[SocketAddr]) {
        let endpoints: Vec<_> =
            endpoints.iter().map(|address| format!("{{ address: '{address}' }}")).collect();
        let text = format!(
            "services: [{{ host: {HOST}, merge: true, allow_unauthenticated: true, endpoints: [{}] }}]",
            endpoints.join(", ")
        );
        self.cluster.register("details.yaml", &text);
    }
}

/// West imports from all others; these follow it as well.
fn west(remotes: &mut [&mut Remote]) -> (Cluster, Gateway) {
    let mut west = Cluster::new("west");
    west.start();
    for remote in &mut *remotes {
        west.trust_cluster(&remote.cluster);
        remote.cluster.trust_cluster(&west);
        remote.cluster.set("peers", &format!("[{}]", west.as_peer()));
        remote.cluster.start();
    }
    west.stop();
    let peers: Vec<_> = remotes.iter().map(|remote| remote.cluster.as_peer()).collect();
    let import = |remote: &&mut Remote| {
        let name = remote.cluster.name();
        format!("{{ cluster: {name}, hosts: ['*.bookinfo.svc.cluster.local'], gatewayCIDRs: [127.0.0.0/8] }}")
    };
    let imports: Vec<_> = remotes.iter().map(import).collect();
    west.set("peers", &format!("[{}]", peers.join(", ")));
    west.set("imports", &format!("[{}]", imports.join(", ")));
    west.start();
    let gateway = west.setup("gw-1").with(SHORT_EJECTIONS).start();
    (west, gateway)
}

/// The greeting of the server that answers a call.
fn call(gateway: SocketAddr) -> String {
    let mut answer = [0; 4];
    send(gateway, &hello(HOST)).read_exact(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn rows(gateway: &Gateway) -> Vec<Value> {
    let page: Value = serde_json::from_str(&gateway.admin("GET", "/matrix").body).unwrap();
    page["rows"].as_array().unwrap().clone()
}

fn row(gateway: &Gateway, cluster: &str) -> Option<Value> {
    rows(gateway).into_iter().find(|row| row["cluster"] == cluster)
}

fn has_class(gateway: &Gateway, cluster: &str, class: u64) -> bool {
    row(gateway, cluster).is_some_and(|row| row["class"] == class)
}

fn has_state(gateway: &Gateway, cluster: &str, state: &str) -> bool {
    row(gateway, cluster).is_some_and(|row| row["state"] == state)
}

#[test]
fn matrix_prefers_the_nearer_cluster_fails_over_and_returns_once() {
    let (servers_near, servers_far) = (Scripted::echo(b"near"), Scripted::echo(b"far."));
    let mut near = Remote::new("near", Duration::from_millis(30));
    let mut far = Remote::new("far", Duration::from_millis(90));
    near.offer(&[servers_near.address()]);
    far.offer(&[servers_far.address()]);
    let (west, gateway) = west(&mut [&mut near, &mut far]);
    let out = outbound(&gateway);
    until("both are measured", || has_class(&gateway, "far", 1) && has_state(&gateway, "near", "up"));
    let measured = |cluster: &str| row(&gateway, cluster).unwrap()["rtt_micros"].as_u64().unwrap() / 1_000;
    figure!("round trips of 30 and 90 ms are measured as {} and {} ms", measured("near"), measured("far"));
    assert!(measured("near") >= 30 && measured("far") >= 90);

    // Each call is answered, whatever happens.
    until("calls go to the nearer", || (0..10).all(|_| call(out) == "near"));
    let mut answers = Vec::new();
    let mut calls = |condition: &dyn Fn(&str) -> bool| {
        let began = Instant::now();
        loop {
            let answer = call(out);
            let is_met = condition(&answer);
            answers.push(answer);
            if is_met {
                return began.elapsed();
            }
            assert!(began.elapsed() < DEADLINE, "{:?}", gateway.errors());
        }
    };
    calls(&|answer| answer == "near");
    near.relay.cut();
    let moved = calls(&|answer| answer == "far.");
    calls(&|_| has_state(&gateway, "near", "down"));
    near.relay.mend();
    let returned = calls(&|answer| answer == "near" && has_state(&gateway, "near", "up"));
    for _ in 0..50 {
        calls(&|_| true);
    }
    let count = answers.len();
    answers.dedup();
    figure!("{count} calls: none fails, they move after {moved:?}, and return after {returned:?}");
    assert_eq!(answers, ["near", "far.", "near"]);

    // A gateway that is slow rather than dead loses its preference.
    near.relay.set_round_trip(Duration::from_millis(400));
    until_patiently("the slow one is farther", || {
        has_class(&gateway, "near", 1) && has_class(&gateway, "far", 0)
    });
    until("calls go to the other", || call(out) == "far.");
    let matrix = west.ask("/matrix");
    assert_eq!(matrix["gateways"].as_object().unwrap().len(), 1, "{matrix}");
}

/// Smoothing and hysteresis take their time.
#[track_caller]
fn until_patiently(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < DEADLINE * 4, "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn matrix_probe_is_counted_apart_and_not_logged() {
    let server = Scripted::echo(b"near");
    let mut near = Remote::new("near", Duration::ZERO);
    near.offer(&[server.address()]);
    let (_west, gateway) = west(&mut [&mut near]);
    until("the way is measured", || has_state(&gateway, "near", "up"));
    let ended = |reason: &str| {
        let reason = format!("reason=\"{reason}\"");
        near.gateway.metrics().sum("isthmus_connections_ended_total", &[&reason])
    };
    until("probes are counted", || ended("gateway_probe") >= 3.0);
    assert_eq!(ended("sni_unmatched"), 0.0);
    assert_eq!(near.gateway.log().count(|line| line.reason() == "gateway_probe"), 0);
    assert_eq!(call(outbound(&gateway)), "near");
    for at in [outbound(&gateway), east_west(&gateway), east_west(&near.gateway)] {
        let (answer, _) = rest(&mut send(at, &hello(PROBE)));
        assert_eq!(answer, alert(UNRECOGNIZED_NAME));
    }
    let metrics = gateway.metrics();
    assert!(metrics.sum("isthmus_matrix_probes_total", &["result=\"alert\""]) >= 3.0);
    assert_eq!(metrics.sum("isthmus_matrix_up", &["cluster=\"near\""]), 1.0);
}

#[test]
fn matrix_reserved_name_is_refused_as_host_and_alias() {
    for service in [
        format!("{{ host: {PROBE} }}"),
        format!("{{ host: a.example, aliases: [{PROBE}] }}"),
        "{ host: '*.isthmus.invalid' }".to_owned(),
    ] {
        let cluster = Cluster::new("east");
        let file = cluster.path("gateway.yaml");
        std::fs::write(&file, format!("listeners: [{{ address: '127.0.0.1:0' }}]\nservices: [{service}]\n"))
            .unwrap();
        let output = isthmus_tests::gateway::run_to_end(&["check", "--config", file.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("reserved"), "{service}: {said}");
    }
}

/// The ready endpoints behind the gateway of a cluster, as another one's gateway weighs it.
fn weight(gateway: &Gateway) -> Option<u64> {
    let page: Value = serde_json::from_str(&gateway.admin("GET", "/services").body).unwrap();
    let services = page["items"].as_array()?;
    let service = services.iter().find(|service| service["service"] == format!("{HOST}:443"))?;
    service["endpoints"][0]["weight"].as_u64()
}

#[test]
fn reported_health_lowers_ready_counts_for_peers_and_a_restarted_agent_withdraws_nothing() {
    let server = Scripted::echo(b"east");
    let dead = Scripted::echo(b"east");
    let mut east = Remote::new("east", Duration::ZERO);
    east.offer(&[server.address(), dead.address()]);
    let (_west, gateway) = west(&mut [&mut east]);
    until("both endpoints are ready", || weight(&gateway) == Some(2));
    let (dead_at, ask) = (dead.address(), |path: &str| east.cluster.ask(path));
    let unhealthy = |page: &Value| {
        let reports = page["gateways"].as_object().unwrap().values();
        reports.map(|report| report["unhealthy_count"].as_u64().unwrap()).sum::<u64>()
    };
    until("east's gateway reports", || ask("/matrix")["gateways"].as_object().unwrap().len() == 1);
    assert_eq!(unhealthy(&ask("/matrix")), 0);
    drop(dead);
    let here = outbound(&east.gateway);
    until("the dead endpoint is counted out", || call(here) == "east" && weight(&gateway) == Some(1));
    assert_eq!(unhealthy(&ask("/matrix")), 1);
    assert_eq!(
        ask("/matrix")["gateways"].as_object().unwrap().values().next().unwrap()["unhealthy"][0]["address"],
        dead_at.to_string()
    );
    // The own gateways' slices have both endpoints as before.
    let page = east.gateway.admin("GET", "/services").body;
    assert!(page.contains(&dead_at.to_string()) && !page.contains("\"weight\":0"), "{page}");

    let mut lowest = 2;
    east.cluster.stop();
    east.cluster.start();
    until_some("the restarted agent has a report", || {
        lowest = lowest.min(weight(&gateway).unwrap_or(0));
        let page = east.cluster.ask("/matrix");
        (unhealthy(&page) == 1).then_some(())
    });
    assert!(lowest >= 1, "something was withdrawn");
    let back = Scripted::echo_at(Endpoint::at(dead_at), b"east");
    until_patiently("both endpoints are ready again", || call(here) == "east" && weight(&gateway) == Some(2));
    drop(back);
}
