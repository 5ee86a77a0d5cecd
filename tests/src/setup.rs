//! What a gateway is started with: its file, its user, its limits. Ports are free ones unless they are
//! those of a gateway that ran before.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::binary;
use crate::gateway::Gateway;

/// The user that has no privilege.
pub const NOBODY: u32 = 65532;

/// A gateway to be.
#[derive(Clone, Debug)]
pub struct Setup {
    workers: usize,
    listeners: String,
    services: String,
    more: String,
    ports: BTreeMap<String, SocketAddr>,
    /// Runs without privilege.
    pub(crate) nobody: bool,
    descriptors: Option<u64>,
    pub(crate) namespace: Option<String>,
}

/// A service as the file has it. `keys` are lines of YAML, such as `alpn: [h2]`.
#[must_use]
pub fn service(host: &str, keys: &[&str], endpoints: &[SocketAddr]) -> String {
    let endpoints: Vec<String> =
        endpoints.iter().map(|address| format!("{{address: \"{address}\"}}")).collect();
    service_of(host, keys, &endpoints)
}

/// The same, of endpoints that are written out.
#[must_use]
pub fn service_of(host: &str, keys: &[&str], endpoints: &[String]) -> String {
    let keys: String = keys.iter().map(|key| format!("  {key}\n")).collect();
    format!("- host: \"{host}\"\n{keys}  endpoints: [{}]\n", endpoints.join(", "))
}

impl Setup {
    /// Two workers, one listener on loopback, and these services.
    #[must_use]
    pub fn new(services: impl Into<String>) -> Setup {
        Setup {
            workers: 2,
            listeners: "- address: \"ADDRESS\"\n".to_owned(),
            services: services.into(),
            more: String::new(),
            ports: BTreeMap::new(),
            nobody: false,
            descriptors: None,
            namespace: None,
        }
    }

    /// More keys of the file, whole lines.
    #[must_use]
    pub fn with(mut self, yaml: &str) -> Setup {
        writeln!(self.more, "{yaml}").unwrap();
        self
    }

    /// Other listeners, as YAML; `ADDRESS` stands for a free port on loopback, if it is to be kept later.
    #[must_use]
    pub fn listeners(mut self, yaml: &str) -> Setup {
        self.listeners = format!("{yaml}\n");
        self
    }

    /// How many workers.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Setup {
        self.workers = workers;
        self
    }

    /// As a user without privilege; needs root.
    #[must_use]
    pub fn nobody(mut self) -> Setup {
        self.nobody = true;
        self
    }

    /// With so many descriptors at most.
    #[must_use]
    pub fn descriptors(mut self, most: u64) -> Setup {
        self.descriptors = Some(most);
        self
    }

    /// In a network namespace.
    #[must_use]
    pub fn namespace(mut self, name: &str) -> Setup {
        self.namespace = Some(name.to_owned());
        self
    }

    /// On the ports that another gateway has or had.
    #[must_use]
    pub fn ports_of(mut self, gateway: &Gateway) -> Setup {
        self.ports.clone_from(gateway.addresses());
        self
    }

    /// Starts it, and waits until it is ready.
    #[must_use]
    #[track_caller]
    pub fn start(&self) -> Gateway {
        Gateway::start(self)
    }

    /// The file.
    #[must_use]
    pub fn yaml(&self) -> String {
        let address =
            |name: &str| self.ports.get(name).map_or_else(|| "127.0.0.1:0".to_owned(), SocketAddr::to_string);
        let listeners = self.listeners.replace("ADDRESS", &address("listener east-west"));
        let mut text = format!("workers: {}\nlisteners:\n{listeners}", self.workers);
        for name in ["admin", "metrics", "health"] {
            if !self.more.lines().any(|line| line.starts_with(&format!("{name}:"))) {
                writeln!(text, "{name}: {{ address: \"{}\" }}", address(name)).unwrap();
            }
        }
        if !self.services.is_empty() {
            write!(text, "services:\n{}", self.services).unwrap();
        }
        text + &self.more
    }

    /// The command that runs a file; wrappers replace themselves by the gateway, so the pid is its own.
    pub(crate) fn command(&self, folder: &Path) -> Command {
        let mut words: Vec<String> = Vec::new();
        if let Some(namespace) = &self.namespace {
            words.push(format!("nsenter --net=/run/netns/{namespace}"));
        }
        if let Some(most) = self.descriptors {
            words.push(format!("prlimit --nofile={most}:{most}"));
        }
        // A test that is killed takes its gateway with it.
        words.push("setpriv --pdeathsig=KILL".to_owned());
        if self.nobody {
            let user = format!("--reuid={NOBODY} --regid={NOBODY} --clear-groups");
            words.push(format!("{user} --inh-caps=-all --bounding-set=-all --no-new-privs"));
        }
        let binary = if self.nobody { binary::copy_to(folder) } else { binary::gateway().to_owned() };
        let mut command = Command::new("env");
        command.args(words.join(" ").split(' ')).arg(binary);
        command
    }
}
