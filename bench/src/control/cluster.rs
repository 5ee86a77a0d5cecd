//! Runs a cluster under measurement: an authority, a registry, the real agent and its gateways.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use isthmus_certs::home::{Home, LeafRecord, Plan};
use isthmus_certs::{KeyKind, Leaf, SpiffeId, TrustDomain, TrustFiles};
use tempfile::TempDir;

use crate::program::{Program, START};
use crate::stop::Stop;

/// The binaries under measurement.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    pub(super) agent: PathBuf,
    pub(super) gateway: PathBuf,
}

/// Time limit for an agent to read 100 000 services, which takes some seconds.
const READ: Duration = Duration::from_mins(2);
/// Lifetime of certificates; longer than any run.
const LIFETIME: Duration = Duration::from_hours(24);
const PATIENCE: Duration = Duration::from_secs(5);
/// Host pattern of all services of a registry; exported.
pub(super) const HOSTS: &str = "*.bench.svc.cluster.local";

/// One cluster.
pub(super) struct Cluster {
    name: String,
    folder: TempDir,
    home: Home,
    /// The agent's xDS address.
    pub(super) xds: SocketAddr,
}

impl Cluster {
    /// Creates the directories and the agent's identity; starts nothing.
    pub(super) fn new(name: &str) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("isthmus-bench-").tempdir()?;
        let domain = TrustDomain::new(&format!("{name}.example"))?;
        let home = Home::create(&folder.path().join("pki"), &Plan::new(domain))?;
        fs::create_dir(folder.path().join("registry"))?;
        let mut cluster = Self { name: name.to_owned(), folder, home, xds: free_address()? };
        let agent = SpiffeId::agent(cluster.domain(), name, "a")?;
        cluster.issue("agent", agent)?;
        Ok(cluster)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn domain(&self) -> &TrustDomain {
        &self.home.state().trust_domain
    }

    pub(super) fn registry(&self) -> PathBuf {
        self.folder.path().join("registry")
    }

    /// Issues the identity of a gateway.
    pub(super) fn add_gateway(&mut self, name: &str) -> anyhow::Result<()> {
        let id = SpiffeId::gateway(self.domain(), &self.name, name)?;
        self.issue(name, id)
    }

    fn issue(&mut self, name: &str, id: SpiffeId) -> anyhow::Result<()> {
        let leaf = Leaf { id, dns: Vec::new(), ips: Vec::new(), lifetime: LIFETIME };
        self.home.keep(name, LeafRecord { leaf, key: KeyKind::P256, cluster: None, folder: None })?;
        Ok(())
    }

    /// The certificate, key and bundle files of an identity.
    pub(super) fn trust(&self, leaf: &str) -> TrustFiles {
        let files = self.home.folder().join("leaves").join(leaf);
        TrustFiles {
            certificate: files.join("tls.crt"),
            key: files.join("tls.key"),
            bundles: self.home.bundle_folder(),
            ..TrustFiles::default()
        }
    }

    fn trust_text(&self, leaf: &str) -> String {
        let (pki, bundles) = (self.home.folder().display(), self.home.bundle_folder());
        let bundles = bundles.display();
        format!(
            "{{ certificate: {pki}/leaves/{leaf}/tls.crt, key: {pki}/leaves/{leaf}/tls.key, bundles: {bundles} }}"
        )
    }

    /// Trusts another cluster's authority.
    pub(super) fn trust_cluster(&mut self, other: &Self) -> anyhow::Result<()> {
        Ok(self.home.federate(other.domain(), &other.home.bundle(other.domain())?)?)
    }

    /// This cluster as an item of `peers:`.
    pub(super) fn as_peer(&self) -> String {
        let (name, address) = (&self.name, self.xds);
        format!(
            "{{ cluster: {name}, address: '{address}', trustDomain: {name}.example, network: {name}-net }}"
        )
    }

    /// Starts the agent; `sections` are the cluster-specific parts of its configuration.
    pub(super) fn start_agent(
        &self,
        programs: &Programs,
        sections: &str,
        stop: &Stop,
    ) -> io::Result<Program> {
        let (name, trust, xds, registry) = (&self.name, self.trust_text("agent"), self.xds, self.registry());
        let text = format!(
            "cluster: {name}
network: {name}-net
trust: {trust}
registry: {{ files: {} }}
xds: {{ address: '{xds}' }}
admin: {{ address: '127.0.0.1:0' }}
{sections}",
            registry.display()
        );
        let mut agent = Program::start(|folder| run(&programs.agent, folder, &text), Command::spawn)?;
        agent.wait_until("listen", START, stop, || TcpStream::connect(xds).map(drop))?;
        Ok(agent)
    }

    /// Starts a gateway that follows the agent at this address.
    pub(super) fn start_gateway(
        &self,
        programs: &Programs,
        (name, east_west): (&str, SocketAddr),
        agent: SocketAddr,
        stop: &Stop,
    ) -> io::Result<Gateway> {
        let (cluster, trust) = (&self.name, self.trust_text(name));
        let text = format!(
            "node: {{ id: {name}, cluster: {cluster}, network: {cluster}-net }}
listeners:
- {{ name: east-west, address: '{east_west}' }}
- {{ name: outbound, address: '127.0.0.1:0', side: outbound }}
admin: {{ address: '127.0.0.1:0' }}
metrics: {{ address: '127.0.0.1:0' }}
health: {{ address: '127.0.0.1:0' }}
access_log: {{ enabled: false }}
trust: {trust}
xds: {{ agents: ['{agent}'] }}
"
        );
        let mut program = Program::start(|folder| run(&programs.gateway, folder, &text), Command::spawn)?;
        let output = program.directory().join("output");
        let mut addresses = BTreeMap::new();
        program.wait_until("announce its addresses", START, stop, || {
            addresses = announced(&fs::read_to_string(&output)?);
            if addresses.contains_key("metrics") && addresses.contains_key("listener=outbound") {
                Ok(())
            } else {
                Err(io::Error::other("not announced"))
            }
        })?;
        Ok(Gateway { program, addresses })
    }
}

/// Waits until an agent has read its registry.
pub(super) fn until_read(agent: &mut Program, stop: &Stop) -> io::Result<()> {
    let output = agent.directory().join("output");
    agent.wait_until("read its registry", READ, stop, || {
        if fs::read_to_string(&output)?.contains("own slices changed") {
            Ok(())
        } else {
            Err(io::Error::other("still reading"))
        }
    })
}

/// The admin address of a running agent.
pub(super) fn admin_of(agent: &Program) -> anyhow::Result<SocketAddr> {
    let output = fs::read_to_string(agent.directory().join("output"))?;
    announced(&output).get("admin").copied().context("the agent announced no admin address")
}

/// A running gateway.
pub(super) struct Gateway {
    pub(super) program: Program,
    addresses: BTreeMap<String, SocketAddr>,
}

impl Gateway {
    /// Address of the outbound listener.
    pub(super) fn outbound(&self) -> anyhow::Result<SocketAddr> {
        self.address("listener=outbound")
    }

    /// The address of a page.
    pub(super) fn address(&self, page: &str) -> anyhow::Result<SocketAddr> {
        self.addresses.get(page).copied().with_context(|| format!("the gateway announced no {page} address"))
    }

    /// Number of services in the gateway's tables.
    pub(super) fn services(&self) -> io::Result<u32> {
        let address = self
            .addresses
            .get("metrics")
            .ok_or_else(|| io::Error::other("the gateway announced no metrics address"))?;
        let text = get(*address, "/metrics")?;
        let value = text.lines().find_map(|line| line.strip_prefix("isthmus_services "));
        value
            .and_then(|value| value.trim().parse().ok())
            .ok_or_else(|| io::Error::other("the gateway has no metric isthmus_services"))
    }

    /// Waits until the tables have exactly this many services.
    pub(super) fn until_services(&self, services: u32, pause: Duration, stop: &Stop) -> io::Result<()> {
        let deadline = Instant::now() + READ;
        loop {
            // A gateway that is busy with its tables answers late.
            let found = self.services();
            if found.as_ref().is_ok_and(|found| *found == services) {
                return Ok(());
            }
            stop.check()?;
            if Instant::now() > deadline {
                let words = self.program.last_words();
                return Err(io::Error::other(format!(
                    "the gateway has {found:?} instead of {services} services after {READ:?}; last output: {words}"
                )));
            }
            thread::sleep(pause);
        }
    }
}

/// The whole answer to a GET.
pub(super) fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn announced(output: &str) -> BTreeMap<String, SocketAddr> {
    let lines = output.lines().filter_map(|line| line.strip_prefix("listening ")?.rsplit_once(" address="));
    lines.filter_map(|(name, address)| Some((name.to_owned(), address.parse().ok()?))).collect()
}

fn run(program: &Path, folder: &Path, text: &str) -> io::Result<Command> {
    let file = folder.join("config.yaml");
    fs::write(&file, text)?;
    let mut command = Command::new(program);
    command.args(["run", "--config"]).arg(file);
    Ok(command)
}

/// A free port of a separate loopback address, so that connections from 127.0.0.1 cannot take it meanwhile.
pub(super) fn free_address() -> io::Result<SocketAddr> {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let first = Ipv4Addr::new(127, 77, 0, 1).to_bits();
    let address = Ipv4Addr::from_bits(first + GIVEN.fetch_add(1, Relaxed) % 0xffff);
    TcpListener::bind((address, 0))?.local_addr()
}
