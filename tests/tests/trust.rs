//! Trust updates between joined clusters: root roll-over and deny-lists, without manual copying.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic anywhere"
)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use isthmus_certs::home::OVERLAP;
use isthmus_certs::trust::Watch;
use isthmus_certs::{Client, Peer, Server, Trust, TrustFiles};
use isthmus_tests::certs::why;
use isthmus_tests::client::dial;
use isthmus_tests::cluster::{Cluster, east_west, outbound, until_status};
use isthmus_tests::endpoint::{Endpoint, Scripted};
use isthmus_tests::figure;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::http;
use isthmus_tests::wait::{throughout, until, until_some};
use isthmus_tests::workload::files;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use serde_json::{Value, json};

const HOST: &str = "details.bookinfo.svc.cluster.local";
const HOUR: Duration = Duration::from_secs(3600);
/// Overlap of the awaited roll-over.
const SHORT: Duration = Duration::from_secs(3);
/// Lifetime of leaves during it.
const LIFETIME: Duration = Duration::from_secs(14);
const PACE: Duration = Duration::from_millis(20);

/// East and west, joined by a token; west calls a service of east.
struct World {
    east: Cluster,
    west: Cluster,
    _gateways: [Gateway; 2],
    caller: Caller,
    _endpoint: Scripted,
    _follow: Vec<Watch>,
    rotating: Vec<Child>,
}

impl World {
    fn new(overlap: Duration, lifetime: Duration) -> World {
        let (mut east, mut west) =
            (Cluster::with("east", overlap, lifetime), Cluster::with("west", overlap, lifetime));
        let rotating =
            vec![rotate(&east, &["--acknowledged", "state/acknowledged.json"]), rotate(&west, &[])];
        for cluster in [&mut east, &mut west] {
            let [state, deny] = ["state", "pki/deny"].map(|name| cluster.path(name).display().to_string());
            let trust = cluster.trust("agent").replace(" }", &format!(", deny: {deny} }}"));
            cluster.set("state", &state);
            cluster.set("trust", &trust);
            cluster.set("exports", "[{ workspace: ['*/bookinfo'] }]");
            cluster.start();
        }
        let gateways = [east.gateway("gw-1"), west.gateway("gw-1")];
        let port = east_west(&gateways[0]).port();
        east.set("gateways", &format!("[{{ name: gw-1, address: 127.0.0.1, port: {port} }}]"));
        west.set("imports", "[{ cluster: east, gatewayCIDRs: [127.0.0.0/8] }]");
        east.set("join", "{ address: '127.0.0.1:0', advertise: '127.0.0.1:1' }");
        for cluster in [&mut east, &mut west] {
            let address = cluster.agent_address();
            cluster.set("xds", &format!("{{ address: '{address}', advertise: '{address}' }}"));
            cluster.stop();
            cluster.start();
        }
        let place = east.address("join");
        east.set("join", &format!("{{ address: '{place}', advertise: '{place}' }}"));
        let create = ["token", "create", "--for", "west", "--trust-domain", "west.example", "--json"];
        let token: Value = serde_json::from_str(&east.command(&create).unwrap()).unwrap();
        west.command(&["join", token["token"].as_str().unwrap()]).unwrap();

        let (server, follow_server) = followed(&east, "server");
        let endpoint = serve(Arc::new(Server::new(server, Peer::Trusted, &[]).unwrap()));
        east.register(
            "details.yaml",
            &format!("services: [{{ host: {HOST}, endpoints: [{{ address: '{}' }}] }}]", endpoint.address()),
        );
        let (client, follow_client) = followed(&west, "client");
        let client = Arc::new(Client::new(client, Peer::Trusted, &[]).unwrap());
        let caller = Caller { client, gateway: outbound(&gateways[1]) };
        until("west reaches east's service", || caller.call().is_ok());
        World {
            east,
            west,
            _gateways: gateways,
            caller,
            _endpoint: endpoint,
            _follow: vec![follow_server, follow_client],
            rotating,
        }
    }

    /// Waits until west has acknowledged east's current bundle.
    fn until_acknowledged(&self) {
        until_status(&self.east, "west has acknowledged the current bundle", |status| {
            let own = sequence(&self.east, "east.example");
            let word = &status["peers"]["west"]["acknowledged"];
            (word["is_present"] == true && word["sequence"] == own).then_some(())
        });
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in &mut self.rotating {
            let _gone = child.kill();
            let _gone = child.wait();
        }
    }
}

/// Starts `rotate --watch` in the directory of a cluster.
fn rotate(cluster: &Cluster, words: &[&str]) -> Child {
    let words = [&["rotate", "--watch"], words].concat();
    cluster.certs(&words).current_dir(cluster.folder()).stdout(Stdio::null()).spawn().unwrap()
}

/// Runs `isthmus-certs`; returns its output.
#[track_caller]
fn certs(cluster: &Cluster, words: &[&str]) -> String {
    let output = cluster.certs(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn rollover(cluster: &Cluster) -> Value {
    let status: Value = serde_json::from_str(&certs(cluster, &["status", "--json"])).unwrap();
    status["rollover"].clone()
}

/// The sequence number of a domain's bundle on a cluster's disk.
fn sequence(cluster: &Cluster, domain: &str) -> u64 {
    let text = fs::read_to_string(bundle(cluster, domain)).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["spiffe_sequence"].as_u64().unwrap()
}

fn bundle(cluster: &Cluster, domain: &str) -> PathBuf {
    cluster.path(&format!("pki/bundles/{domain}.json"))
}

/// A workload's trust, which follows its files: bundles and deny-lists are those of its cluster's agent.
fn followed(cluster: &Cluster, leaf: &str) -> (Trust, Watch) {
    let files = TrustFiles { deny: Some(cluster.path("pki/deny")), ..files(cluster, leaf) };
    let trust = Trust::load(&files).unwrap();
    let watch = trust.watch(files).unwrap();
    (trust, watch)
}

/// Echoes one byte to each client with a trusted certificate.
fn serve(server: Arc<Server>) -> Scripted {
    Scripted::unread_at(Endpoint::at(SocketAddr::from(([127, 0, 0, 1], 0))), move |stream| {
        let mut tls = StreamOwned::new(ServerConnection::new(server.config()).unwrap(), stream);
        let mut byte = [0];
        if tls.read_exact(&mut byte).is_ok() && tls.write_all(&byte).is_ok() {
            tls.conn.send_close_notify();
            // The client counts the call; its close may be of any kind.
            let _end = tls.flush().and_then(|()| tls.read(&mut byte));
        }
    })
}

/// A workload of west.
#[derive(Clone)]
struct Caller {
    client: Arc<Client>,
    gateway: SocketAddr,
}

impl Caller {
    fn call(&self) -> Result<(), String> {
        let stream = dial(self.gateway);
        let name = ServerName::try_from(HOST).unwrap();
        let mut tls = StreamOwned::new(ClientConnection::new(self.client.config(), name).unwrap(), stream);
        tls.write_all(b"x").and_then(|()| tls.read_exact(&mut [0])).map_err(|error| why(&error))
    }

    fn traffic(&self) -> Traffic {
        let (caller, tally) = (self.clone(), Arc::new(Tally::default()));
        let own = Arc::clone(&tally);
        let thread = thread::spawn(move || {
            while !own.is_over.load(SeqCst) {
                if let Err(why) = caller.call() {
                    own.failures.lock().unwrap().push(why);
                }
                own.calls.fetch_add(1, SeqCst);
                thread::park_timeout(PACE);
            }
        });
        Traffic { tally, thread }
    }
}

#[derive(Default)]
struct Tally {
    is_over: AtomicBool,
    calls: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

struct Traffic {
    tally: Arc<Tally>,
    thread: JoinHandle<()>,
}

impl Traffic {
    fn goes_on(&self) {
        let before = self.tally.calls.load(SeqCst);
        until("calls continue", || self.tally.calls.load(SeqCst) > before + 20);
    }

    fn end(self) -> usize {
        self.tally.is_over.store(true, SeqCst);
        self.thread.join().unwrap();
        let failures = self.tally.failures.lock().unwrap();
        assert!(failures.is_empty(), "{failures:?}");
        self.tally.calls.load(SeqCst)
    }
}

#[test]
fn roll_over_waits_for_every_peer_and_fails_no_call() {
    let mut world = World::new(SHORT, LIFETIME);
    world.until_acknowledged();
    let first = sequence(&world.east, "east.example");
    let traffic = world.caller.traffic();
    world.west.stop();
    let _begun = certs(&world.east, &["rotate", "--root"]);
    until("the new root is in the bundle", || rollover(&world.east)["step"] == "trusted");
    let both = sequence(&world.east, "east.example");
    until_status(&world.east, "east's agent offers the new bundle", |status| {
        let word = &status["peers"]["west"]["acknowledged"];
        (word["present"] == both && word["sequence"] == first && word["is_present"] == false).then_some(())
    });
    // While west's agent is away, for any time, the old root keeps signing.
    throughout(SHORT * 3, "the roll-over is held", || rollover(&world.east)["step"] == "trusted");
    let printed = certs(&world.east, &["rotate"]);
    let waits = format!(
        "waiting for peer \"west\" of \"east\": its last acknowledged bundle ({first}) lacks the new root"
    );
    assert!(printed.contains(&waits), "{printed}");
    let awaited = rollover(&world.east)["awaited"].clone();
    assert_eq!(
        (&awaited[0]["peer"], &awaited[0]["sequence"], &awaited[1]),
        (&json!("west"), &json!(first), &Value::Null)
    );
    assert_eq!(sequence(&world.west, "east.example"), first);
    traffic.goes_on();

    world.west.start();
    world.until_acknowledged();
    assert_eq!(sequence(&world.west, "east.example"), both);
    until("the new root signs", || rollover(&world.east)["step"] == "used");
    assert_eq!(rollover(&world.east)["awaited"], json!([]));
    until("the old root is gone", || rollover(&world.east) == Value::Null);
    let last = sequence(&world.east, "east.example");
    assert!(last > both && both > first, "{first} {both} {last}");
    world.until_acknowledged();
    assert_eq!(sequence(&world.west, "east.example"), last);
    traffic.goes_on();
    let status = world.west.ask("/status");
    let word = &status["peers"]["east"]["bundle"];
    assert_eq!((&word["taken"], &word["refusal"]), (&json!(last), &Value::Null), "{word}");
    let metrics = http::ask_in(None, world.east.address("admin"), "GET", "/metrics").body;
    assert!(metrics.contains("isthmus_agent_peer_bundle_unacknowledged{cluster=\"west\"} 0"), "{metrics}");

    // Acknowledgements and accepted bundles survive a restart of either agent.
    let kept = fs::read_to_string(world.east.path("state/acknowledged.json")).unwrap();
    world.west.stop();
    world.east.stop();
    world.east.start();
    let word = until_status(&world.east, "west is a peer", |status| {
        Some(status["peers"]["west"]["acknowledged"].clone()).filter(|word| !word.is_null())
    });
    assert_eq!((&word["sequence"], &word["is_present"]), (&json!(last), &json!(true)));
    world.west.start();
    until_some("both agents follow each other again", || {
        let connected =
            |cluster: &Cluster, peer: &str| cluster.ask("/status")["peers"][peer]["connected"] == true;
        (connected(&world.west, "east") && connected(&world.east, "west")).then_some(())
    });
    world.until_acknowledged();
    let now = fs::read_to_string(world.east.path("state/acknowledged.json")).unwrap();
    assert_eq!(now, kept, "a repeated bundle is not a change");
    figure!("{} calls over a root roll-over that was held for a peer, 0 failed", traffic.end());
}

#[test]
fn identity_denied_in_east_is_refused_in_west() {
    let world = World::new(OVERLAP, HOUR);
    world.until_acknowledged();
    world.caller.call().unwrap();
    let list = world.west.path("pki/deny/east.example.json");
    assert!(!list.exists());
    let _denied = certs(&world.east, &["deny", "add", "spiffe://east.example/ns/bookinfo/sa/server"]);
    until("west has the deny-list", || list.exists());
    let why = until_some("a workload of west refuses the denied identity", || world.caller.call().err());
    assert!(why.contains("is denied by the deny-list"), "{why}");
    let kept = fs::read_to_string(world.east.path("pki/deny/east.example.json")).unwrap();
    assert_eq!(fs::read_to_string(&list).unwrap(), kept);
    assert!(world.west.ask("/status")["peers"]["east"]["bundle"]["refusal"].is_null());
    let _undone = certs(&world.east, &["deny", "remove", "spiffe://east.example/ns/bookinfo/sa/server"]);
    until("the identity is accepted again", || world.caller.call().is_ok());
    // A deny-list with its own agent's identity is refused by the peer.
    let before = fs::read_to_string(&list).unwrap();
    let _denied = certs(&world.east, &["deny", "add", "spiffe://east.example/isthmus/east/agent/*"]);
    let why = until_status(&world.west, "the list is refused", |status| {
        Some(status["peers"]["east"]["bundle"]["refusal"].as_str()?.to_owned())
    });
    assert!(
        why.contains("east.example") && why.contains("does not trust the peer's own certificate"),
        "{why}"
    );
    assert_eq!(fs::read_to_string(&list).unwrap(), before);
}
