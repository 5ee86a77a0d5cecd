//! Sets up and stops the demo's environment: two clusters that are not joined yet, services in east, clients in
//! west.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use isthmus_certs::{Peer, SpiffeId, TrustFiles};
use tempfile::TempDir;

use super::Broken;
use super::call::Client;
use super::cluster::Cluster;
use super::domain::{Domain, Member, stranger};
use super::plain;
use super::screen::Screen;
use super::service::Service;
use super::until;

/// The namespace that both clusters share.
const SHARED: &str = "bookinfo";

/// Number of hosts in east's registry at the start.
const HOSTS: usize = 4;

/// East exports the shared workspace, and one instance by name.
const EAST: &str = "\
exports: [{ workspace: ['*/bookinfo'], instances: [productpage-1] }]
imports: [{ cluster: west, hosts: ['*.bookinfo'], gatewayCIDRs: [127.0.0.0/8] }]
";
/// West the same. Both import the other's part with its short names, and allow gateways on loopback, which the default
/// does not.
const WEST: &str = "\
exports: [{ workspace: ['*/bookinfo'] }]
imports: [{ cluster: east, hosts: ['*.bookinfo'], gatewayCIDRs: [127.0.0.0/8] }]
";

/// Everything that lives as long as the demo.
pub(super) struct World {
    /// West's client at west's gateway, with a certificate.
    pub(super) client: Client,
    /// The same client, for a service of both clusters: it accepts every domain with a bundle.
    pub(super) everyone: Client,
    /// The same client without a certificate.
    pub(super) stranger: Client,
    pub(super) client_id: SpiffeId,
    /// Files of the client's certificate, for curl and openssl.
    pub(super) client_files: TrustFiles,
    pub(super) productpage: Service,
    pub(super) details: Service,
    /// Runs, but is not registered at first.
    pub(super) reviews: Service,
    /// Accepts clients without a certificate.
    pub(super) ratings: Service,
    /// In a namespace that is not shared.
    pub(super) ledger: Service,
    /// Run, but are not registered at first; one service, as both clusters say.
    pub(super) catalog_east: Service,
    pub(super) catalog_west: Service,
    pub(super) east: Cluster,
    pub(super) west: Cluster,
    /// The last field: removed after everything else has stopped.
    directory: TempDir,
}

impl World {
    pub(super) async fn start(screen: &mut Screen) -> Result<World, Broken> {
        screen.step("Two clusters, each with an authority, a registry, an agent and a gateway of its own");
        let directory = tempfile::Builder::new()
            .prefix("isthmus-demo-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .map_err(Broken::cannot("make a temporary directory"))?;
        let folder = |cluster: &str| directory.path().join(cluster);
        let mut east = domain("east", &folder("east"))?;
        let mut west = domain("west", &folder("west"))?;
        let client_id = west.workload("shop", "web")?;
        let client_files = west.issue("web", client_id.clone(), Vec::new())?;
        let callers = west.name.clone();
        let mutual = |member: Member| member.server(&callers);
        let productpage = Service::start("productpage", SHARED, 2, &mut east, mutual).await?;
        let details = Service::start("details", SHARED, 1, &mut east, mutual).await?;
        let reviews = Service::start("reviews", SHARED, 1, &mut east, mutual).await?;
        let ratings = Service::start("ratings", SHARED, 1, &mut east, Member::open_server).await?;
        let ledger = Service::start("ledger", "payroll", 1, &mut east, mutual).await?;
        let catalog_east = Service::start("catalog", SHARED, 1, &mut east, mutual).await?.merged();
        let catalog_west = Service::start("catalog", SHARED, 1, &mut west, mutual).await?.merged();
        let strange = stranger(east.root()?)?;
        let known = Member::load(client_files.clone())?.client(Peer::Domain(east.name.clone()))?;
        let trusting = Member::load(client_files.clone())?.client(Peer::Trusted)?;

        let plain = plain::listener(&productpage, &client_id, &client_files);
        let east = Cluster::start(east, &folder("east"), EAST, "").await?;
        let west = Cluster::start(west, &folder("west"), WEST, &plain).await?;
        east.register("bookinfo.yaml", &[&productpage, &details, &ratings])?;
        east.register("payroll.yaml", &[&ledger])?;
        let outbound = west.gateway.address_of("listener outbound")?;
        let world = World {
            client: Client::new(known, outbound),
            everyone: Client::new(trusting, outbound),
            stranger: Client::new(strange, outbound),
            client_id,
            client_files,
            productpage,
            details,
            reviews,
            ratings,
            ledger,
            catalog_east,
            catalog_west,
            east,
            west,
            directory,
        };
        world.is_ready().await?;
        world.show(screen)?;
        Ok(world)
    }

    /// Waits until both gateways follow their agents and east's agent has checked every endpoint.
    async fn is_ready(&self) -> Result<(), Broken> {
        self.east.gateway.follows(HOSTS).await?;
        self.west.gateway.follows(0).await?;
        let host = self.productpage.host();
        let both = async || {
            let told = self.east.agent.explain(host.clone()).await.ok()?;
            let ports = told.offer?.ports?;
            ports.first().filter(|port| port.exposed == 2).map(drop)
        };
        let seen = until(both).await;
        let seen = seen.and(until(async || self.held_back().await).await);
        seen.map(drop).ok_or_else(|| {
            Broken::cannot("wait for the agent of east")("it has not checked every endpoint".to_owned())
        })
    }

    /// Returns why east's agent does not export ratings, once it knows.
    pub(super) async fn held_back(&self) -> Option<String> {
        let status = self.east.agent.status().await.ok()?;
        let host = self.ratings.host();
        let why = status.exports.held_back.into_iter().find(|held| held.host == host)?.why;
        why.contains("without asking for a client certificate").then_some(why)
    }

    /// Returns the directory of all files.
    pub(super) fn folder(&self) -> &Path {
        self.directory.path()
    }

    fn show(&self, screen: &Screen) -> Result<(), Broken> {
        for cluster in [&self.east, &self.west] {
            let (name, agent) = (&cluster.domain.name, cluster.agent.settings.address);
            let gateway = cluster.gateway.address_of("listener east-west")?;
            screen.say(format_args!("   {name:<17}  agent {agent:<15}  gateway {gateway}"));
        }
        screen.say(format_args!(
            "   {:<17}  productpage (2 endpoints), details, reviews: each endpoint requires mTLS and has a key of its own",
            "in east"
        ));
        let outbound = self.west.gateway.address_of("listener outbound")?;
        screen.say(format_args!(
            "   {:<17}  a client, {}, that knows only west's gateway: {outbound}, outbound",
            "in west", self.client_id
        ));
        screen.dim("Services are files in the registry's directory. Gateways get names and addresses from their agents, and never a service's key.");
        Ok(())
    }

    /// Stops both clusters; true if both stopped cleanly.
    pub(super) async fn close(mut self) -> bool {
        let west = self.west.end().await;
        self.east.end().await && west
    }
}

fn domain(cluster: &str, folder: &Path) -> Result<Domain, Broken> {
    std::fs::create_dir_all(folder).map_err(Broken::cannot("make a directory"))?;
    Domain::new(&format!("{cluster}.demo.isthmus"), &folder.join("pki"))
}
