//! Policies of traffic, written in the agent's file and in the registry, as the gateway of a running agent has them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::process::Command;

use isthmus_model::admin::gateway::{Paged, Service};
use isthmus_tests::binary;
use isthmus_tests::cluster::Cluster;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::wait::until;

const SERVICES: &str = "services:
- { host: a.shop, endpoints: [{ address: '127.0.0.1:1', instance: a-0, labels: { version: v2 } }] }
- { host: b.shop, traffic: { panic: off }, endpoints: [{ address: '127.0.0.1:1' }] }
";
const CANARY: &str = "{ labels: { version: v1 }, weight: 9 }, { labels: { version: v2 }, weight: 1, abort_if: failures > 5 % }";

fn policy(gateway: &Gateway, host: &str) -> String {
    let mut page: Paged<Service> = gateway.admin("GET", &format!("/services?name={host}")).page();
    page.items.remove(0).traffic
}

/// What the agent's binary prints of the running agent.
fn ask(cluster: &Cluster, words: &[&str]) -> String {
    let admin = cluster.address("admin").to_string();
    let output = Command::new(binary::agent()).args(words).args(["--admin", &admin]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn edit_of_the_agents_file_reaches_the_gateway_live() {
    let mut cluster = Cluster::new("east");
    cluster.register("shop.yaml", SERVICES);
    cluster.start();
    let gateway = cluster.gateway("gw-1");
    until("the gateway is ready", || gateway.is_ready());
    assert_eq!(
        (policy(&gateway, "a.shop"), policy(&gateway, "b.shop")),
        ("default".to_owned(), "{ panic: off }".to_owned())
    );
    cluster.set("traffic", &format!("[{{ hosts: ['*.shop'], affinity: remote, split: [{CANARY}] }}]"));
    let _written = cluster.file();
    until("the gateway has the policy", || policy(&gateway, "a.shop").contains("affinity: remote"));
    assert!(policy(&gateway, "a.shop").contains("abort_if: failures > 5 %"));
    assert_eq!(policy(&gateway, "b.shop"), "{ panic: off }", "the service's own policy comes first");
    let explained = ask(&cluster, &["explain", "a.shop"]);
    assert!(explained.contains("traffic[0]") && explained.contains("affinity: remote"), "{explained}");
    let explained = ask(&cluster, &["explain", "b.shop"]);
    assert!(explained.contains("registry") && !explained.contains("traffic[0]"), "{explained}");
    cluster.set("traffic", "[{ hosts: ['*.shop'], affinity: remote, panic: 0 }]");
    let _written = cluster.file();
    until("the refused edit is shown", || cluster.status().refused_edit.is_some());
    let status = ask(&cluster, &["status"]);
    assert!(
        status.contains("edit refused") && status.contains("traffic[0].panic: '0' is out of range"),
        "{status}"
    );
    assert!(policy(&gateway, "a.shop").contains("affinity: remote"), "the last policy is lost");
    cluster.unset("traffic");
    let _written = cluster.file();
    until("the gateway has the default", || policy(&gateway, "a.shop") == "default");
    assert_eq!(cluster.status().refused_edit, None);
}

#[test]
fn check_refuses_a_split_by_labels_for_hosts_without_endpoints_here() {
    let mut cluster = Cluster::new("east");
    cluster.register("shop.yaml", SERVICES);
    cluster.set("traffic", &format!("[{{ hosts: [a.shop], split: [{CANARY}] }}]"));
    cluster.command(&["check"]).unwrap();
    for host in ["c.shop", "a-0.a.shop", "'*.bank'"] {
        cluster.set("traffic", &format!("[{{ hosts: [{host}], split: [{CANARY}] }}]"));
        let refused = cluster.command(&["check"]).unwrap_err();
        let name = host.trim_matches('\'');
        let expected = format!("traffic[0].split[0].labels: {name} is not in the registry of this cluster");
        assert!(refused.contains(&expected) && refused.contains("write 'cluster: NAME'"), "{refused}");
    }
}
