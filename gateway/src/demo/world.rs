//! What the demo runs on: three services, one gateway that knows them from a file only, and two clients.
//! Making it and ending it; what happens in it is told elsewhere.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isthmus_certs::{IdentityFiles, SpiffeId};
use tempfile::TempDir;

use super::Broken;
use super::call::Client;
use super::screen::Screen;
use super::service::Endpoint;
use super::trust::Trust;
use crate::config;
use crate::control::Control;
use crate::gateway::Gateway;
use crate::worker::Bound;

const NAMESPACE: &str = "bookinfo";
const PORT: u16 = 9080;

/// Everything that lives while the demo does.
pub(super) struct World {
    /// Has a certificate.
    pub(super) client: Client,
    /// Has none.
    pub(super) stranger: Client,
    pub(super) client_id: SpiffeId,
    pub(super) files: Files,
    pub(super) productpage: Service,
    pub(super) details: Service,
    /// Runs, but is not exported at first.
    pub(super) reviews: Service,
    pub(super) control: Arc<Control>,
    pub(super) bound: Vec<Bound>,
    gateway: Option<Gateway>,
    /// Last: removed when nobody needs it any more.
    _directory: TempDir,
}

/// What lies in the temporary directory, for the gateway, and for curl and openssl.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) root: PathBuf,
    pub(super) client: IdentityFiles,
    pub(super) gateway: PathBuf,
}

/// A service with its endpoints.
#[derive(Debug)]
pub(super) struct Service {
    name: &'static str,
    pub(super) id: SpiffeId,
    pub(super) endpoints: Vec<Endpoint>,
}

impl World {
    pub(super) async fn start(screen: &mut Screen) -> Result<World, Broken> {
        screen.step("An identity for everyone but the gateway");
        let trust = Trust::new()?;
        let web = trust.issue("shop", "web", &[])?;
        let directory = tempfile::Builder::new()
            .prefix("isthmus-demo-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .map_err(Broken::cannot("make a temporary directory"))?;
        let files = Files {
            root: directory.path().join("ca.crt"),
            client: web.write_to(directory.path(), "web").map_err(Broken::cannot("write an identity"))?,
            gateway: directory.path().join("gateway.yaml"),
        };
        fs::write(&files.root, trust.root_pem()).map_err(Broken::cannot("write the root certificate"))?;
        let productpage = Service::start("productpage", 2, &trust).await?;
        let details = Service::start("details", 1, &trust).await?;
        let reviews = Service::start("reviews", 1, &trust).await?;
        screen.say(format_args!("   {:<12} {}", "client", web.id()));
        for service in [&productpage, &details, &reviews] {
            screen.say(format_args!("   {:<12} {}  at {}", service.name, service.id, service.addresses()));
        }
        screen.dim("Each endpoint has its own key and demands a client certificate of this trust domain.");

        screen.step("A gateway in front of productpage and details");
        export(&files.gateway, &[&productpage, &details])?;
        let gateway = start_gateway(&files.gateway)?;
        for bound in gateway.bound() {
            screen.say(format_args!("   {:<19} {}", bound.what, bound.address));
        }
        screen
            .dim(format_args!("All it was given is {}: names, addresses, no key.", files.gateway.display()));
        let address = address_of(gateway.bound(), "listener east-west")?;
        Ok(World {
            client: Client::new(trust.client(&web)?, address),
            stranger: Client::new(trust.stranger()?, address),
            client_id: web.id().clone(),
            files,
            productpage,
            details,
            reviews,
            control: Arc::clone(gateway.control()),
            bound: gateway.bound().to_vec(),
            gateway: Some(gateway),
            _directory: directory,
        })
    }

    /// The address that the gateway bound for `what`.
    pub(super) fn address_of(&self, what: &str) -> Result<SocketAddr, Broken> {
        address_of(&self.bound, what)
    }

    /// Exports all three services, by a new file in the place of the old one, as an editor would.
    pub(super) fn export_reviews(&self) -> Result<(), Broken> {
        export(&self.files.gateway, &[&self.productpage, &self.details, &self.reviews])
    }

    /// Ends the gateway; true when all of it ended in order.
    pub(super) fn close(mut self) -> bool {
        self.end_gateway()
    }

    fn end_gateway(&mut self) -> bool {
        self.gateway.take().is_none_or(|gateway| {
            gateway.end();
            gateway.wait().is_ok()
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.end_gateway();
    }
}

impl Service {
    async fn start(name: &'static str, count: usize, trust: &Trust) -> Result<Service, Broken> {
        let id = trust.id(NAMESPACE, name)?;
        let mut service = Service { name, id, endpoints: Vec::new() };
        for index in 0..count {
            let names = [service.host(), service.alias(), service.host_of(index)];
            let identity = trust.issue(NAMESPACE, name, &names)?;
            let bundles = Arc::clone(&trust.bundles);
            service.endpoints.push(Endpoint::start(&service.instance(index), &identity, bundles).await?);
        }
        Ok(service)
    }

    pub(super) fn host(&self) -> String {
        format!("{}.{NAMESPACE}.svc.cluster.local", self.name)
    }

    pub(super) fn alias(&self) -> String {
        format!("{}.{NAMESPACE}", self.name)
    }

    pub(super) fn instance(&self, index: usize) -> String {
        format!("{}-{index}", self.name)
    }

    /// The name of one instance alone.
    pub(super) fn host_of(&self, index: usize) -> String {
        format!("{}.{}", self.instance(index), self.host())
    }

    /// Istio's name for it.
    pub(super) fn outbound(&self) -> String {
        format!("outbound_.{PORT}_._.{}", self.host())
    }

    /// Connections that reached its endpoints.
    pub(super) fn accepted(&self) -> u64 {
        self.endpoints.iter().map(Endpoint::accepted).sum()
    }

    fn addresses(&self) -> String {
        let addresses: Vec<_> = self.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
        addresses.join(" and ")
    }
}

/// Port 0 everywhere, and fewer connections than the smallest usual descriptor limit allows.
const GATEWAY_YAML: &str = "\
# Written by `isthmus-gateway demo`. Edit it while the demo runs: a good edit goes live at once.
node: { id: demo, cluster: demo }
workers: 2
listeners:
- { name: east-west, address: 127.0.0.1:0 }
admin: { address: 127.0.0.1:0 }
metrics: { address: 127.0.0.1:0 }
health: { address: 127.0.0.1:0 }
limits: { connections: 200 }
access_log: { enabled: false }
services:
";

/// Writes gateway.yaml beside its place and renames it there: whoever watches never sees half of it.
fn export(file: &Path, services: &[&Service]) -> Result<(), Broken> {
    let mut yaml = GATEWAY_YAML.to_owned();
    for service in services {
        let (host, alias) = (service.host(), service.alias());
        // Writing to a String cannot fail.
        let _ok = write!(yaml, "- host: {host}\n  port: {PORT}\n  aliases: [{alias}]\n  endpoints:\n");
        for Endpoint { address, instance, .. } in &service.endpoints {
            let _ok = writeln!(yaml, "  - {{ address: {address}, instance: {instance} }}");
        }
    }
    let beside = file.with_extension("new");
    fs::write(&beside, yaml)
        .and_then(|()| fs::rename(&beside, file))
        .map_err(Broken::cannot("write gateway.yaml"))
}

fn start_gateway(file: &Path) -> Result<Gateway, Broken> {
    let settings = config::load(file).map_err(Broken::cannot("load gateway.yaml"))?;
    Gateway::start(settings, Some(file.to_owned())).map_err(Broken::cannot("start the gateway"))
}

fn address_of(bound: &[Bound], what: &str) -> Result<SocketAddr, Broken> {
    let found = bound.iter().find(|bound| bound.what == what).map(|bound| bound.address);
    found.ok_or_else(|| Broken::cannot("find an address of the gateway")(what.to_owned()))
}
