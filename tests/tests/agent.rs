//! An agent and a gateway as processes of their own: the registry's files lead where clients end up, and what
//! fails on the way leaves the last good tables.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::io::Read as _;
use std::time::Duration;

use isthmus_tests::client::{alert, send};
use isthmus_tests::cluster::{Cluster, outbound};
use isthmus_tests::endpoint::Scripted;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::hello;
use isthmus_tests::wait::{until, within};

const HOST: &str = "db.pxc.svc.cluster.local";
const UNRECOGNIZED_NAME: u8 = 112;

fn services(endpoint: &Scripted) -> String {
    format!("services: [{{ host: {HOST}, endpoints: [{{ address: '{}' }}] }}]", endpoint.address())
}

/// The first seven bytes that a client gets who asks for the host: a greeting, or a whole alert.
fn answer(gateway: &Gateway) -> Vec<u8> {
    let mut answer = vec![0; 7];
    send(outbound(gateway), &hello(HOST)).read_exact(&mut answer).unwrap();
    answer
}

fn leads_to(gateway: &Gateway, greeting: &[u8]) -> bool {
    answer(gateway) == greeting
}

#[test]
fn a_registry_file_leads_where_clients_end_up() {
    let (one, two) = (Scripted::echo(b"one...."), Scripted::echo(b"two...."));
    let mut cluster = Cluster::new("east");
    cluster.register("db.yaml", &services(&one));
    cluster.start();
    let gateway = cluster.gateway("gw-1");
    until("the gateway has heard the agent", || gateway.is_ready());
    assert!(leads_to(&gateway, b"one...."));
    cluster.register("db.yaml", &services(&two));
    until("new connections go elsewhere", || leads_to(&gateway, b"two...."));
    cluster.register("db.yaml", "services: [{ host: ]");
    cluster.register("other.yaml", "services: [{ host: other.example }]");
    until("the good file is live", || {
        gateway.admin("GET", "/routes?name=other").body.contains("other.example")
    });
    assert!(leads_to(&gateway, b"two...."), "the bad file's last good state stays");
    cluster.forget("db.yaml");
    until("the name is no more", || leads_to(&gateway, &alert(UNRECOGNIZED_NAME)));
}

#[test]
fn a_lost_agent_leaves_the_tables_and_what_changed_meanwhile_is_caught_up() {
    let (one, two) = (Scripted::echo(b"one...."), Scripted::echo(b"two...."));
    let mut cluster = Cluster::new("east");
    cluster.register("db.yaml", &services(&one));
    cluster.start();
    let gateway = cluster.gateway("gw-1");
    until("the gateway has heard the agent", || gateway.is_ready());
    cluster.stop();
    until("the loss is said", || gateway.errors().iter().any(|line| line.contains("no agent there")));
    assert!(leads_to(&gateway, b"one....") && gateway.is_ready());
    cluster.register("db.yaml", &services(&two));
    assert!(leads_to(&gateway, b"one...."), "nobody has told the gateway");
    cluster.start();
    until("it has caught up", || leads_to(&gateway, b"two...."));
}

#[test]
fn who_is_not_listed_is_given_nothing() {
    let one = Scripted::echo(b"one....");
    let mut cluster = Cluster::new("east");
    cluster.register("db.yaml", &services(&one));
    cluster.start();
    let gateway = cluster.gateway("gw-2");
    until("it is told why", || {
        gateway.errors().iter().any(|line| line.contains("list it under `gateways:`"))
    });
    assert!(!within(Duration::from_millis(200), || gateway.is_ready()), "and it is not ready");
    assert!(leads_to(&gateway, &alert(UNRECOGNIZED_NAME)));
}
