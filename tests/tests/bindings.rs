//! What an agent allots to names reaches the gateways of its cluster: listeners open their ports, a restart without the
//! agent keeps them, and a name that is gone closes them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;

use isthmus_certs::{Peer, Server, Trust, TrustFiles};
use isthmus_model::admin::gateway::Explanation;
use isthmus_tests::client::{dial, echo};
use isthmus_tests::cluster::Cluster;
use isthmus_tests::endpoint::Scripted;
use isthmus_tests::ends::tls_endpoint;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::wait::{throughout, until, until_some};

const HOST: &str = "db.shop.svc.cluster.local";
const CLIENT: &str = "spiffe://east.example/ns/bookinfo/sa/client";
const SERVER: &str = "spiffe://east.example/ns/bookinfo/sa/server";

/// A loopback address of this test alone.
fn own() -> Ipv4Addr {
    let [low, high, ..] = std::process::id().to_le_bytes();
    Ipv4Addr::new(127, 128 | (high & 63), low, 1)
}

/// An mTLS endpoint with the cluster's identity `server`.
fn endpoint(cluster: &Cluster) -> Scripted {
    let file = |name: &str| cluster.path(&format!("pki/leaves/server/tls.{name}"));
    let bundles = cluster.path("pki/bundles");
    let trust = TrustFiles { certificate: file("crt"), key: file("key"), bundles, ..TrustFiles::default() };
    let server = Server::new(Trust::load(&trust).unwrap(), Peer::Trusted, &[]).unwrap().config();
    tls_endpoint(Arc::clone(&server), |tls| {
        let mut got = [0; 64];
        while let Ok(length @ 1..) = tls.read(&mut got) {
            let _gone = tls.write_all(&got[..length]);
        }
    })
}

/// An agent that allots addresses and ports, and knows one caller.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new("east");
    let state = cluster.path("state").display().to_string();
    for (key, value) in [
        ("state", state.as_str()),
        ("virtual_addresses", "{ ipv4: 240.15.0.0/16, ipv6: 'fd00:15::/64' }"),
        ("originate_ports", "20000-20999"),
        ("callers", &format!("[{{ sources: [127.0.0.0/8], identity: {CLIENT} }}]")),
    ] {
        cluster.set(key, value);
    }
    cluster
}

/// A gateway with the service in its file; what leads to it comes from the agent.
fn setup(cluster: &Cluster, endpoint: &Scripted) -> Setup {
    let pki = cluster.path("pki/leaves/client").display().to_string();
    let listeners = format!(
        "- {{ name: apps, address: '{}:0', ports: 20000-20999, side: outbound, mode: originate, \
         identity: {CLIENT}, sources: [127.0.0.0/8], certificate: {pki}/tls.crt, key: {pki}/tls.key }}\n\
         - {{ name: of-agent, address: '127.0.0.1:0', side: outbound, mode: originate, original_destination: redirect }}",
        own()
    );
    let identities = format!("identities: [{SERVER}]");
    cluster
        .setup("gw-1")
        .services(service(HOST, &["port: 3306", &identities], &[endpoint.address()]))
        .listeners(&listeners)
}

fn open(gateway: &Gateway) -> u64 {
    gateway.status().listeners[0].open.unwrap()
}

fn reached_at(gateway: &Gateway, listener: &str) -> Vec<String> {
    let page = gateway.admin("GET", &format!("/explain?sni={HOST}&listener={listener}"));
    page.page::<Explanation>().ends.reached_at
}

#[test]
fn agent_bindings_open_ports_and_survive_a_restart_without_it() {
    let mut cluster = cluster();
    let endpoint = endpoint(&cluster);
    let registry = service(HOST, &["port: 3306"], &[endpoint.address()]);
    cluster.register("db.yaml", &format!("services:\n{registry}"));
    cluster.start();
    let setup = setup(&cluster, &endpoint);
    let gateway = setup.start();
    until("the agent's port is open", || open(&gateway) == 1);
    let status = gateway.status();
    assert_eq!((status.bindings.hosts, status.bindings.callers), (1, 1));
    assert_eq!(status.bindings.conflicts, [""; 0]);
    let port: SocketAddr = reached_at(&gateway, "apps")[0].parse().unwrap();
    assert_eq!(port.ip(), own());
    assert!((20_000..21_000).contains(&port.port()));
    echo(&mut dial(port), b"by the agent's port");
    // The caller is the agent's here, and both families lead to the service.
    let page: Explanation = gateway.admin("GET", &format!("/explain?sni={HOST}&listener=of-agent")).page();
    assert_eq!(page.ends.caller.as_deref(), Some(CLIENT));
    let [six, four] = <[String; 2]>::try_from(page.ends.reached_at).unwrap();
    assert!(six.starts_with("[fd00:15::") && four.starts_with("240.15."), "{six} {four}");

    cluster.stop();
    drop(gateway);
    let gateway = setup.start();
    until("the persisted port is open", || open(&gateway) == 1);
    assert_eq!(reached_at(&gateway, "apps"), [port.to_string()]);
    echo(&mut dial(port), b"without the agent");

    // A restarted agent that still has the name withdraws nothing.
    cluster.start();
    until("the agent is back", || gateway.status().agent.is_some_and(|agent| agent.connected));
    throughout(std::time::Duration::from_secs(3), "the port stays open", || open(&gateway) == 1);
    cluster.forget("db.yaml");
    until("the port is closed", || open(&gateway) == 0);
    until_some("a dial is refused", || {
        TcpStream::connect(port).err().filter(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    assert_eq!(gateway.status().bindings.hosts, 0);
}

/// Nothing of the service, of its callers or of what leads to it is in the gateway's file, and no certificate is on its disk.
#[test]
fn agent_tells_a_gateway_services_callers_ports_and_certificates() {
    let mut cluster = cluster();
    let endpoint = endpoint(&cluster);
    cluster.issue("1h");
    cluster.set("gateways", &format!("[{{ name: gw-1, identities: ['{CLIENT}'] }}]"));
    let identities = format!("identities: ['{SERVER}']");
    let registry = service(HOST, &["port: 3306", &identities], &[endpoint.address()]);
    cluster.register("db.yaml", &format!("services:\n{registry}"));
    cluster.start();
    let token = cluster.token(&["--gateway", "gw-1"]).unwrap();
    let trust = cluster.path("gateway-trust").display().to_string();
    let listener = format!(
        "- {{ name: apps, address: '{}:0', ports: 20000-20999, side: outbound, mode: originate }}",
        own()
    );
    let gateway = Setup::new("")
        .listeners(&listener)
        .with(&format!("trust: {{ directory: {trust}, token: {token} }}"))
        .with(&format!("xds: {{ agents: ['{}'] }}", cluster.agent_address()))
        .start();
    until("the agent's port is open", || open(&gateway) == 1);
    let port = until_some("the service is known", || {
        reached_at(&gateway, "apps").first().map(|port| port.parse::<SocketAddr>().unwrap())
    });
    until("the caller has its certificate", || {
        let mut app = dial(port);
        app.write_all(b"hello").is_ok() && app.read_exact(&mut [0; 5]).is_ok()
    });
    let line = gateway.log().wait("a served connection", |line| line.number("bytes_out") == 5);
    assert_eq!((line.text("caller"), line.text("server_identity")), (CLIENT, SERVER));
}

/// Callers that are no longer in the agent's file are nobody's.
#[test]
fn agent_callers_are_withdrawn_with_the_file() {
    let mut cluster = cluster();
    let endpoint = endpoint(&cluster);
    cluster.start();
    let gateway = setup(&cluster, &endpoint).start();
    until("the caller is known", || gateway.status().bindings.callers == 1);
    cluster.stop();
    cluster.unset("callers");
    cluster.start();
    until("the caller is gone", || gateway.status().bindings.callers == 0);
}

#[test]
fn agent_refuses_callers_of_another_trust_domain() {
    let mut cluster = cluster();
    cluster.set("callers", "[{ sources: [127.0.0.0/8], identity: spiffe://west.example/ns/a/sa/b }]");
    let error = cluster.command(&["run"]).unwrap_err();
    assert!(error.contains("is of another trust domain than this agent, whose is east.example"), "{error}");
}
