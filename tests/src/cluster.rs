//! Runs a cluster: an authority, a registry in files, an agent, and gateways that follow it. Several form a
//! federation, in which each has the others' bundles and lists them as peers.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use isthmus_certs::home::{Home, LeafRecord, OVERLAP, Plan};
use isthmus_certs::{KeyKind, Leaf, SpiffeId, TrustDomain};
use isthmus_model::admin::agent::Status;
use serde_json::Value;
use tempfile::TempDir;

use crate::binary;
use crate::gateway::Gateway;
use crate::http;
use crate::process::Process;
use crate::setup::Setup;
use crate::wait::until_some;

/// One cluster.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    folder: TempDir,
    /// Sections of the agent's configuration file, by key.
    sections: BTreeMap<String, String>,
    agent: Option<Agent>,
    /// Addresses of the current or last agent.
    addresses: BTreeMap<String, SocketAddr>,
    namespace: Option<String>,
    /// Address for other clusters, if the cluster has its own namespace.
    ip: Option<IpAddr>,
}

#[derive(Debug)]
struct Agent {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Cluster {
    /// Creates an authority, an empty registry and the identities of two gateways; starts nothing.
    #[must_use]
    pub fn new(name: &str) -> Cluster {
        Cluster::with(name, OVERLAP, Duration::from_secs(3600))
    }

    /// The same with this lifetime of leaves and this overlap of root roll-overs.
    #[must_use]
    pub fn with(name: &str, overlap: Duration, lifetime: Duration) -> Cluster {
        let folder = TempDir::new().unwrap();
        let domain = TrustDomain::new(&format!("{name}.example")).unwrap();
        let plan = Plan { overlap, ..Plan::new(domain.clone()) };
        let mut home = Home::create(&folder.path().join("pki"), &plan).unwrap();
        let workload = |account| SpiffeId::workload(&domain, "bookinfo", account).unwrap();
        let ids = [
            ("agent", SpiffeId::agent(&domain, name, "a").unwrap()),
            ("gw-1", SpiffeId::gateway(&domain, name, "gw-1").unwrap()),
            ("gw-2", SpiffeId::gateway(&domain, name, "gw-2").unwrap()),
            ("client", workload("client")),
            ("server", workload("server")),
        ];
        for (name, id) in ids {
            let leaf = Leaf { id, dns: Vec::new(), ips: Vec::new(), lifetime };
            home.keep(name, LeafRecord { leaf, key: KeyKind::P256, cluster: None, folder: None }).unwrap();
        }
        fs::create_dir(folder.path().join("registry")).unwrap();
        let registry = folder.path().join("registry").display().to_string();
        let mut cluster = Cluster {
            name: name.to_owned(),
            folder,
            sections: BTreeMap::new(),
            agent: None,
            addresses: BTreeMap::new(),
            namespace: None,
            ip: None,
        };
        let trust = cluster.trust("agent");
        for (key, value) in [
            ("cluster", name.to_owned()),
            ("network", format!("{name}-net")),
            ("trust", trust),
            ("registry", format!("{{ files: {registry} }}")),
            ("gateways", "[{ name: gw-1 }]".to_owned()),
        ] {
            cluster.set(key, &value);
        }
        cluster
    }

    /// Places the cluster in a network namespace.
    #[must_use]
    pub fn inside(mut self, namespace: &str) -> Cluster {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// Gives the cluster its own address, with all default ports.
    #[must_use]
    pub fn at(mut self, ip: IpAddr) -> Cluster {
        self.ip = Some(ip);
        self.addresses.insert("xds".to_owned(), SocketAddr::new(ip, 15_012));
        self.addresses.insert("admin".to_owned(), SocketAddr::from((Ipv4Addr::LOCALHOST, 15_014)));
        self
    }

    /// The cluster's network namespace.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The cluster's own address, or loopback.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.ip.unwrap_or(Ipv4Addr::LOCALHOST.into())
    }

    /// The agent's process.
    #[must_use]
    #[track_caller]
    pub fn process(&self) -> Process {
        Process(self.agent.as_ref().expect("the agent runs").child.id())
    }

    /// The cluster's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path of a file or directory of the cluster.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Sets a section of the agent's configuration for the next start.
    pub fn set(&mut self, key: &str, value: &str) {
        self.sections.insert(key.to_owned(), value.to_owned());
    }

    /// Has the agent issue certificates of at most this lifetime, from the next start on.
    pub fn issue(&mut self, longest: &str) {
        let pki = self.path("pki");
        assert!(Home::open(&pki).unwrap().add_cluster(&self.name).unwrap());
        let state = self.path("state").display().to_string();
        self.set("state", &state);
        let folder = pki.join("clusters").join(&self.name).display().to_string();
        let files = format!("certificate: {folder}/ca-cert.pem, key: {folder}/ca-key.pem");
        self.set("issuing", &format!("{{ {files}, longest: {longest} }}"));
    }

    /// Makes a token of the agent: `--gateway NAME`, `--workload SPIFFE-ID`.
    ///
    /// # Errors
    /// What the command prints.
    pub fn token(&self, words: &[&str]) -> Result<String, String> {
        let at = self.agent_address().to_string();
        let text = self.command(&[&["token", "create", "--address", &at], words].concat())?;
        Ok(text.trim().to_owned())
    }

    /// Removes a section of the agent's configuration for the next start.
    pub fn unset(&mut self, key: &str) {
        self.sections.remove(key);
    }

    /// The files of an identity, in the form of a `trust:` section.
    #[must_use]
    pub fn trust(&self, leaf: &str) -> String {
        let pki = self.path("pki").display().to_string();
        format!(
            "{{ certificate: {pki}/leaves/{leaf}/tls.crt, key: {pki}/leaves/{leaf}/tls.key, bundles: {pki}/bundles }}"
        )
    }

    /// Trusts another cluster's authority.
    pub fn trust_cluster(&self, other: &Cluster) {
        let bundle = format!("pki/bundles/{}.example.json", other.name);
        fs::copy(other.path(&bundle), self.path(&bundle)).unwrap();
    }

    /// This cluster's agent, as an item of `peers:`.
    #[must_use]
    pub fn as_peer(&self) -> String {
        let (name, address) = (&self.name, self.agent_address());
        format!(
            "{{ cluster: {name}, address: '{address}', trustDomain: {name}.example, network: {name}-net }}"
        )
    }

    /// The agent's xDS address.
    #[must_use]
    #[track_caller]
    pub fn agent_address(&self) -> SocketAddr {
        self.addresses["xds"]
    }

    /// Writes the agent's configuration file and returns its path.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        let mut text: String = self.sections.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
        for key in ["xds", "admin"] {
            let bound =
                self.addresses.get(key).map_or_else(|| "127.0.0.1:0".to_owned(), SocketAddr::to_string);
            if !self.sections.contains_key(key) {
                text += &format!("{key}: {{ address: '{bound}' }}\n");
            }
        }
        let path = self.path("agent.yaml");
        fs::write(&path, text).unwrap();
        path
    }

    /// Starts the agent, on its previous addresses if it ran before.
    #[track_caller]
    pub fn start(&mut self) {
        let mut command = self.program();
        let command = command.arg("run").arg("--config").arg(self.file());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        for line in stderr.by_ref() {
            if let Some((what, address)) =
                line.strip_prefix("listening ").and_then(|rest| rest.split_once(" address="))
            {
                self.addresses.insert(what.to_owned(), address.parse().unwrap());
            }
            let is_ready = line == "ready";
            lines.lock().unwrap().push(line);
            if is_ready {
                break;
            }
        }
        assert!(child.try_wait().unwrap().is_none(), "the agent exited: {:#?}", lines.lock().unwrap());
        let kept = Arc::clone(&lines);
        thread::spawn(move || stderr.for_each(|line| kept.lock().unwrap().push(line)));
        self.agent = Some(Agent { child, lines });
    }

    /// Builds a command of the agent's binary in the cluster's namespace; the process ends with the test.
    fn program(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig=KILL");
        if let Some(namespace) = &self.namespace {
            command.arg("nsenter").arg(format!("--net=/run/netns/{namespace}"));
        }
        command.arg(binary::agent());
        command
    }

    /// Kills the agent.
    pub fn stop(&mut self) {
        if let Some(Agent { mut child, .. }) = self.agent.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// The agent's log lines since its start.
    #[must_use]
    pub fn log_lines(&self) -> Vec<String> {
        let lines = self.agent.as_ref().map(|agent| Arc::clone(&agent.lines)).unwrap_or_default();
        let lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.clone()
    }

    /// Gets a JSON page of the agent.
    #[must_use]
    pub fn ask(&self, path: &str) -> Value {
        let body = http::ask_in(self.namespace(), self.addresses["admin"], "GET", path).body;
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"))
    }

    /// Gets the agent's status.
    #[must_use]
    pub fn status(&self) -> Status {
        http::ask_in(self.namespace(), self.addresses["admin"], "GET", "/status").page()
    }

    /// Gets the agent's Prometheus metrics as text.
    #[must_use]
    pub fn metrics(&self) -> String {
        http::ask_in(self.namespace(), self.addresses["admin"], "GET", "/metrics").body
    }

    /// Runs a command of the agent's binary with its configuration; returns its output or its error.
    pub fn command(&self, words: &[&str]) -> Result<String, String> {
        let (first, rest) =
            words.split_at(words.len().min(if matches!(words[0], "token" | "peers") { 2 } else { 1 }));
        let mut command = self.program();
        let output = command.args(first).arg("--config").arg(self.file()).args(rest).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// Builds an `isthmus-certs` command for the cluster's authority.
    #[must_use]
    pub fn certs(&self, words: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig=KILL").arg(binary::certs()).args(words);
        command.env("ISTHMUS_CERTS_DIR", self.path("pki"));
        command
    }

    /// One of the agent's addresses.
    #[must_use]
    #[track_caller]
    pub fn address(&self, what: &str) -> SocketAddr {
        self.addresses[what]
    }

    /// Replaces a registry file by rename, as editors do.
    pub fn register(&self, name: &str, text: &str) {
        let folder = self.path("registry");
        fs::write(folder.join(".new"), text).unwrap();
        fs::rename(folder.join(".new"), folder.join(name)).unwrap();
    }

    /// Removes a registry file.
    pub fn forget(&self, name: &str) {
        fs::remove_file(self.path("registry").join(name)).unwrap();
    }

    /// Starts a gateway with the listeners `east-west` for other clusters and `outbound` for local clients.
    #[must_use]
    #[track_caller]
    pub fn gateway(&self, leaf: &str) -> Gateway {
        self.setup(leaf).start()
    }

    /// The setup of such a gateway.
    #[must_use]
    pub fn setup(&self, leaf: &str) -> Setup {
        self.setup_on(leaf, self.ip)
    }

    /// The same with another east-west address.
    #[must_use]
    pub fn setup_on(&self, leaf: &str, ip: Option<IpAddr>) -> Setup {
        let east_west = ip.map_or_else(|| "ADDRESS".to_owned(), |ip| SocketAddr::new(ip, 15_443).to_string());
        let (name, agent) = (&self.name, self.agent_address());
        let setup = Setup::new("")
            .listeners(&format!("- {{ name: east-west, address: \"{east_west}\" }}\n- {{ name: outbound, address: '127.0.0.1:0', side: outbound }}"))
            .with(&format!("node: {{ id: {leaf}, cluster: {name}, network: {name}-net }}"))
            .with(&format!("trust: {}", self.trust(leaf)))
            .with(&format!("xds: {{ agents: ['{agent}'], state: {} }}", self.path(leaf).display()));
        match &self.namespace {
            Some(namespace) => setup.namespace(namespace),
            None => setup,
        }
    }

    /// The cluster's directory.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("agent of {}: {:#?}", self.name, self.log_lines());
        }
        self.stop();
    }
}

/// The address of a gateway's east-west listener.
#[must_use]
#[track_caller]
pub fn east_west(gateway: &Gateway) -> SocketAddr {
    gateway.at("listener east-west")
}

/// The address of a gateway's outbound listener.
#[must_use]
#[track_caller]
pub fn outbound(gateway: &Gateway) -> SocketAddr {
    gateway.at("listener outbound")
}

/// Waits until `find` finds something in an agent's status.
#[track_caller]
pub fn until_status<T>(cluster: &Cluster, what: &str, find: impl Fn(&Value) -> Option<T>) -> T {
    until_some(what, || find(&cluster.ask("/status")))
}
