//! Sets up one cluster of the demo: a directory with its authority, its registry and the files of its agent and its
//! gateway, which run on free ports. Both clusters are set up alike; the caller gives exports and imports.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isthmus_certs::{SpiffeId, TrustFiles};
use serde_json::json;

use super::Broken;
use super::agent::{Agent, Reserved};
use super::domain::Domain;
use super::service::Service;
use isthmus_core::config;
use isthmus_core::control::Control;
use isthmus_core::gateway::Gateway;

/// A running cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) domain: Domain,
    pub(super) folder: PathBuf,
    pub(super) agent: Agent,
    pub(super) gateway: Running,
    _ports: [Reserved; 3],
}

/// A running gateway; it stops when this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) control: Arc<Control>,
    addresses: Vec<(String, SocketAddr)>,
    gateway: Option<Gateway>,
}

impl Cluster {
    /// Starts an agent and a gateway for a domain. `consent` holds the agent's `exports:` and `imports:`, `listeners` more
    /// listeners of the gateway.
    pub(super) async fn start(
        mut domain: Domain,
        folder: &Path,
        consent: &str,
        listeners: &str,
    ) -> Result<Cluster, Broken> {
        let name = domain.name.as_str().split('.').next().unwrap_or_default().to_owned();
        let identity = SpiffeId::agent(&domain.name, &name, "a").map_err(Broken::cannot("name an agent"))?;
        let agent = domain.issue("agent", identity, Vec::new())?;
        let identity =
            SpiffeId::gateway(&domain.name, &name, "gw").map_err(Broken::cannot("name a gateway"))?;
        let gateway = domain.issue("gw", identity, Vec::new())?;
        fs::create_dir_all(folder.join("registry")).map_err(Broken::cannot("make a registry"))?;
        let ports = [Reserved::new()?, Reserved::new()?, Reserved::new()?];
        let [xds, join, admin] = ports.each_ref().map(|port| port.address);

        let file = folder.join("gateway.yaml");
        let own = format!(
            "node: {{ id: gw, cluster: {name}, network: {name}-net }}\ntrust: {}\n\
             xds: {{ agents: ['{xds}'], state: {} }}\n",
            trust(&gateway),
            json!(folder.join("state/gw"))
        );
        write_file(&file, &(LISTENERS.to_owned() + listeners + GATEWAY_YAML + &own))?;
        let gateway = Running::start(&file)?;
        let port = gateway.address_of("listener east-west")?.port();

        let file = folder.join("agent.yaml");
        let own = format!(
            "# Written by `isthmus-gateway demo`; read at start.\n\
             cluster: {name}\nnetwork: {name}-net\ntrust: {}\nregistry: {{ files: {} }}\nstate: {}\n\
             gateways: [{{ name: gw, address: 127.0.0.1, port: {port} }}]\n{consent}\
             xds: {{ address: '{xds}', advertise: '{xds}' }}\n\
             join: {{ address: '{join}', advertise: '{join}' }}\nadmin: {{ address: '{admin}' }}\n",
            trust(&agent),
            json!(folder.join("registry")),
            json!(folder.join("state/agent")),
        );
        write_file(&file, &own)?;
        let agent = Agent::start(&file).await?;
        Ok(Cluster { domain, folder: folder.to_owned(), agent, gateway, _ports: ports })
    }

    /// Returns the registry's directory.
    pub(super) fn registry(&self) -> PathBuf {
        self.folder.join("registry")
    }

    /// Writes a file of the registry.
    pub(super) fn register(&self, file: &str, services: &[&Service]) -> Result<(), Broken> {
        let mut yaml = "services:\n".to_owned();
        for service in services {
            let Service { id, merge, endpoints, .. } = service;
            let (host, alias, port) = (service.host(), service.alias(), service.port());
            // Writing to a String cannot fail.
            let _ok = write!(
                yaml,
                "- host: {host}\n  port: {port}\n  aliases: [{alias}]\n  identities: ['{id}']\n  merge: {merge}\n  endpoints:\n"
            );
            for endpoint in endpoints {
                let (address, instance) = (endpoint.address, &endpoint.instance);
                let _ok = writeln!(yaml, "  - {{ address: '{address}', instance: {instance} }}");
            }
        }
        write_file(&self.registry().join(file), &yaml)
    }

    /// Stops the agent and the gateway; true if both stopped cleanly.
    pub(super) async fn end(&mut self) -> bool {
        let agent = self.agent.stop().await.is_ok();
        self.gateway.end() && agent
    }
}

impl Running {
    fn start(file: &Path) -> Result<Running, Broken> {
        let settings = config::load(file).map_err(Broken::cannot("load gateway.yaml"))?;
        let gateway =
            Gateway::start(settings, Some(file.to_owned())).map_err(Broken::cannot("start a gateway"))?;
        let addresses = gateway.bound().iter().map(|bound| (bound.what.clone(), bound.address)).collect();
        Ok(Running { control: Arc::clone(gateway.control()), addresses, gateway: Some(gateway) })
    }

    /// Returns the address bound for `what`.
    pub(super) fn address_of(&self, what: &str) -> Result<SocketAddr, Broken> {
        let found = self.addresses.iter().find(|(name, _)| name == what).map(|(_, address)| *address);
        found.ok_or_else(|| Broken::cannot("find an address of a gateway")(what.to_owned()))
    }

    /// Waits until it is connected to its agent and has at least this many slices.
    pub(super) async fn follows(&self, slices: usize) -> Result<(), Broken> {
        let mut following = self.control.following.subscribe();
        let there = following.wait_for(|now| now.connected && now.slices >= slices).await;
        there.map(drop).map_err(Broken::cannot("wait for a gateway"))
    }

    /// Number of a host's endpoints in its tables.
    pub(super) fn endpoints(&self, host: &str) -> usize {
        let tables = self.control.process.tables.load();
        let services = tables.services().filter(|service| service.host.to_string() == host);
        services.map(|service| service.endpoints.len()).sum()
    }

    fn end(&mut self) -> bool {
        self.gateway.take().is_none_or(|gateway| {
            gateway.end();
            gateway.wait().is_ok()
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

const LISTENERS: &str = "\
# Written by `isthmus-gateway demo`. Edit it while the demo runs: a good edit goes live at once.
workers: 2
listeners:
- { name: east-west, address: 127.0.0.1:0 }                   # for other clusters
- { name: outbound, address: 127.0.0.1:0, side: outbound }    # for the cluster's own clients
";

/// Ports are 0, and the connection limit fits the smallest usual descriptor limit.
const GATEWAY_YAML: &str = "\
admin: { address: 127.0.0.1:0 }
metrics: { address: 127.0.0.1:0 }
health: { address: 127.0.0.1:0 }
limits: { connections: 200 }
access_log: { enabled: false }
";

fn trust(files: &TrustFiles) -> String {
    let TrustFiles { certificate, key, bundles, .. } = files;
    let [certificate, key, bundles] = [certificate, key, bundles].map(|path| json!(path));
    format!("{{ certificate: {certificate}, key: {key}, bundles: {bundles} }}")
}

/// Writes a temporary file and renames it, so that a watcher never reads half of it.
fn write_file(file: &Path, text: &str) -> Result<(), Broken> {
    let beside = file.with_extension("new");
    fs::write(&beside, text).and_then(|()| fs::rename(&beside, file)).map_err(Broken::cannot("write a file"))
}
