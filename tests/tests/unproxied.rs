//! Proxyless gRPC: grpcio discovers services of an agent as `xds:///HOST:PORT` with its own xDS client, and
//! calls them directly over mTLS, which the agent is not part of.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use isthmus_certs::home::{Home, LeafRecord};
use isthmus_certs::{KeyKind, Leaf, SpiffeId, TrustDomain};
use isthmus_tests::cluster::Cluster;
use isthmus_tests::control_plane::python;
use isthmus_tests::skip;
use isthmus_tests::wait::until;
use serde_json::{Value, json};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/unproxied.py");
const CALLER: &str = "spiffe://east.example/ns/bookinfo/sa/client";
const SHOP: &str = "shop.bookinfo.svc.cluster.local";
const STOCK: &str = "stock.bookinfo.svc.cluster.local";
const BUSY: &str = "busy.bookinfo.svc.cluster.local";
/// A host for which no server has a certificate.
const ALIEN: &str = "alien.bookinfo.svc.cluster.local";

/// A gRPC client or server that exchanges lines with the test; killed when dropped.
struct End {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stdin: ChildStdin,
}

impl End {
    /// Starts the program in a leaf's directory.
    fn start(python: &Path, does: &[&str], leaf: &Path, bootstrap: &Value) -> End {
        let mut child = Command::new("setpriv")
            .arg("--pdeathsig=KILL")
            .arg(python)
            .arg(SCRIPT)
            .args(does)
            .current_dir(leaf)
            .env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap.to_string())
            // Refusals are reported in its answers.
            .env("GRPC_VERBOSITY", "NONE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdout, stdin) = (BufReader::new(child.stdout.take().unwrap()), child.stdin.take().unwrap());
        End { child, stdout, stdin }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Calls a target once.
    fn call(&mut self, target: &str) -> Value {
        self.call_all(&[target]).remove(0)
    }

    /// Calls all targets concurrently, once each.
    fn call_all(&mut self, targets: &[&str]) -> Vec<Value> {
        let targets: Vec<_> = targets.iter().map(|target| format!("xds:///{target}")).collect();
        writeln!(self.stdin, "{}", targets.join(" ")).unwrap();
        serde_json::from_str(&self.line()).unwrap()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// A cluster whose agent also has the name `localhost`, and that lists `gw-1` as a gRPC client.
struct World {
    python: PathBuf,
    east: Cluster,
}

impl World {
    fn new(python: PathBuf) -> World {
        let mut east = Cluster::new("east");
        let domain = TrustDomain::new("east.example").unwrap();
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let mut home = Home::open(&east.path("pki")).unwrap();
        for (name, id, dns) in [
            ("agent-by-name", SpiffeId::agent(&domain, "east", "a").unwrap(), names(&["localhost"])),
            ("grpc", SpiffeId::workload(&domain, "bookinfo", "server").unwrap(), names(&[SHOP, STOCK])),
        ] {
            let leaf = Leaf { id, dns, ips: Vec::new(), lifetime: Duration::from_secs(3600) };
            home.keep(name, LeafRecord { leaf, key: KeyKind::P256, cluster: None, folder: None }).unwrap();
        }
        drop(home);
        east.set("trust", &east.trust("agent-by-name"));
        east.set("gateways", "[{ name: gw-1, envoy: '127.0.0.1:15443' }]");
        east.set("exports", &format!("[{{ hosts: [{SHOP}, {STOCK}, {BUSY}, {ALIEN}] }}]"));
        World { python, east }
    }

    fn leaf(&self, name: &str) -> PathBuf {
        self.east.path("pki/leaves").join(name)
    }

    /// A real gRPC server that requires a client certificate, and its address.
    fn server(&self, name: &str) -> (End, String) {
        let mut end = End::start(&self.python, &["serve", name], &self.leaf("grpc"), &Value::Null);
        let address = format!("127.0.0.1:{}", end.line());
        (end, address)
    }

    /// A caller with this leaf towards the agent, and its own identity towards services.
    fn caller(&self, towards_the_agent: &str) -> End {
        let leaf = self.leaf(towards_the_agent);
        let tls = json!({
            "certificate_file": leaf.join("tls.crt"),
            "private_key_file": leaf.join("tls.key"),
            "ca_certificate_file": leaf.join("ca.crt"),
        });
        let agent = json!({
            "server_uri": format!("localhost:{}", self.east.agent_address().port()),
            "channel_creds": [{ "type": "tls", "config": tls }],
            "server_features": ["xds_v3"],
        });
        let bootstrap = json!({ "xds_servers": [agent], "node": { "id": "any" } });
        End::start(&self.python, &["call"], &self.leaf("client"), &bootstrap)
    }

    /// The mTLS check cannot recognize gRPC servers, which close without an alert if there is no certificate.
    fn register(&self, host: &str, address: &str, more: &str) {
        let file = format!(
            "services: [{{ host: {host}, endpoints: [{{ address: '{address}' }}], allow_unauthenticated: true{more} }}]"
        );
        self.east.register(&format!("{host}.yaml"), &file);
    }
}

fn target(host: &str) -> String {
    format!("{host}:443")
}

fn answer(name: &str) -> Value {
    json!({ "answer": format!("{name} for {CALLER}") })
}

fn is_unavailable(answer: &Value) -> bool {
    answer["code"] == "UNAVAILABLE"
}

#[test]
fn proxyless_grpc_client_discovers_and_follows_services() {
    let Some(python) = python() else {
        skip!("no Python with grpcio and xds-protos; tests/run installs one");
    };
    let mut world = World::new(python);
    let ((_one, one), (_two, two)) = (world.server("one"), world.server("two"));
    world.register(SHOP, &one, "");
    world.register(STOCK, &two, "");
    world.register(ALIEN, &one, "");
    world.register(BUSY, &one, ", balance: least_connections");
    world.east.start();
    let (shop, stock, busy) = (target(SHOP), target(STOCK), target(BUSY));
    let says = |begin: &str| {
        let status = world.east.ask("/status");
        status["grpc"].as_array().unwrap().iter().any(|line| line.as_str().unwrap().starts_with(begin))
    };
    until("all services are exported, one of them not for gRPC clients", || {
        world.east.ask("/status")["exports"]["held_back"] == json!([])
            && says(&format!("{busy} is left out for gRPC clients: "))
    });

    let mut caller = world.caller("gw-1");
    assert_eq!(caller.call_all(&[&shop, &stock]), [answer("one"), answer("two")]);
    let alien = caller.call(&target(ALIEN));
    assert!(is_unavailable(&alien), "{alien}");
    assert!(alien["details"].as_str().unwrap().contains("Hostname Verification Check failed"), "{alien}");
    // gRPC waits 15 seconds before it treats a name as missing.
    let port = format!("{SHOP}:444");
    let unknown = ["x.example:443", &port, &busy, "isthmus-east-west"];
    for (unknown, failed) in unknown.into_iter().zip(caller.call_all(&unknown)) {
        assert!(is_unavailable(&failed), "{unknown}: {failed}");
        let details = failed["details"].as_str().unwrap();
        assert!(details.contains(&format!("LDS resource {unknown}: does not exist")), "{details}");
    }

    world.register(SHOP, &two, "");
    until("calls go to the other endpoint", || caller.call(&shop) == answer("two"));
    world.register(STOCK, &two, ", proxy_protocol: v2");
    until("the unsupported service is gone for the client", || is_unavailable(&caller.call(&stock)));
    world.register(STOCK, &one, "");
    until("the service is back", || caller.call(&stock) == answer("one"));
    world.east.forget(&format!("{SHOP}.yaml"));
    until("the withdrawn service is gone", || is_unavailable(&caller.call(&shop)));
    assert_eq!(caller.call(&stock), answer("one"), "another service is gone");
}

#[test]
fn proxyless_grpc_client_without_listing_receives_nothing() {
    let Some(python) = python() else {
        skip!("no Python with grpcio and xds-protos; tests/run installs one");
    };
    let mut world = World::new(python);
    let (_one, one) = world.server("one");
    world.register(SHOP, &one, "");
    world.east.start();
    let shop = target(SHOP);
    let mut listed = world.caller("gw-1");
    until("a listed client reaches the service", || listed.call(&shop) == answer("one"));
    for leaf in ["gw-2", "client"] {
        let failed = world.caller(leaf).call(&shop);
        assert!(is_unavailable(&failed), "{leaf}: {failed}");
        let details = failed["details"].as_str().unwrap();
        assert!(details.contains("is neither one of this cluster's gateways"), "{leaf}: {details}");
    }
}
