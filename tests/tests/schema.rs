//! The admin pages of running programs match the JSON Schema that they serve, and the types of `isthmus-model` read
//! them without loss.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::fs;
use std::net::TcpStream;
use std::process::Command;

use boon::{Compiler, SchemaIndex, Schemas};
use isthmus_model::admin::agent::{self, Deregistered, Lease};
use isthmus_model::admin::gateway::{
    self, Config, Connection, Draining, Explanation, Paged, Routes, Service,
};
use isthmus_model::admin::{Answer, Failure, Index};
use isthmus_tests::cluster::{Cluster, outbound};
use isthmus_tests::endpoint::Scripted;
use isthmus_tests::wait::until;
use isthmus_tests::{binary, http};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const HOST: &str = "details.bookinfo.svc.cluster.local";

/// The schema of one program.
struct Api {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Api {
    fn new(document: Value) -> Api {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.add_resource("file:///schema.json", document).unwrap();
        let index = compiler.compile("file:///schema.json", &mut schemas).unwrap();
        Api { schemas, index }
    }

    /// Asserts that the answer of a path is valid and that its type reads all of it.
    #[track_caller]
    fn check<T: Serialize + DeserializeOwned>(&self, path: &str, body: &str) {
        let answer = Answer::parse(body.as_bytes()).unwrap();
        let page: T = answer.page().unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(serde_json::to_value(page).unwrap(), *answer.value(), "{path}");
        let valid = json!({ (path): answer.value() });
        if let Err(error) = self.schemas.validate(&valid, self.index) {
            panic!("{path}: {error:#}: {body}");
        }
        let other = json!({ (path): { "error": "x" } });
        assert!(self.schemas.validate(&other, self.index).is_err(), "{path}: the schema accepts anything");
    }
}

/// Two clusters that offer each other services; east has state.
fn clusters(endpoint: &Scripted) -> (Cluster, Cluster) {
    let (mut east, mut west) = (Cluster::new("east"), Cluster::new("west"));
    east.trust_cluster(&west);
    west.trust_cluster(&east);
    east.start();
    west.start();
    let peers = [west.as_peer(), east.as_peer()];
    for (own, peer) in [&mut east, &mut west].into_iter().zip(peers) {
        own.set("peers", &format!("[{peer}]"));
        own.set("exports", "[{ workspace: [bookinfo] }]");
        let state = own.path("state").display().to_string();
        own.set("state", &state);
    }
    west.set("gateways", "[{ name: gw-1, address: 127.0.0.1 }]");
    east.set(
        "imports",
        "[{ cluster: west, hosts: ['*.bookinfo.svc.cluster.local'], gatewayCIDRs: [127.0.0.0/8] }]",
    );
    let here = endpoint.address();
    east.register(
        "here.yaml",
        &format!(
            "services:\n- {{ host: {HOST}, endpoints: [{{ address: '{here}', instance: d-0 }}, {{ address: 'nowhere.invalid:1' }}] }}\n\
             - {{ host: plain.example, aliases: [plain], endpoints: [{{ address: '{here}' }}] }}\n"
        ),
    );
    let theirs = |host: &str| {
        format!("{{ host: {host}, allow_unauthenticated: true, endpoints: [{{ address: '{here}' }}] }}")
    };
    west.register(
        "there.yaml",
        &format!("services: [{}, {}]", theirs("reviews.bookinfo.svc.cluster.local"), theirs(HOST)),
    );
    for cluster in [&mut east, &mut west] {
        cluster.stop();
        cluster.start();
    }
    until("east knows west's slices and checks its own endpoints", || {
        let status = east.status();
        let slices = status.imports;
        slices.imported.len() + slices.held_back.len() == 2 && !status.exports.held_back.is_empty()
    });
    (east, west)
}

#[test]
fn admin_pages_of_agent_match_their_schema() {
    let endpoint = Scripted::echo(b"one....");
    let (east, mut west) = clusters(&endpoint);
    let admin = east.address("admin");
    let get = |path: &str| http::ask(admin, "GET", path);
    let api = Api::new(get("/schema").json());
    let _gateway = east.gateway("gw-1");
    until("a gateway is in the status", || {
        api.check::<agent::Status>("/status", &get("/status").body);
        east.status().nodes["gateways"].len() == 1
    });
    until("the gateway reports the matrix", || {
        let page = get("/matrix").body;
        api.check::<agent::Matrix>("/matrix", &page);
        page.contains("\"rtt_micros\"")
    });
    api.check::<agent::Status>("/status", &get("/status").body);
    for name in [HOST, "plain", "reviews.bookinfo.svc.cluster.local", "unknown.example"] {
        api.check::<agent::Explanation>("/explain", &get(&format!("/explain?host={name}")).body);
    }
    west.stop();
    until("west is unreachable", || !east.status().peers["west"].connected);
    api.check::<agent::Status>("/status", &get("/status").body);
    api.check::<agent::Explanation>("/explain", &get("/explain?host=reviews.bookinfo").body);

    let me = east.path("me.json");
    let registration =
        r#"{"host": "db.pxc", "port": 1, "instance": "db-0", "endpoints": [{"address": "127.0.0.1:1"}]}"#;
    fs::write(&me, registration).unwrap();
    let lease = east.command(&["register", me.to_str().unwrap()]).unwrap();
    api.check::<Lease>("/register", &lease);
    let lease = serde_json::from_str::<Lease>(&lease).unwrap().lease.unwrap();
    api.check::<Lease>("/heartbeat", &east.command(&["heartbeat", &lease]).unwrap());
    api.check::<Deregistered>("/deregister", &east.command(&["deregister", &lease]).unwrap());
    let _index: Index = get("/nowhere").page();
    let failure: Failure = get("/explain").page();
    assert!(failure.error.contains("?host=NAME"), "{failure:?}");
    let people =
        Command::new(binary::agent()).args(["status", "--admin", &admin.to_string()]).output().unwrap();
    let people = String::from_utf8(people.stdout).unwrap();
    assert!(people.contains("peer west: not connected"), "{people}");
}

#[test]
fn admin_pages_of_gateway_match_their_schema() {
    let endpoint = Scripted::echo(b"one....");
    let (east, _west) = clusters(&endpoint);
    let gateway = east.setup("gw-1").with("drain: { accept_for: 1h }").start();
    until("the gateway is ready", || gateway.is_ready());
    let get = |path: &str| gateway.admin("GET", path).body;
    let api = Api::new(gateway.admin("GET", "/schema").json());
    let open = TcpStream::connect(outbound(&gateway)).unwrap();
    until("the connection is open", || gateway.status().connections.open == 1);
    api.check::<gateway::Status>("/status", &get("/status"));
    api.check::<Config>("/config", &get("/config"));
    api.check::<Routes>("/routes", &get("/routes?limit=2"));
    api.check::<Paged<Service>>("/services", &get("/services"));
    api.check::<Paged<Connection>>("/connections", &get("/connections"));
    drop(open);
    until("the matrix has a row", || {
        api.check::<gateway::Matrix>("/matrix", &get("/matrix"));
        get("/matrix").contains("\"rtt_micros\"")
    });
    api.check::<gateway::Status>("/status", &get("/status"));
    for query in [HOST, "unknown.example", "plain&listener=outbound", "plain&alpn=h2"] {
        api.check::<Explanation>("/explain", &get(&format!("/explain?sni={query}")));
    }
    let _index: Index = gateway.admin("GET", "/nowhere").page();
    let _failure: Failure = gateway.admin("GET", "/services?limit=many").page();
    api.check::<Draining>("/drain", &gateway.admin("POST", "/drain").body);
}
