//! An agent that is busy: its health check and its pages are answered in the middle of a large change, and its streams
//! go on. That they were answered in the middle shows in what they say.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::collections::BTreeSet;
use std::fmt::Write as _;

use isthmus_tests::cluster::Cluster;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::http;
use isthmus_tests::wait::until;

/// Slices of the peer.
const SLICES: usize = 5_000;
/// Services in the large file, and its size: a debug build reads it for seconds.
const SERVICES: usize = 5_000;
const FILE: usize = 4 << 20;

fn services(name: &str, count: usize, size: usize) -> String {
    let padding = "x".repeat(size / count);
    let mut text = "services:\n".to_owned();
    for number in 0..count {
        let endpoint = format!("10.0.{}.{}:443", number / 250, number % 250 + 1);
        writeln!(text, "- {{ host: {name}-{number}.busy.example, allow_unauthenticated: true, endpoints: [{{ address: '{endpoint}' }}] }} # {padding}").unwrap();
    }
    text
}

/// The value of a metric without labels.
fn metric(cluster: &Cluster, name: &str) -> usize {
    let text = cluster.metrics();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
}

fn is_ready(cluster: &Cluster) -> bool {
    http::ask(cluster.address("admin"), "GET", "/healthz/ready").status == 200
}

/// West, connected to east and followed by a gateway.
fn world() -> (Cluster, Cluster, Gateway) {
    let (mut east, mut west) = (Cluster::new("east"), Cluster::new("west"));
    east.trust_cluster(&west);
    west.trust_cluster(&east);
    for cluster in [&mut east, &mut west] {
        cluster.start();
        cluster.stop();
    }
    east.set("gateways", "[{ name: gw-1, address: 203.0.113.1, port: 15443 }]");
    east.set("exports", "[{ hosts: ['*.busy.example'] }]");
    east.set("peers", &format!("[{}]", west.as_peer()));
    west.set("peers", &format!("[{}]", east.as_peer()));
    west.set("imports", "[{ cluster: east, hosts: ['*.busy.example'] }]");
    east.start();
    west.start();
    let gateway = west.gateway("gw-1");
    until("west has a stream to east", || west.status().peers.get("east").is_some_and(|peer| peer.connected));
    (east, west, gateway)
}

#[test]
fn busy_agent_answers_its_pages_and_keeps_its_streams() {
    let (east, west, gateway) = world();
    // Slices arrive from the peer: pages tell of some of them, more each time.
    east.register("all.yaml", &services("theirs", SLICES, 0));
    let (mut told, mut shown) = (BTreeSet::new(), BTreeSet::new());
    until("all slices are imported", || {
        assert!(is_ready(&west));
        told.insert(metric(&west, "isthmus_agent_imported"));
        shown.insert(west.ask("/status")["imports"]["count"].as_u64().unwrap());
        told.contains(&SLICES)
    });
    let between = |count: usize| 0 < count && count < SLICES;
    assert!(told.iter().filter(|count| between(**count)).count() >= 3, "{told:?}");
    assert!(shown.len() >= 3, "{shown:?}");

    // A large file is read: pages tell of none of it.
    let before = west.process().bytes_read();
    west.register("large.yaml", &services("ours", SERVICES, FILE));
    until("the agent has the file's bytes", || west.process().bytes_read() > before + FILE as u64);
    assert!(is_ready(&west));
    let hosts = west.ask("/status")["registry"]["hosts"].as_u64().unwrap();
    assert_eq!(
        (metric(&west, "isthmus_agent_hosts"), hosts),
        (0, 0),
        "the file was read too fast for this test"
    );
    until("the file is live", || metric(&west, "isthmus_agent_hosts") == SERVICES);

    let status = west.ask("/status");
    assert_eq!(status["peers"]["east"]["connected"], true, "{status:#}");
    assert_eq!(status["nodes"]["gateways"].as_array().map(Vec::len), Some(1), "{status:#}");
    until("the gateway has everything", || gateway.metrics().sum("isthmus_services", &[]) >= 10_000.0);
    let lost = |line: &String| line.contains("unreachable");
    assert!(!west.log_lines().iter().chain(&gateway.errors()).any(lost), "a stream was lost");
}
