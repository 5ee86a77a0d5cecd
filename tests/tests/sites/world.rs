//! The three sites: east with two gateways, west with the callers, and north; services that several of them offer
//! together.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use isthmus_tests::cluster::{Cluster, outbound};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::netns::Star;
use isthmus_tests::setup::Setup;
use isthmus_tests::wait::until;
use isthmus_tests::world::World;

use crate::backend::Backend;
use crate::steady::Steady;
use crate::tasks::Tasks;

pub(crate) const NAMES: [&str; 3] = ["east", "west", "north"];
pub(crate) const EAST: usize = 0;
pub(crate) const WEST: usize = 1;
pub(crate) const NORTH: usize = 2;

/// Gateways' patience with an endpoint that does not accept, and with one that does not answer the ClientHello.
const TIMEOUTS: &str = "timeouts: { connect: 1s, first_byte: 3s }";
/// The address of east's second gateway.
pub(crate) const SECOND: [u8; 4] = [10, 78, 1, 2];
/// The port of the first service's endpoints.
const FIRST_PORT: u16 = 20_000;

/// The sites, until dropped.
#[derive(Debug)]
pub(crate) struct Sites {
    /// The running gateways, by site and name.
    pub(crate) gateways: BTreeMap<(usize, &'static str), Gateway>,
    backends: BTreeMap<(String, usize), Backend>,
    ports: u16,
    tasks: [Tasks; 3],
    pub(crate) clusters: [Cluster; 3],
    pub(crate) net: Star,
}

/// The host of a service.
pub(crate) fn host(service: &str) -> String {
    format!("{service}.bookinfo.svc.cluster.local")
}

/// The east-west address of a site's first gateway.
pub(crate) fn door(site: usize) -> SocketAddr {
    SocketAddr::from((Star::address(site + 1), 15_443))
}

impl Sites {
    /// Starts the sites, or says why they cannot be started. `sections` are more of west's agent.yaml.
    pub(crate) fn start(sections: &[(&str, &str)]) -> Result<Sites, String> {
        let mut sites = Sites::prepare()?;
        for (key, value) in sections {
            sites.clusters[WEST].set(key, value);
        }
        for site in [EAST, WEST, NORTH] {
            sites.clusters[site].start();
            sites.start_gateway(site, "gw-1");
        }
        sites.start_gateway(EAST, "gw-2");
        Ok(sites)
    }

    /// The same with nothing that runs yet.
    pub(crate) fn prepare() -> Result<Sites, String> {
        let nft = Command::new("nft").arg("--version").stdout(Stdio::null()).status();
        nft.map_err(|error| format!("nft: {error}"))?;
        let World { mut clusters, net } = World::peers(NAMES)?;
        net.adopt(EAST + 1, SECOND.into())?;
        for (site, cluster) in clusters.iter_mut().enumerate() {
            let others = NAMES.iter().enumerate().filter(|(other, _)| *other != site);
            let consent = others
                .map(|(_, name)| format!("{{ cluster: {name}, hosts: ['*.bookinfo.svc.cluster.local'] }}"));
            cluster.set("exports", "[{ workspace: [bookinfo] }]");
            cluster.set("imports", &format!("[{}]", consent.collect::<Vec<_>>().join(", ")));
        }
        let second = std::net::Ipv4Addr::from(SECOND);
        clusters[EAST].set(
            "gateways",
            &format!("[{{ name: gw-1, address: {} }}, {{ name: gw-2, address: {second} }}]", door(EAST).ip()),
        );
        let tasks = [EAST, WEST, NORTH].map(|site| Tasks::inside(net.leg(site + 1)));
        let (gateways, backends) = (BTreeMap::new(), BTreeMap::new());
        Ok(Sites { gateways, backends, ports: FIRST_PORT, tasks, clusters, net })
    }

    pub(crate) fn start_gateway(&mut self, site: usize, name: &'static str) {
        let cluster = &self.clusters[site];
        let setup = match name {
            "gw-2" => cluster.setup_on(name, Some(std::net::IpAddr::from(SECOND))),
            _ => cluster.setup(name),
        };
        self.put_gateway(site, name, &setup);
    }

    /// Starts a gateway of this setup in place of the one before.
    pub(crate) fn put_gateway(&mut self, site: usize, name: &'static str, setup: &Setup) {
        let gateway = setup.clone().workers(1).start();
        self.gateways.insert((site, name), gateway);
    }

    /// The gateway that west's callers use.
    pub(crate) fn gateway_of_callers(&self) -> &Gateway {
        &self.gateways[&(WEST, "gw-1")]
    }

    /// Deploys a service at these sites, which offer it together.
    pub(crate) fn deploy(&mut self, service: &str, sites: &[usize]) {
        let port = self.ports;
        self.ports += 1;
        for site in sites {
            let address = SocketAddr::from((Star::address(site + 1), port));
            let cluster = &self.clusters[*site];
            let backend = Backend::start(cluster, self.tasks[*site].handle(), address);
            let text = format!(
                "services: [{{ host: {}, merge: true, {TIMEOUTS}, endpoints: [{{ address: '{address}' }}] }}]",
                host(service)
            );
            cluster.register(&format!("{service}.yaml"), &text);
            self.backends.insert((service.to_owned(), *site), backend);
        }
    }

    /// The endpoint of a service at a site.
    pub(crate) fn backend(&mut self, service: &str, site: usize) -> &mut Backend {
        self.backends.get_mut(&(service.to_owned(), site)).unwrap()
    }

    /// All endpoints of a site.
    pub(crate) fn backends_of(&mut self, site: usize) -> impl Iterator<Item = &mut Backend> {
        self.backends.iter_mut().filter(move |((_, own), _)| *own == site).map(|(_, backend)| backend)
    }

    /// Waits until each of these sites' gateways knows its own endpoint of a service, and west's the way to all sites.
    pub(crate) fn until_known(&self, service: &str, sites: &[usize]) {
        let own = |site: usize| self.backends[&(service.to_owned(), site)].address();
        let knows = |gateway: &Gateway, address: SocketAddr| {
            until(&format!("{service} at {address} is known"), || ways(gateway, service).contains(&address));
        };
        for ((site, _), gateway) in self.gateways.iter().filter(|((site, _), _)| sites.contains(site)) {
            knows(gateway, own(*site));
        }
        for site in sites.iter().filter(|site| **site != WEST) {
            knows(self.gateway_of_callers(), door(*site));
        }
    }

    /// The addresses of a service's endpoints, as west's gateway shows them.
    pub(crate) fn ways(&self, service: &str) -> Vec<SocketAddr> {
        ways(self.gateway_of_callers(), service)
    }

    /// Calls a service steadily from west.
    pub(crate) fn call(&self, service: &str, pace: Duration) -> Steady {
        let gateway = outbound(self.gateway_of_callers());
        Steady::start(self.tasks[WEST].handle(), &self.clusters[WEST], gateway, &host(service), pace)
    }
}

/// The addresses of a service's endpoints, as a gateway shows them.
fn ways(gateway: &Gateway, service: &str) -> Vec<SocketAddr> {
    let page = gateway.admin("GET", &format!("/services?name={}", host(service))).json();
    let services = page["items"].as_array().unwrap().iter();
    let endpoints = services.flat_map(|service| service["endpoints"].as_array().unwrap());
    endpoints.map(|endpoint| endpoint["address"].as_str().unwrap().parse().unwrap()).collect()
}
