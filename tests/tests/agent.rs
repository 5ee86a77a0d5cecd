//! An agent and a gateway as processes of their own: the registry's files lead where clients end up, and what
//! fails on the way leaves the last good tables.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use isthmus_certs::home::{Home, Kept, Plan};
use isthmus_certs::{KeyKind, Leaf, SpiffeId, TrustDomain};
use isthmus_tests::binary;
use isthmus_tests::client::{alert, send};
use isthmus_tests::endpoint::Scripted;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::hello;
use isthmus_tests::setup::Setup;
use isthmus_tests::wait::{until, within};
use tempfile::TempDir;

const HOST: &str = "db.pxc.svc.cluster.local";
const UNRECOGNIZED_NAME: u8 = 112;

/// One cluster: an authority, a registry, and where its agent is.
struct Cluster {
    folder: TempDir,
    agent: Option<Child>,
    address: Option<SocketAddr>,
}

impl Cluster {
    fn new() -> Cluster {
        let folder = TempDir::new().unwrap();
        let domain = TrustDomain::new("east.example").unwrap();
        let mut home = Home::create(&folder.path().join("pki"), &Plan::new(domain.clone())).unwrap();
        let ids = [
            ("agent", SpiffeId::agent(&domain, "east", "a").unwrap()),
            ("gw-1", SpiffeId::gateway(&domain, "east", "gw-1").unwrap()),
            ("gw-2", SpiffeId::gateway(&domain, "east", "gw-2").unwrap()),
        ];
        for (name, id) in ids {
            let lifetime = Duration::from_secs(3600);
            let leaf = Leaf { id, dns: Vec::new(), ips: Vec::new(), lifetime };
            home.keep(name, Kept { leaf, key: KeyKind::P256, cluster: None, folder: None }).unwrap();
        }
        fs::create_dir(folder.path().join("registry")).unwrap();
        Cluster { folder, agent: None, address: None }
    }

    fn trust(&self, leaf: &str) -> String {
        let pki = self.folder.path().join("pki").display().to_string();
        format!(
            "trust: {{ certificate: {pki}/leaves/{leaf}/tls.crt, key: {pki}/leaves/{leaf}/tls.key, bundles: {pki}/bundles }}"
        )
    }

    /// Starts the agent, where it was before if it ran before.
    fn start(&mut self) {
        let address = self.address.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap());
        let file = self.folder.path().join("agent.yaml");
        let registry = self.folder.path().join("registry").display().to_string();
        let text = format!(
            "cluster: east\nnetwork: east-net\n{}\nregistry: {{ files: {registry} }}\ngateways: [{{ name: gw-1 }}]\n\
             xds: {{ address: '{address}' }}\nadmin: {{ address: '127.0.0.1:0' }}\n",
            self.trust("agent")
        );
        fs::write(&file, text).unwrap();
        let mut command = Command::new(binary::agent());
        let mut agent = command.arg("run").arg("--config").arg(&file).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(agent.stderr.take().unwrap()).lines().map_while(Result::ok);
        let bound = lines.find_map(|line| Some(line.rsplit_once("listening xds address=")?.1.to_owned()));
        self.address = Some(bound.expect("the agent runs").parse().unwrap());
        // What it says later is read, so that it never waits for a reader.
        thread::spawn(move || lines.for_each(drop));
        self.agent = Some(agent);
    }

    fn stop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }

    /// Replaces a file of the registry, as an editor does.
    fn register(&self, name: &str, text: &str) {
        let folder = self.folder.path().join("registry");
        fs::write(folder.join(".new"), text).unwrap();
        fs::rename(folder.join(".new"), folder.join(name)).unwrap();
    }

    fn gateway(&self, leaf: &str) -> Gateway {
        let agent = self.address.unwrap();
        Setup::new("")
            .with("node: { id: gw, cluster: east, network: east-net }")
            .with(&self.trust(leaf))
            .with(&format!("xds: {{ agents: ['{agent}'] }}"))
            .start()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

fn services(endpoint: &Scripted) -> String {
    format!("services: [{{ host: {HOST}, endpoints: [{{ address: '{}' }}] }}]", endpoint.address())
}

/// The first seven bytes that a client gets who asks for the host: a greeting, or a whole alert.
fn answer(gateway: &Gateway) -> Vec<u8> {
    let mut answer = vec![0; 7];
    send(gateway.address(), &hello(HOST)).read_exact(&mut answer).unwrap();
    answer
}

fn leads_to(gateway: &Gateway, greeting: &[u8]) -> bool {
    answer(gateway) == greeting
}

#[test]
fn a_registry_file_leads_where_clients_end_up() {
    let (one, two) = (Scripted::echo(b"one...."), Scripted::echo(b"two...."));
    let mut cluster = Cluster::new();
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
    fs::remove_file(cluster.folder.path().join("registry/db.yaml")).unwrap();
    until("the name is no more", || leads_to(&gateway, &alert(UNRECOGNIZED_NAME)));
}

#[test]
fn a_lost_agent_leaves_the_tables_and_what_changed_meanwhile_is_caught_up() {
    let (one, two) = (Scripted::echo(b"one...."), Scripted::echo(b"two...."));
    let mut cluster = Cluster::new();
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
    let mut cluster = Cluster::new();
    cluster.register("db.yaml", &services(&one));
    cluster.start();
    let gateway = cluster.gateway("gw-2");
    until("it is told why", || {
        gateway.errors().iter().any(|line| line.contains("list it under `gateways:`"))
    });
    assert!(!within(Duration::from_millis(200), || gateway.is_ready()), "and it is not ready");
    assert!(leads_to(&gateway, &alert(UNRECOGNIZED_NAME)));
}
