//! A gateway under a third-party control plane like istiod: a scripted one over mTLS, with Envoy's own
//! messages. Its resources direct clients; invalid ones are refused by name and reach nobody.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use isthmus_certs::home::{Home, LeafRecord, Plan};
use isthmus_certs::{Csr, KeyKind, Leaf, SpiffeId, TrustDomain, pem};
use isthmus_tests::certs::envoy;
use isthmus_tests::client::{alert, send};
use isthmus_tests::control_plane::{ControlPlane, python};
use isthmus_tests::endpoint::Scripted;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::hello_of;
use isthmus_tests::setup::Setup;
use isthmus_tests::skip;
use isthmus_tests::wait::{throughout, until};
use rustls::version::TLS13;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const ANY: &str = "127.0.0.1:0";
const ISTIOD: &str = "istiod.istio-system.svc";
const UNRECOGNIZED_NAME: u8 = 112;
const INTERNAL_ERROR: u8 = 80;

/// A trust domain in which istiod and the gateway have workload identities, as under Istio.
struct Domain {
    folder: TempDir,
    python: PathBuf,
}

impl Domain {
    fn new(python: PathBuf) -> Domain {
        let folder = TempDir::new().unwrap();
        let domain = TrustDomain::new("cluster.local").unwrap();
        let mut home = Home::create(&folder.path().join("pki"), &Plan::new(domain.clone())).unwrap();
        for (name, namespace, dns) in [
            ("istiod", "istio-system", vec![ISTIOD.to_owned()]),
            ("eastwest", "istio-system", vec![]),
            ("other", "shop", vec![]),
        ] {
            let id = SpiffeId::workload(&domain, namespace, name).unwrap();
            let leaf = Leaf { id, dns, ips: Vec::new(), lifetime: Duration::from_secs(3600) };
            home.keep(name, LeafRecord { leaf, key: KeyKind::P256, cluster: None, folder: None }).unwrap();
        }
        Domain { folder, python }
    }

    fn leaf(&self, name: &str) -> PathBuf {
        self.folder.path().join("pki/leaves").join(name)
    }

    fn plane(&self, leaf: &str, address: &str, first: &Value) -> ControlPlane {
        ControlPlane::start(&self.python, address.parse().unwrap(), &self.leaf(leaf), first)
    }

    /// A gateway under the control plane at this address, verified by `known`.
    fn gateway(&self, plane: SocketAddr, known: &str) -> Gateway {
        let (leaf, bundles) = (self.leaf("eastwest"), self.folder.path().join("pki/bundles"));
        let (leaf, bundles) = (leaf.display(), bundles.display());
        Setup::new("")
            .with("node: { id: gw-1, cluster: east, network: east-net }")
            .with(&format!(
                "trust: {{ certificate: {leaf}/tls.crt, key: {leaf}/tls.key, bundles: {bundles} }}"
            ))
            .with(&format!(
                "xds:\n  control_plane:\n    addresses: ['{plane}']\n    {known}\n    \
                 metadata: {{ LABELS: {{ istio: eastwestgateway }}, NETWORK: other-net }}"
            ))
            .start()
    }
}

/// A service's SNI for other networks, as istiod generates it.
fn name(index: usize) -> String {
    format!("outbound_.8080_._.web-{index}.shop.svc.cluster.local")
}

fn chains(count: usize) -> Vec<Value> {
    (0..count).map(|index| json!({ "sni": name(index) })).collect()
}

/// This many services with the same endpoint.
fn world(count: usize, endpoint: &Scripted) -> Value {
    let each = |value: Value| (0..count).map(|index| (name(index), value.clone())).collect::<Map<_, _>>();
    json!({
        "clusters": each(json!({})),
        "assign": each(json!([at(endpoint)])),
        "chains": chains(count),
    })
}

fn at(endpoint: &Scripted) -> Value {
    json!([endpoint.address().ip(), endpoint.address().port()])
}

/// The first seven bytes of the answer to an Istio client: a greeting or a whole alert.
fn answer(gateway: &Gateway, sni: &str, alpn: &str) -> Vec<u8> {
    let mut answer = vec![0; 7];
    send(gateway.address(), &hello_of(Some(sni), &[alpn], &[&TLS13])).read_exact(&mut answer).unwrap();
    answer
}

fn leads(gateway: &Gateway, index: usize, to: &[u8]) -> bool {
    answer(gateway, &name(index), "istio") == to
}

#[track_caller]
fn ready(gateway: &Gateway) {
    until("the gateway is ready", || gateway.is_ready());
}

macro_rules! domain {
    () => {
        match python() {
            Some(python) => Domain::new(python),
            None => skip!("no Python with grpcio and xds-protos; tests/run installs one"),
        }
    };
}

#[test]
fn three_thousand_filter_chains_route_as_configured() {
    let domain = domain!();
    let (one, two) = (Scripted::echo(b"one...."), Scripted::echo(b"two...."));
    let mut plane = domain.plane("istiod", ANY, &world(3_000, &one));
    let gateway = domain.gateway(plane.address(), &format!("tls_name: {ISTIOD}"));
    ready(&gateway);
    let stream = plane.wait("stream", |_| true);
    assert_eq!(stream["node"]["id"], "router~127.0.0.1~gw-1.istio-system~istio-system.svc.cluster.local");
    let metadata = &stream["node"]["metadata"];
    assert_eq!((&metadata["NAMESPACE"], &metadata["NETWORK"]), (&json!("istio-system"), &json!("other-net")));
    assert_eq!(metadata["LABELS"], json!({ "istio": "eastwestgateway" }));
    assert_eq!(stream["peer"], json!(["spiffe://cluster.local/ns/istio-system/sa/eastwest"]));
    for index in [0, 1_499, 2_999] {
        assert!(leads(&gateway, index, b"one...."), "{index}");
    }
    assert_eq!(answer(&gateway, &name(0), "h2"), alert(UNRECOGNIZED_NAME), "ALPN outside the chain's list");
    for other in [name(3_000), "web-0.shop.svc.cluster.local".to_owned(), name(0).replace("8080", "8081")] {
        assert_eq!(answer(&gateway, &other, "istio"), alert(UNRECOGNIZED_NAME), "{other}");
    }
    plane.settled();
    assert!(plane.seen("request").iter().all(|one| one["nack"] == ""), "{:?}", plane.seen("request"));

    plane.tell(&json!({ "assign": { name(7): [at(&two)] } }));
    until("one service has moved", || leads(&gateway, 7, b"two...."));
    plane.tell(&json!({ "assign": { name(7): [] } }));
    until("no endpoint is left", || leads(&gateway, 7, &alert(INTERNAL_ERROR)));
    assert!(leads(&gateway, 8, b"one...."));
    plane.tell(&json!({ "assign": { name(8): null } }));
    let is_left = |one: &Value| one["type"] == "ClusterLoadAssignment" && one["removed"] == 1;
    let _sent = plane.wait("sent", is_left);
    plane.settled();
    assert!(leads(&gateway, 8, b"one...."), "a removed assignment keeps its endpoints, as in Envoy");
    plane.tell(&json!({ "drop": [name(9)] }));
    until("the cluster is gone", || leads(&gateway, 9, &alert(INTERNAL_ERROR)));
    let left = plane.wait("request", |one| one["unsubscribe"] == json!([name(9)]));
    assert_eq!(left["type"], "ClusterLoadAssignment");
    plane.tell(&json!({ "chains": chains(9) }));
    until("the name is unknown", || leads(&gateway, 9, &alert(UNRECOGNIZED_NAME)));
    assert!(leads(&gateway, 0, b"one...."));
}

#[test]
fn unsupported_filter_chain_is_refused_alone_and_routes_nowhere() {
    let domain = domain!();
    let one = Scripted::echo(b"one....");
    let mut first = world(3, &one);
    let wide = json!({ "sni": "*.shop.example", "cluster": name(0) });
    let narrow = json!({
        "sni": "pay.shop.example", "cluster": name(0),
        "patch": { "filterChainMatch": { "sourcePorts": [7] } },
    });
    first["chains"] = json!([{ "sni": name(0) }, { "sni": name(1) }, wide, narrow]);
    let mut plane = domain.plane("istiod", ANY, &first);
    let gateway =
        domain.gateway(plane.address(), "identity: spiffe://cluster.local/ns/istio-system/sa/istiod");
    ready(&gateway);
    assert_eq!(
        plane.refusal("Listener"),
        "0.0.0.0_15443: chain \"pay.shop.example\": filter_chain_match.source_ports is not supported"
    );
    assert!(leads(&gateway, 0, b"one....") && leads(&gateway, 1, b"one...."));
    assert_eq!(answer(&gateway, "a.shop.example", "istio"), b"one....");
    let refused = answer(&gateway, "pay.shop.example", "istio");
    assert_eq!(refused, alert(INTERNAL_ERROR), "the wildcard chain must not take over");

    // A valid chain gets a match criterion that the gateway does not support.
    let tls = json!({ "transportSocket": { "name": "envoy.transport_sockets.tls" } });
    plane.tell(&json!({ "chains": [{ "sni": name(0), "patch": tls }, { "sni": name(1) }] }));
    until("the chain routes nowhere", || leads(&gateway, 0, &alert(INTERNAL_ERROR)));
    let named =
        |one: &Value| one["nack"].as_str().is_some_and(|nack| nack.contains("envoy.transport_sockets.tls"));
    let nack = plane.wait("request", named)["nack"].as_str().unwrap().to_owned();
    assert!(nack.contains(&name(0)) && !nack.contains(&name(1)), "{nack}");
    assert!(leads(&gateway, 1, b"one...."));

    // A cluster with an unsupported feature keeps its last good state.
    plane.tell(&json!({ "clusters": { name(1): tls } }));
    assert!(plane.refusal("Cluster").contains("originating TLS here is not supported yet"));
    assert!(leads(&gateway, 1, b"one...."));
    plane.tell(&json!({ "chains": [{ "sni": name(0) }, { "sni": name(1) }] }));
    until("the chain routes again", || leads(&gateway, 0, b"one...."));
}

#[test]
fn duplicate_filter_chain_match_refuses_listener_and_keeps_old_tables() {
    let domain = domain!();
    let one = Scripted::echo(b"one....");
    let mut plane = domain.plane("istiod", ANY, &world(2, &one));
    let gateway = domain.gateway(plane.address(), &format!("tls_name: {ISTIOD}"));
    ready(&gateway);
    let twice = json!([{ "sni": name(1) }, { "sni": "new.example", "cluster": name(0) }, { "sni": name(1) }]);
    plane.tell(&json!({ "chains": twice }));
    let nack = plane.refusal("Listener");
    assert!(nack.contains("match the same connections") && nack.contains(&name(1)), "{nack}");
    assert!(leads(&gateway, 0, b"one....") && leads(&gateway, 1, b"one...."));
    assert_eq!(answer(&gateway, "new.example", "istio"), alert(UNRECOGNIZED_NAME));
    plane.tell(&json!({ "chains": [{ "sni": name(1) }] }));
    until("a valid listener replaces it", || leads(&gateway, 0, &alert(UNRECOGNIZED_NAME)));
    assert!(leads(&gateway, 1, b"one...."));
}

/// Matches of a listener's chains, in Envoy's JSON.
fn matches() -> Vec<Value> {
    let range = |prefix: &str, length: u32| json!([{ "addressPrefix": prefix, "prefixLen": length }]);
    let from =
        |prefix: &str, length| json!({ "serverNames": ["a.x"], "sourcePrefixRanges": range(prefix, length) });
    let names = |names: &[&str]| json!({ "serverNames": names });
    let speaking = |protocols: &[&str]| json!({ "serverNames": ["a.x"], "applicationProtocols": protocols });
    vec![
        json!([names(&["a.x"]), names(&["b.x"])]),
        json!([names(&["a.x"]), names(&["a.x"])]),
        json!([names(&["a.x", "b.x"]), names(&["b.x", "c.x"])]),
        json!([names(&["A.x"]), names(&["a.x"])]),
        json!([names(&["*.x"]), names(&["a.x"])]),
        json!([names(&["*.x"]), names(&["*.x"])]),
        json!([names(&["a.x", "a.x"])]),
        json!([names(&[]), names(&[])]),
        json!([names(&[]), names(&["a.x"])]),
        json!([speaking(&["h2", "q"]), speaking(&["q"])]),
        json!([speaking(&["h2"]), speaking(&["q"])]),
        json!([speaking(&["h2"]), names(&["a.x"])]),
        json!([{ "serverNames": ["a.x"], "transportProtocol": "tls" }, names(&["a.x"])]),
        json!([from("10.1.2.3", 8), from("10.0.0.0", 8)]),
        json!([from("10.0.0.0", 8), from("10.1.0.0", 16)]),
        json!([from("::ffff:10.0.0.0", 104), from("10.0.0.0", 8)]),
        json!([from("0.0.0.0", 0), names(&["a.x"])]),
        json!([{ "sourcePorts": [1, 2] }, { "sourcePorts": [2] }]),
        json!([{ "destinationPort": 1 }, { "destinationPort": 2 }]),
    ]
}

/// Whether Envoy reports duplicate matches.
fn envoy_cannot_tell(program: &Path, folder: &Path, matches: &Value) -> bool {
    let proxy = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    let inspector = "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector";
    let settings = json!({ "@type": proxy, "statPrefix": "p", "cluster": "c" });
    let chain = |one: &Value| json!({ "filterChainMatch": one, "filters": [{ "name": "p", "typedConfig": settings }] });
    let chains: Vec<_> = matches.as_array().unwrap().iter().map(chain).collect();
    let listener = json!({
        "name": "l",
        "address": { "socketAddress": { "address": "127.0.0.1", "portValue": 0 } },
        "listenerFilters": [{ "name": "i", "typedConfig": { "@type": inspector } }],
        "filterChains": chains,
    });
    let config = json!({ "staticResources": { "listeners": [listener], "clusters": [{ "name": "c" }] } });
    fs::write(folder.join("envoy.json"), config.to_string()).unwrap();
    let mut command = Command::new(program);
    let ran = command.args(["--mode", "validate", "-c", "envoy.json"]).current_dir(folder).output().unwrap();
    let printed = String::from_utf8_lossy(&ran.stderr).into_owned() + &String::from_utf8_lossy(&ran.stdout);
    let alike = printed.contains("overlapping matching rules") || printed.contains("same matching rules");
    assert_eq!(ran.status.success(), !alike, "{matches}: {printed}");
    alike
}

#[test]
fn duplicate_filter_chain_match_agrees_with_envoy() {
    let domain = domain!();
    let Some(envoy) = envoy() else { skip!("no Envoy; tests/run installs one") };
    let one = Scripted::echo(b"one....");
    let mut plane = domain.plane("istiod", ANY, &world(1, &one));
    let gateway = domain.gateway(plane.address(), &format!("tls_name: {ISTIOD}"));
    ready(&gateway);
    plane.settled();
    let answers = |plane: &ControlPlane| {
        let seen = plane.seen("request").into_iter();
        seen.filter(|one| one["type"] == "Listener" && one["answers"] == true).collect::<Vec<_>>()
    };
    let mut alike = 0;
    for matches in matches() {
        let before = answers(&plane).len();
        let chains = matches.as_array().unwrap().iter().enumerate();
        let chains: Vec<_> = chains
            .map(|(index, one)| json!({ "sni": format!("c{index}"), "cluster": name(0), "match": one }))
            .collect();
        plane.tell(&json!({ "chains": chains }));
        until("the listener is answered", || answers(&plane).len() > before);
        let nack = answers(&plane).pop().unwrap()["nack"].as_str().unwrap().to_owned();
        let ours = nack.contains("match the same connections");
        assert_eq!(ours, envoy_cannot_tell(&envoy, domain.folder.path(), &matches), "{matches}: {nack}");
        alike += usize::from(ours);
    }
    assert!(alike > 5, "{alike}");
}

#[test]
fn control_plane_reconnect_sends_only_changes() {
    let domain = domain!();
    let (one, two) = (Scripted::echo(b"one...."), Scripted::echo(b"two...."));
    let mut first = world(100, &one);
    let plane = domain.plane("istiod", ANY, &first);
    let address = plane.address();
    let gateway = domain.gateway(address, &format!("tls_name: {ISTIOD}"));
    ready(&gateway);
    plane.settled();
    drop(plane);
    until("the outage is logged", || {
        gateway.errors().iter().any(|line| line.contains("control plane unreachable"))
    });
    assert!(leads(&gateway, 0, b"one....") && gateway.is_ready());

    first["assign"][name(5)] = json!([at(&two)]);
    let plane = domain.plane("istiod", &address.to_string(), &first);
    until("the gateway has caught up", || leads(&gateway, 5, b"two...."));
    plane.settled();
    for (kind, known) in [("Cluster", 100), ("ClusterLoadAssignment", 100), ("Listener", 1)] {
        let first = plane.wait("request", |one| one["type"] == kind);
        assert_eq!((&first["first"], &first["known"]), (&json!(true), &json!(known)), "{kind}");
    }
    let sent: Vec<_> =
        plane.seen("sent").iter().map(|one| (one["type"].clone(), one["resources"].clone())).collect();
    assert_eq!(sent, [(json!("ClusterLoadAssignment"), json!(1))]);
    assert!(leads(&gateway, 0, b"one...."));
}

#[test]
fn garbage_and_oversized_messages_change_nothing() {
    const LARGE: u64 = 64 << 20;
    let domain = domain!();
    let one = Scripted::echo(b"one....");
    let mut plane = domain.plane("istiod", ANY, &world(10, &one));
    let gateway = domain.gateway(plane.address(), &format!("tls_name: {ISTIOD}"));
    ready(&gateway);
    for kind in ["Cluster", "ClusterLoadAssignment", "Listener"] {
        let known = if kind == "Listener" { "0.0.0.0_15443".to_owned() } else { name(3) };
        plane.tell(&json!({ "raw": { kind: { known.clone(): ["ff", 1_000] } } }));
        let why = plane.refusal(kind);
        assert!(why.starts_with(&format!("{known}: cannot be read")), "{why}");
        assert!(leads(&gateway, 3, b"one...."), "{kind}");
    }
    let before = gateway.process().memory();
    plane.tell(&json!({ "raw": { "Cluster": { "large": ["00", LARGE] } } }));
    let lost = |line: &String| line.contains("control plane unreachable") && line.contains("too large");
    // One at a time: the server is slow with large messages.
    for times in 1..=3 {
        until("the message is refused", || {
            gateway.errors().iter().filter(|line| lost(line)).count() >= times
        });
    }
    assert!(leads(&gateway, 3, b"one....") && gateway.is_ready());
    let more = gateway.process().memory().saturating_sub(before);
    assert!(more < LARGE, "{more} bytes more");
    plane.tell(&json!({ "raw": { "Cluster": { "large": null } }, "chains": chains(3) }));
    until("the stream continues", || leads(&gateway, 3, &alert(UNRECOGNIZED_NAME)));
    assert!(leads(&gateway, 0, b"one...."));
}

#[test]
fn control_plane_with_wrong_identity_is_refused() {
    let domain = domain!();
    let one = Scripted::echo(b"one....");
    let plane = domain.plane("other", ANY, &world(1, &one));
    for (known, why) in [
        ("identity: spiffe://cluster.local/ns/istio-system/sa/istiod".to_owned(), "not expected here"),
        (format!("tls_name: {ISTIOD}"), "its certificate has other names"),
    ] {
        let gateway = domain.gateway(plane.address(), &known);
        until("the refusal is logged", || gateway.errors().iter().any(|line| line.contains(why)));
        throughout(Duration::from_millis(200), "it is not ready", || !gateway.is_ready());
        assert!(leads(&gateway, 0, &alert(UNRECOGNIZED_NAME)));
    }
    assert!(plane.seen("stream").is_empty(), "the gateway opened a stream");
}

#[test]
fn gateway_enrols_and_renews_with_the_control_plane() {
    const LIFETIME: Duration = Duration::from_secs(6);
    let domain = domain!();
    let one = Scripted::echo(b"one....");
    let first = world(3, &one);
    let leaf = domain.leaf("istiod");
    let start = |leaf: &Path, at: &str| {
        ControlPlane::start_with(&domain.python, at.parse().unwrap(), leaf, &first, &["--open"])
    };
    let id = SpiffeId::parse("spiffe://cluster.local/ns/istio-system/sa/eastwest").unwrap();
    let root = Home::open(&domain.folder.path().join("pki")).unwrap().root(1).unwrap();
    let sign = |request: &Value| {
        let csr = Csr::parse(request["csr"].as_str().unwrap().as_bytes()).unwrap();
        let leaf = Leaf { id: id.clone(), dns: Vec::new(), ips: Vec::new(), lifetime: LIFETIME };
        let chain = root.certify(csr.key(), &leaf).unwrap();
        json!({ "certificate": [pem::encode(&chain), root.certificate_pem()] })
    };
    // Another server at the address receives no token.
    let mut other = start(&domain.leaf("other"), ANY);
    let at = other.address();
    let token = domain.folder.path().join("istio-token");
    fs::write(&token, "jwt-one\n").unwrap();
    let folder = domain.folder.path().join("own");
    let bundles = domain.folder.path().join("pki/bundles");
    let trust = [("directory", &folder), ("bundles", &bundles), ("token_file", &token)];
    let trust = trust.map(|(key, path)| format!("{key}: '{}'", path.display())).join(", ");
    let gateway = Setup::new("")
        .with("node: { id: gw-1, cluster: east, network: east-net }")
        .with(&format!("trust: {{ {trust} }}"))
        .with(&format!("xds: {{ control_plane: {{ addresses: ['{at}'], tls_name: {ISTIOD} }} }}"))
        .start();
    until("the refusal is logged", || {
        gateway.errors().iter().any(|line| line.contains("its certificate has other names"))
    });
    assert!(other.seen("csr").is_empty() && !gateway.is_ready());
    other.tell(&json!({}));
    drop(other);

    let mut plane = start(&leaf, &at.to_string());
    let request = plane.wait("csr", |_| true);
    assert_eq!(request["metadata"]["authorization"], "Bearer jwt-one");
    assert_eq!(request["metadata"]["clusterid"], "east");
    // A refusal is not final: tokens are replaced.
    fs::write(&token, "jwt-two").unwrap();
    plane.tell(&json!({ "certificate": null }));
    until("a second request", || plane.seen("csr").len() == 2);
    assert!(gateway.admin("GET", "/status").body.contains("the token is of nobody"));
    let request = plane.seen("csr").pop().unwrap();
    assert_eq!(request["metadata"]["authorization"], "Bearer jwt-two");
    plane.tell(&sign(&request));
    ready(&gateway);
    assert!(leads(&gateway, 0, b"one...."));
    let before = fs::read_to_string(folder.join("tls.crt")).unwrap();
    // The next attempt uses the current token.
    fs::write(&token, "jwt-three").unwrap();
    until("a third request", || plane.seen("csr").len() == 3);
    let request = plane.seen("csr").pop().unwrap();
    assert_eq!(request["metadata"]["authorization"], "Bearer jwt-three");
    plane.tell(&sign(&request));
    until("the certificate is renewed", || fs::read_to_string(folder.join("tls.crt")).unwrap() != before);
    assert!(leads(&gateway, 1, b"one...."));
}
