//! An agent and a gateway as processes: registry files direct clients, and failures keep the last good
//! tables.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::SocketAddr;
use std::time::Duration;

use isthmus_model::admin::gateway::{Explanation, Paged, Service};
use isthmus_tests::client::{alert, send};
use isthmus_tests::cluster::{Cluster, outbound};
use isthmus_tests::endpoint::{Endpoint, Scripted};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::hello;
use isthmus_tests::wait::{until, within};

const HOST: &str = "db.pxc.svc.cluster.local";
const UNRECOGNIZED_NAME: u8 = 112;

fn services(endpoint: &Scripted) -> String {
    format!("services: [{{ host: {HOST}, endpoints: [{{ address: '{}' }}] }}]", endpoint.address())
}

/// The first seven bytes of the answer to a client: a greeting or a whole alert.
fn answer(gateway: &Gateway) -> Vec<u8> {
    let mut answer = vec![0; 7];
    send(outbound(gateway), &hello(HOST)).read_exact(&mut answer).unwrap();
    answer
}

fn leads_to(gateway: &Gateway, greeting: &[u8]) -> bool {
    answer(gateway) == greeting
}

#[test]
fn registry_file_directs_gateway_clients() {
    let (one, two) = (Scripted::echo(b"one...."), Scripted::echo(b"two...."));
    let mut cluster = Cluster::new("east");
    cluster.register("db.yaml", &services(&one));
    cluster.start();
    let gateway = cluster.gateway("gw-1");
    until("the gateway is ready", || gateway.is_ready());
    assert!(leads_to(&gateway, b"one...."));
    cluster.register("db.yaml", &services(&two));
    until("new connections go to the new endpoint", || leads_to(&gateway, b"two...."));
    cluster.register("db.yaml", "services: [{ host: ]");
    cluster.register("other.yaml", "services: [{ host: other.example }]");
    until("the good file is live", || {
        gateway.admin("GET", "/routes?name=other").body.contains("other.example")
    });
    assert!(leads_to(&gateway, b"two...."), "the last good state of the bad file is lost");
    cluster.forget("db.yaml");
    until("the name is unknown", || leads_to(&gateway, &alert(UNRECOGNIZED_NAME)));
}

#[test]
fn agent_outage_keeps_tables_and_restart_delivers_missed_changes() {
    let (one, two) = (Scripted::echo(b"one...."), Scripted::echo(b"two...."));
    let mut cluster = Cluster::new("east");
    cluster.register("db.yaml", &services(&one));
    cluster.start();
    let gateway = cluster.gateway("gw-1");
    until("the gateway is ready", || gateway.is_ready());
    cluster.stop();
    until("the outage is logged", || gateway.errors().iter().any(|line| line.contains("agent unreachable")));
    assert!(leads_to(&gateway, b"one....") && gateway.is_ready());
    cluster.register("db.yaml", &services(&two));
    assert!(leads_to(&gateway, b"one...."), "the gateway knows a change without its agent");
    cluster.start();
    until("the gateway has caught up", || leads_to(&gateway, b"two...."));
}

#[test]
fn unlisted_gateway_receives_no_tables() {
    let one = Scripted::echo(b"one....");
    let mut cluster = Cluster::new("east");
    cluster.register("db.yaml", &services(&one));
    cluster.start();
    let gateway = cluster.gateway("gw-2");
    until("the gateway logs the refusal", || {
        gateway.errors().iter().any(|line| line.contains("list it under `gateways:`"))
    });
    assert!(!within(Duration::from_millis(200), || gateway.is_ready()), "the gateway is ready");
    assert!(leads_to(&gateway, &alert(UNRECOGNIZED_NAME)));
}

/// A registry file with these endpoints and `stale: probe`.
fn probed(endpoints: &[SocketAddr]) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|address| format!("{{ address: '{address}' }}")).collect();
    format!("services: [{{ host: {HOST}, stale: probe, endpoints: [{}] }}]", endpoints.join(", "))
}

/// Addresses that the gateway reports as down; `None` while it probes nothing.
fn down(gateway: &Gateway) -> Option<Vec<String>> {
    let probed = gateway.status().agent?.probed?;
    Some(probed.listed.into_iter().map(|down| down.address).collect())
}

/// Weights of the service's endpoints.
fn weights(gateway: &Gateway) -> BTreeMap<String, u32> {
    let mut page: Paged<Service> = gateway.admin("GET", &format!("/services?name={HOST}")).page();
    let service = page.items.remove(0);
    service.endpoints.into_iter().map(|endpoint| (endpoint.address, endpoint.weight)).collect()
}

#[test]
fn agent_outage_takes_probed_down_endpoints_out_of_use() {
    let stays = Scripted::echo(b"one....");
    let [returns, ends] = [b"two....", b"three.."].map(|greeting| Scripted::echo(greeting));
    let [here, again, gone] = [&stays, &returns, &ends].map(Scripted::address);
    let mut cluster = Cluster::new("east");
    cluster.register("db.yaml", &probed(&[here, again, gone]));
    cluster.start();
    // Ejection is off, so that only probes take endpoints out of use.
    let gateway = cluster.setup("gw-1").with("upstream: { ejection: { failures: 0 } }").start();
    until("the gateway is ready", || gateway.is_ready());
    assert_eq!(down(&gateway), None, "the gateway probes although its agent is reachable");
    cluster.stop();
    until("the gateway probes", || down(&gateway).is_some());
    let is_served = || matches!(&answer(&gateway)[..], b"one...." | b"two...." | b"three..");
    drop((returns, ends));
    let names = |addresses: &[SocketAddr]| {
        let mut names: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        names.sort();
        Some(names)
    };
    until("two endpoints are down", || {
        assert!(is_served(), "a call failed meanwhile");
        down(&gateway) == names(&[again, gone])
    });
    let log = gateway.log();
    let before = log.lines().len();
    for _ in 0..20 {
        assert!(leads_to(&gateway, b"one...."));
    }
    until("the calls are logged", || log.lines().len() >= before + 20);
    let lines = log.lines();
    let late: Vec<_> = lines[lines.len() - 20..].iter().map(|line| line.number("attempts")).collect();
    assert_eq!(late, [1; 20], "a down endpoint was tried");
    let explained: Explanation =
        gateway.admin("GET", &format!("/explain?sni={HOST}&listener=outbound")).page();
    assert_eq!(explained.matched.unwrap().down.len(), 2);
    assert_eq!(gateway.metrics().sum("isthmus_stale_down", &[]), 2.0);
    assert_eq!(gateway.metrics().sum("isthmus_stale_probed", &[]), 3.0);

    let _returned = Scripted::echo_at(Endpoint::at(again), b"two....");
    until("one endpoint is up again", || down(&gateway) == names(&[gone]));
    until("the endpoint serves again", || leads_to(&gateway, b"two...."));
    assert_eq!(weights(&gateway)[&gone.to_string()], 0);
    cluster.start();
    until("the agent is reachable", || down(&gateway).is_none());
    assert_eq!(
        weights(&gateway).into_values().collect::<Vec<_>>(),
        [1; 3],
        "the agent's tables apply at once"
    );
    assert_eq!(gateway.metrics().sum("isthmus_stale_down", &[]), 0.0);
}
