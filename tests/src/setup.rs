//! Builds a gateway's configuration file, user and limits. Ports are free ones, or those of an earlier
//! gateway.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::binary;
use crate::gateway::Gateway;

/// ID of the unprivileged user.
pub const NOBODY: u32 = 65532;

/// The setup of a gateway.
#[derive(Clone, Debug)]
pub struct Setup {
    workers: usize,
    listeners: String,
    services: String,
    more: String,
    ports: BTreeMap<String, SocketAddr>,
    /// Runs as the unprivileged user.
    pub(crate) nobody: bool,
    descriptors: Option<u64>,
    pub(crate) namespace: Option<String>,
}

/// A service in YAML. `keys` are more lines, such as `alpn: [h2]`.
#[must_use]
pub fn service(host: &str, keys: &[&str], endpoints: &[SocketAddr]) -> String {
    let endpoints: Vec<String> =
        endpoints.iter().map(|address| format!("{{address: \"{address}\"}}")).collect();
    service_of(host, keys, &endpoints)
}

/// The same with endpoints in YAML.
#[must_use]
pub fn service_of(host: &str, keys: &[&str], endpoints: &[String]) -> String {
    let keys: String = keys.iter().map(|key| format!("  {key}\n")).collect();
    format!("- host: \"{host}\"\n{keys}  endpoints: [{}]\n", endpoints.join(", "))
}

impl Setup {
    /// A gateway with two workers, one listener on loopback, and these services.
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

    /// Adds lines to the configuration file.
    #[must_use]
    pub fn with(mut self, yaml: &str) -> Setup {
        writeln!(self.more, "{yaml}").unwrap();
        self
    }

    /// Replaces the services, in YAML.
    #[must_use]
    pub fn services(mut self, yaml: impl Into<String>) -> Setup {
        self.services = yaml.into();
        self
    }

    /// Replaces the listeners, in YAML; `ADDRESS` stands for a free loopback port that [`Setup::ports_of`]
    /// can reuse.
    #[must_use]
    pub fn listeners(mut self, yaml: &str) -> Setup {
        self.listeners = format!("{yaml}\n");
        self
    }

    /// Sets the number of workers.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Setup {
        self.workers = workers;
        self
    }

    /// Runs the gateway as the unprivileged user; requires root.
    #[must_use]
    pub fn nobody(mut self) -> Setup {
        self.nobody = true;
        self
    }

    /// Limits the open descriptors.
    #[must_use]
    pub fn descriptors(mut self, most: u64) -> Setup {
        self.descriptors = Some(most);
        self
    }

    /// Runs the gateway in a network namespace.
    #[must_use]
    pub fn namespace(mut self, name: &str) -> Setup {
        self.namespace = Some(name.to_owned());
        self
    }

    /// Uses the ports of another gateway.
    #[must_use]
    pub fn ports_of(mut self, gateway: &Gateway) -> Setup {
        self.ports.clone_from(gateway.addresses());
        self
    }

    /// Starts the gateway and waits until it is ready.
    #[must_use]
    #[track_caller]
    pub fn start(&self) -> Gateway {
        Gateway::start(self)
    }

    /// The configuration file.
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

    /// The command to run the gateway; wrappers exec it, so that the process ID is the gateway's.
    pub(crate) fn command(&self, folder: &Path) -> Command {
        let mut words: Vec<String> = Vec::new();
        if let Some(namespace) = &self.namespace {
            words.push(format!("nsenter --net=/run/netns/{namespace}"));
        }
        if let Some(most) = self.descriptors {
            words.push(format!("prlimit --nofile={most}:{most}"));
        }
        // The gateway ends with a killed test.
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
