//! Turns slices into the gateway's services: own cluster with its endpoints, other clusters through their gateways,
//! merged where several clusters offer the same host. A pure function of the slices.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use isthmus_certs::TrustDomain;
use isthmus_health::matrix::Distances;
use isthmus_model::services::ServiceTls;
use isthmus_model::slice::{self, Cluster, Health, Offer, Port, Slice, Staleness, Tls};
use isthmus_model::traffic::Traffic;
use isthmus_model::{HostName, HostPattern, Labels};

use super::access;
use crate::config::settings::{Endpoint, Named, RemoteGateway, Scope, Service, Target, TlsMode};
use crate::priorities::{Position, compact};

/// The gateway's own position, from which slices are seen.
#[derive(Clone, Debug)]
pub(super) struct Here {
    /// The own cluster, and the locality in it.
    pub(super) position: Position,
    /// Name of this gateway in its cluster.
    pub(super) gateway: String,
    /// Its trust domain: other clusters' rules were sent for callers of it.
    pub(super) domain: TrustDomain,
    /// Addresses that failed their probes while the agent is unreachable.
    pub(super) down: HashSet<Target>,
    /// The distances of other clusters' gateways.
    pub(super) distances: Distances,
}

impl Here {
    /// Returns one service for each host and port: with the own cluster's endpoints that speak TLS themselves or whose
    /// TLS ends here, and those of other clusters. The result does not depend on the order of the slices.
    pub(super) fn services<'a>(&self, slices: impl Iterator<Item = &'a Slice>) -> Vec<Service> {
        let mut slices: Vec<_> = slices.collect();
        let rank = |slice: &Slice| (!self.is_own(&slice.key.cluster), slice.key.cluster.clone());
        slices.sort_by(|a, b| (&a.key.host, rank(a)).cmp(&(&b.key.host, rank(b))));
        let mut services: Vec<Service> = Vec::with_capacity(slices.len());
        for alike in slices.chunk_by(|one, other| one.key.host == other.key.host) {
            let mut ports: BTreeMap<u16, Merged<'_>> = BTreeMap::new();
            let names = Unique::among(alike, self);
            for slice in alike {
                let Some(offer) = &slice.offer else { continue };
                for port in &offer.ports {
                    // The own cluster comes first.
                    let merged = ports.entry(port.number).or_insert_with(|| Merged {
                        service: service(&slice.key.host, offer, port, self.is_own(&slice.key.cluster)),
                        owners: Vec::new(),
                    });
                    self.add(&mut merged.service, slice, offer, port, &names);
                    merged.owners.resize(merged.service.endpoints.len(), &slice.key.cluster);
                }
            }
            services.extend(ports.into_values().map(|merged| merged.placed(self)));
        }
        services
    }

    pub(super) fn is_own(&self, cluster: &Cluster) -> bool {
        cluster.as_str() == self.position.cluster
    }

    fn add(&self, service: &mut Service, slice: &Slice, offer: &Offer, port: &Port, names: &Unique<'_>) {
        let opens = offer.exposed_on.is_empty() || offer.exposed_on.contains(&self.gateway);
        let is_own = self.is_own(&slice.key.cluster);
        service.traffic = service.traffic.take().or_else(|| port.traffic.clone());
        service.exposed |= is_own && port.exported && opens;
        // Behind a door of this gateway runs plaintext, which never crosses clusters.
        if service.tls_mode() == TlsMode::Terminate && !is_own {
            return;
        }
        let access = access::of_remote(port, &self.domain).filter(|_| !is_own);
        let guarded = |one| Endpoint { access: access.clone(), ..self.with_probe_result(one, offer) };
        if is_direct(port, is_own) {
            let direct = port.endpoints.iter().filter(|one| is_alike(one, port));
            let direct = direct.map(|one| endpoint(one, is_own, slice, names));
            service.endpoints.extend(direct.map(guarded));
        } else {
            let beyond = gateways(slice, offer, port, names).into_iter();
            service.endpoints.extend(beyond.map(guarded));
        }
    }

    /// Sets the weight of an address that is down to 0. It stays in the tables so that its name is still resolved.
    fn with_probe_result(&self, endpoint: Endpoint, offer: &Offer) -> Endpoint {
        let is_down = offer.staleness == Staleness::Probe && self.down.contains(&endpoint.address);
        if is_down { Endpoint { weight: 0, is_ready: false, ..endpoint } } else { endpoint }
    }

    /// Returns the addresses that connections to a slice go to and that may be probed. A plaintext server behind a door of
    /// this gateway may not: it would count each probe as a failed connection (MariaDB's `max_connect_errors`).
    pub(super) fn leads_to<'a>(&self, slice: &'a Slice) -> impl Iterator<Item = &'a Target> + use<'a> {
        let is_own = self.is_own(&slice.key.cluster);
        let offer = slice.offer.iter();
        offer.flat_map(move |offer| {
            offer.ports.iter().flat_map(move |port| {
                let is_direct = is_direct(port, is_own);
                let gateways = if is_direct { &[] } else { offer.gateways.as_slice() };
                let is_seen = is_direct && port.tls != Tls::Terminated;
                let direct = port.endpoints.iter().filter(move |one| is_seen && is_alike(one, port));
                let direct = direct.filter(|one| one.health == Health::Ready);
                direct.map(|one| &one.address).chain(gateways.iter().map(|one| &one.address))
            })
        })
    }
}

/// A service of all slices, and the cluster that each of its endpoints is in.
struct Merged<'a> {
    service: Service,
    owners: Vec<&'a Cluster>,
}

impl Merged<'_> {
    /// Returns the service with the priorities of its endpoints, and their parts of its split.
    fn placed(mut self, here: &Here) -> Service {
        let traffic = self.service.traffic.clone().unwrap_or_else(Traffic::unwritten);
        for (endpoint, owner) in self.service.endpoints.iter_mut().zip(&self.owners) {
            let is_gateway = matches!(endpoint.reach, Scope::RemoteGateway(_));
            let class = if is_gateway { here.distances.class(&endpoint.address) } else { 0 };
            here.position.place(endpoint, &traffic, owner.as_str(), class);
        }
        compact(&mut self.service.endpoints);
        self.service
    }
}

/// Whether the endpoints themselves are connected to. Those of another cluster's terminated ports speak plaintext, which
/// never crosses clusters.
fn is_direct(port: &Port, is_own: bool) -> bool {
    is_own || (port.tls != Tls::Terminated && !port.endpoints.is_empty())
}

/// Whether an endpoint speaks plaintext if, and only if, its port's endpoints do.
fn is_alike(endpoint: &slice::Endpoint, port: &Port) -> bool {
    let of_endpoint = endpoint.tls.unwrap_or(port.tls);
    (of_endpoint == Tls::Terminated) == (port.tls == Tls::Terminated)
}

/// Owners of instance names. Instances never merge: a name used by several clusters means the own one, or none.
struct Unique<'a> {
    owners: HashMap<&'a HostName, Option<&'a Cluster>>,
}

impl<'a> Unique<'a> {
    fn among(alike: &[&'a Slice], here: &Here) -> Unique<'a> {
        let mut owners: HashMap<&HostName, Option<&Cluster>> = HashMap::new();
        for slice in alike {
            let cluster = &slice.key.cluster;
            for name in slice.offer.iter().flat_map(|offer| &offer.ports).flat_map(instances) {
                let owner = owners.entry(name).or_insert(Some(cluster));
                if owner.is_some_and(|owner| owner != cluster && !here.is_own(owner)) {
                    *owner = None;
                }
            }
        }
        Unique { owners }
    }

    fn is(&self, name: &HostName, cluster: &Cluster) -> bool {
        self.owners.get(name).is_some_and(|owner| *owner == Some(cluster))
    }
}

fn instances(port: &Port) -> impl Iterator<Item = &HostName> {
    let seen = port.endpoints.iter().filter_map(|endpoint| endpoint.instance.as_ref());
    let told = port.ready.iter().flat_map(|ready| &ready.instances);
    seen.chain(told.map(|instance| &instance.name))
}

fn service(host: &HostPattern, offer: &Offer, port: &Port, is_own: bool) -> Service {
    let ends_here = is_own && port.tls == Tls::Terminated;
    let tls = ServiceTls {
        mode: if ends_here { TlsMode::Terminate } else { TlsMode::Passthrough },
        identities: port.identities.clone(),
        files: None,
        access: is_own.then(|| access::of_own(port)).flatten(),
    };
    Service {
        host: host.clone(),
        port: port.number,
        default_port: port.default_port,
        aliases: if port.default_port { offer.aliases.clone() } else { Vec::new() },
        alpn: port.alpn.clone(),
        sources: port.sources.clone(),
        balance: port.balance,
        max_connections: port.max_connections,
        send_proxy: port.send_proxy,
        traffic: None,
        timeouts: port.timeouts.clone(),
        health: port.health.clone(),
        endpoints: Vec::new(),
        exposed: false,
        about: None,
        tls: (tls != ServiceTls::default()).then(|| Box::new(tls)),
    }
}

fn endpoint(endpoint: &slice::Endpoint, is_own: bool, slice: &Slice, names: &Unique<'_>) -> Endpoint {
    let instance = endpoint.instance.clone().filter(|name| names.is(name, &slice.key.cluster));
    Endpoint {
        address: endpoint.address.clone(),
        // An endpoint that is not ready gets no new connections and keeps its open ones.
        weight: if endpoint.health == Health::Ready { endpoint.weight.into() } else { 0 },
        locality: endpoint.locality.clone(),
        aliases: if instance.is_some() { endpoint.aliases.clone().into() } else { [].into() },
        instance,
        labels: endpoint.labels.clone(),
        reach: if is_own && endpoint.exposed {
            Scope::Exported { by_name: endpoint.instance_exported }
        } else {
            Scope::Local
        },
        access: None,
        priority: 0,
        part: 0,
        is_ready: endpoint.health != Health::NotReady,
    }
}

/// Returns another cluster's gateways, each weighted by the ready endpoints behind it.
fn gateways(slice: &Slice, offer: &Offer, port: &Port, names: &Unique<'_>) -> Vec<Endpoint> {
    let told = port.ready.iter().flat_map(|ready| &ready.instances);
    let unique = told.filter(|instance| names.is(&instance.name, &slice.key.cluster));
    let instances =
        unique.map(|instance| Named { name: instance.name.clone(), aliases: instance.aliases.clone() });
    let beyond = Arc::new(RemoteGateway {
        cluster: slice.key.cluster.clone(),
        instances: instances.collect(),
        ranges: offer.gateway_ranges.clone(),
        terminates: port.tls == Tls::Terminated,
    });
    let ready: u32 = port.ready.iter().fold(0, |sum, ready| sum.saturating_add(ready.ready));
    let gateway = |gateway: &slice::Gateway| Endpoint {
        address: gateway.address.clone(),
        instance: None,
        weight: ready.min(u32::from(u16::MAX)),
        locality: gateway.locality.clone(),
        aliases: [].into(),
        labels: Labels::default(),
        reach: Scope::RemoteGateway(Arc::clone(&beyond)),
        access: None,
        priority: 0,
        part: 0,
        is_ready: true,
    };
    offer.gateways.iter().map(gateway).collect()
}

#[cfg(test)]
mod tests {
    use isthmus_certs::SpiffeId;
    use isthmus_model::Locality;
    use isthmus_model::slice::{Gateway, Instance, Key, Order, Ready};
    use isthmus_model::traffic::Traffic;

    use super::*;

    fn name(text: &str) -> HostName {
        HostName::parse(text).unwrap()
    }

    fn here() -> Here {
        let domain = TrustDomain::new("west.example").unwrap();
        let position = Position { cluster: "west".to_owned(), locality: Locality::default() };
        let (gateway, distances) = ("gw-1".to_owned(), Distances::default());
        Here { position, gateway, domain, down: HashSet::new(), distances }
    }

    fn slice(cluster: &str, endpoints: Vec<slice::Endpoint>, ready: Vec<Ready>) -> Slice {
        let port = Port { endpoints, ready, exported: true, ..Port::new(3306, Tls::Mutual) };
        let address = format!("gw.{cluster}.example:15443").parse().unwrap();
        let offer = Offer {
            gateways: vec![Gateway { address, locality: Locality::default() }],
            merge: true,
            ..Offer::new(cluster, vec![port])
        };
        let key = Key { cluster: cluster.parse().unwrap(), host: HostPattern::parse("db.pxc").unwrap() };
        Slice { key, order: Order { incarnation: 1, revision: 1 }, offer: Some(offer) }
    }

    fn local(instance: &str, exposed: bool) -> slice::Endpoint {
        slice::Endpoint {
            address: "10.0.0.1:3306".parse().unwrap(),
            locality: Locality::default(),
            weight: 3,
            health: Health::Ready,
            instance: Some(name(instance)),
            instance_exported: false,
            tls: None,
            identity: None,
            exposed,
            aliases: vec![name("src.pxc")],
            labels: Labels::default(),
        }
    }

    fn far(count: u32, instances: &[&str]) -> Vec<Ready> {
        let instance = |text: &&str| Instance { name: name(text), aliases: Vec::new() };
        let instances = instances.iter().map(instance).collect();
        vec![Ready { locality: Locality::default(), ready: count, instances }]
    }

    fn only(services: Vec<Service>) -> Service {
        let [service] = <[Service; 1]>::try_from(services).unwrap_or_else(|all| panic!("{all:?}"));
        service
    }

    fn names_of(endpoint: &Endpoint) -> Vec<String> {
        match &endpoint.reach {
            Scope::RemoteGateway(beyond) => {
                beyond.instances.iter().map(|named| named.name.to_string()).collect()
            }
            Scope::Exported { .. } | Scope::Local => {
                endpoint.instance.iter().map(ToString::to_string).collect()
            }
        }
    }

    #[test]
    fn local_endpoints_precede_remote_gateways() {
        let own = slice("west", vec![local("db-0", true)], Vec::new());
        let east = slice("east", Vec::new(), far(5, &["db-0", "db-7"]));
        let service = only(here().services([&east, &own].into_iter()));
        assert_eq!(service, only(here().services([&own, &east].into_iter())), "in any order");
        let [near, beyond] = &service.endpoints[..] else { panic!("{:?}", service.endpoints) };
        assert_eq!((near.priority, beyond.priority, beyond.weight), (0, 1, 5));
        assert_eq!(near.reach, Scope::Exported { by_name: false });
        assert_eq!(beyond.address.to_string(), "gw.east.example:15443");
        assert!(service.exposed);
        assert_eq!((names_of(near), names_of(beyond)), (vec!["db-0".to_owned()], vec!["db-7".to_owned()]));
    }

    #[test]
    fn nearer_gateways_precede_farther_ones_and_follow_local_endpoints() {
        let own = slice("west", vec![local("db-0", true)], Vec::new());
        let (east, south) = (slice("east", Vec::new(), far(5, &[])), slice("south", Vec::new(), far(1, &[])));
        let gateway = |cluster: &str| format!("gw.{cluster}.example:15443").parse().unwrap();
        let distances = [(gateway("east"), 1), (gateway("south"), 0)].into_iter().collect();
        let here = Here { distances, ..here() };
        let service = only(here.services([&own, &east, &south].into_iter()));
        let priorities: Vec<_> = service.endpoints.iter().map(|endpoint| endpoint.priority).collect();
        assert_eq!(priorities, [0, 2, 1]);
    }

    #[test]
    fn policy_of_traffic_is_that_of_the_own_slice_else_of_the_first_that_has_one() {
        let with = |cluster: &str, policy| {
            let mut slice = slice(cluster, Vec::new(), far(1, &[]));
            slice.offer.as_mut().unwrap().ports[0].traffic = policy;
            slice
        };
        let policy = |panic| Some(Arc::new(Traffic { panic: Some(panic), ..Traffic::default() }));
        let (own, east, south) = (with("west", policy(1)), with("east", None), with("south", policy(3)));
        let panic = |slices: &[&Slice]| {
            only(here().services(slices.iter().copied())).traffic.and_then(|traffic| traffic.panic)
        };
        assert_eq!(panic(&[&east, &own, &south]), Some(1));
        assert_eq!(panic(&[&south, &east]), Some(3));
        assert_eq!(panic(&[&east]), None);
    }

    #[test]
    fn instance_of_two_peers_is_dropped() {
        let (east, south) = (
            slice("east", Vec::new(), far(1, &["db-0", "db-1"])),
            slice("south", Vec::new(), far(2, &["db-0"])),
        );
        let service = only(here().services([&east, &south].into_iter()));
        assert_eq!(
            service.endpoints.iter().map(names_of).collect::<Vec<_>>(),
            [vec!["db-1".to_owned()], vec![]]
        );
        assert!(!service.exposed, "no transit");
    }

    #[test]
    fn export_opens_only_on_named_gateways() {
        let mut own = slice("west", vec![local("db-0", false)], Vec::new());
        own.offer.as_mut().unwrap().exposed_on = vec!["gw-2".to_owned()];
        let service = only(here().services([&own].into_iter()));
        assert!(!service.exposed && service.endpoints[0].reach == Scope::Local);
        let other = Here { gateway: "gw-2".to_owned(), ..here() };
        assert!(only(other.services([&own].into_iter())).exposed);
    }

    fn terminated(mut slice: Slice) -> Slice {
        for port in slice.offer.iter_mut().flat_map(|offer| &mut offer.ports) {
            port.tls = Tls::Terminated;
            port.access = isthmus_model::access::Access::closed();
            port.identities = vec![SpiffeId::parse("spiffe://west.example/ns/pxc/sa/db").unwrap()];
        }
        slice
    }

    #[test]
    fn terminated_service_of_the_own_cluster_has_a_door_and_own_endpoints_alone() {
        let own = terminated(slice("west", vec![local("db-0", true)], Vec::new()));
        let east = slice("east", Vec::new(), far(5, &["db-7"]));
        let flat = slice("south", vec![local("db-9", true)], Vec::new());
        assert_eq!(here().leads_to(&own).count(), 0, "a plaintext server is not probed");
        let service = only(here().services([&east, &flat, &own].into_iter()));
        assert!(service.issued_identity().is_some() && service.exposed);
        let access = service.tls.as_ref().and_then(|tls| tls.access.clone());
        let closed = Arc::new(isthmus_model::access::Access::closed());
        assert_eq!(
            access,
            Some(crate::config::settings::ServiceAccess::Combined(closed)),
            "closed by default"
        );
        let [own] = &service.endpoints[..] else { panic!("{:?}", service.endpoints) };
        assert_eq!(own.reach, Scope::Exported { by_name: false });
    }

    #[test]
    fn terminated_service_of_another_cluster_is_reached_through_gateways_alone() {
        // A peer must not send these endpoints; one that does is not believed.
        let east = terminated(slice("east", vec![local("db-0", true)], far(5, &["db-0"])));
        let service = only(here().services([&east].into_iter()));
        assert_eq!((service.tls_mode(), service.identities().len()), (TlsMode::Passthrough, 1));
        let [beyond] = &service.endpoints[..] else { panic!("{:?}", service.endpoints) };
        assert_eq!(beyond.address.to_string(), "gw.east.example:15443");
        let leads_to: Vec<_> = here().leads_to(&east).map(ToString::to_string).collect();
        assert_eq!(leads_to, ["gw.east.example:15443"]);
        // One plaintext endpoint of a port with TLS.
        let mut mixed = slice("east", vec![local("db-0", true)], Vec::new());
        mixed.offer.as_mut().unwrap().ports[0].endpoints[0].tls = Some(Tls::Terminated);
        assert!(only(here().services([&mixed].into_iter())).endpoints.is_empty());
        assert_eq!(here().leads_to(&mixed).count(), 0);
    }

    #[test]
    fn remote_gateway_without_ready_endpoints_has_weight_zero() {
        let service = only(here().services([&slice("east", Vec::new(), far(0, &[]))].into_iter()));
        assert_eq!(service.endpoints[0].weight, 0);
    }

    #[test]
    fn probed_endpoint_that_is_down_has_weight_zero() {
        let with = |mut slice: Slice, staleness| {
            slice.offer.as_mut().unwrap().staleness = staleness;
            slice
        };
        let own = slice("west", vec![local("db-0", true)], Vec::new());
        let east = slice("east", Vec::new(), far(5, &[]));
        let south = slice("south", Vec::new(), far(5, &[]));
        let slices = [with(own, Staleness::Probe), with(east, Staleness::Probe), south];
        let mut here = here();
        let leads_to: Vec<_> = slices.iter().flat_map(|slice| here.leads_to(slice)).cloned().collect();
        let texts: Vec<_> = leads_to.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.0.1:3306", "gw.east.example:15443", "gw.south.example:15443"]);
        let weights = |here: &Here| -> Vec<u32> {
            only(here.services(slices.iter())).endpoints.iter().map(|endpoint| endpoint.weight).collect()
        };
        assert_eq!(weights(&here), [3, 5, 5]);
        here.down = leads_to.into_iter().collect();
        assert_eq!(weights(&here), [0, 0, 5], "south does not probe, so its gateway keeps its weight");
    }
}
