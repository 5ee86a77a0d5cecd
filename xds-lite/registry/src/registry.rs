//! Turns the services of a cluster into slices with revisions, and projects each slice to what other clusters
//! may see. Sources of services are in `files` and `source`.

use std::collections::BTreeMap;
use std::fmt;

use crate::access::{Domains, WiderRules};
use crate::exports::{Export, Rule, Subject, export, namespace_of};
use isthmus_certs::TrustDomain;
use isthmus_model::access::{Access, AccessError};
use isthmus_model::address::{Ranges, Target};
use isthmus_model::host::HostPattern;
use isthmus_model::services::{self, ClientCertificate, Service, TlsMode};
use isthmus_model::slice::{
    Cluster, Endpoint, Gateway, Health, Instance, Key, Offer, Order, Port, Ready, Slice, Staleness, Tls,
};

/// The slices of the own cluster.
#[derive(Debug)]
pub struct Own {
    cluster: Cluster,
    last: Order,
    slices: BTreeMap<HostPattern, Slice>,
}

impl Own {
    /// Restores the slices of before a restart. They get a new incarnation, so that they are newer than
    /// anything sent before: what is on disk may be older than what other clusters were sent.
    #[must_use]
    pub fn restored(cluster: Cluster, incarnation: u64, before: Vec<Slice>) -> Own {
        let last = before.iter().map(|slice| slice.order.incarnation).max();
        let incarnation = last.map_or(incarnation, |last| incarnation.max(last.saturating_add(1)));
        let mut own = Own { cluster, last: Order { incarnation, revision: 0 }, slices: BTreeMap::new() };
        for slice in before.into_iter().filter(|slice| slice.key.cluster == own.cluster) {
            if slice.offer.is_some() {
                own.last.revision += 1;
                own.slices.insert(slice.key.host.clone(), Slice { order: own.last, ..slice });
            }
        }
        own
    }

    /// Sets the offers of these hosts, or withdraws them; returns the changed slices, withdrawals included.
    pub fn set_offers(&mut self, offers: BTreeMap<HostPattern, Option<Offer>>) -> Vec<Slice> {
        let (some, none): (Vec<_>, Vec<_>) = offers.into_iter().partition(|(_, offer)| offer.is_some());
        let mut changed = Vec::new();
        for (host, offer) in none.into_iter().chain(some) {
            if self.slices.get(&host).and_then(|slice| slice.offer.as_ref()) == offer.as_ref() {
                continue;
            }
            self.last.revision += 1;
            let key = Key { cluster: self.cluster.clone(), host: host.clone() };
            let slice = Slice { key, order: self.last, offer };
            match &slice.offer {
                Some(_) => self.slices.insert(host, slice.clone()),
                None => self.slices.remove(&host),
            };
            changed.push(slice);
        }
        changed
    }

    /// Gives the exported slices of these hosts new revisions and returns them: what others are sent of them differs.
    pub fn renew(&mut self, hosts: &[HostPattern]) -> Vec<Slice> {
        let mut renewed = Vec::new();
        for host in hosts {
            if let Some(slice) = self.slices.get_mut(host).filter(|slice| slice.is_exported()) {
                self.last.revision += 1;
                slice.order = self.last;
                renewed.push(slice.clone());
            }
        }
        renewed
    }

    /// The slice of a host.
    #[must_use]
    pub fn get(&self, host: &HostPattern) -> Option<&Slice> {
        self.slices.get(host)
    }

    /// All slices.
    pub fn slices(&self) -> impl Iterator<Item = &Slice> {
        self.slices.values()
    }
}

/// The terms on which services are offered.
pub struct Terms<'a> {
    /// The own cluster.
    pub cluster: &'a Cluster,
    /// The network of its endpoints.
    pub network: &'a str,
    /// The export rules.
    pub exports: &'a [Rule],
    /// The rules for callers of scopes wider than a service.
    pub rules: &'a WiderRules,
    /// The trust domains of the clusters that workspaces may name.
    pub domains: &'a Domains,
    /// The cluster's gateways: name and addresses for other clusters.
    pub gateways: &'a [(String, Vec<Gateway>)],
    /// Whether an endpoint is known to require a client certificate.
    pub demands: &'a dyn Fn(&HostPattern, &Target) -> bool,
}

impl fmt::Debug for Terms<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms").field("cluster", self.cluster).finish_non_exhaustive()
    }
}

/// Groups services by host, one offer for each host with its ports.
pub fn offers(
    services: impl IntoIterator<Item = Service>,
    terms: &Terms<'_>,
) -> BTreeMap<HostPattern, Offer> {
    let mut hosts: BTreeMap<HostPattern, Vec<Service>> = BTreeMap::new();
    for service in services {
        hosts.entry(service.host.clone()).or_default().push(service);
    }
    hosts.into_iter().map(|(host, ports)| (host, terms.offer(ports))).collect()
}

/// How a host is exported, if at all: its namespace and labels are those of all its ports together.
#[must_use]
pub fn export_of(rules: &[Rule], own: &Cluster, host: &HostPattern, ports: &[Service]) -> Option<Export> {
    let about = ports.iter().filter_map(|service| service.about.as_deref());
    let labels = about.flat_map(|about| about.labels.clone()).collect();
    export(rules, own, Subject { host, namespace: written_namespace(ports), labels: &labels })
}

fn written_namespace(ports: &[Service]) -> Option<&str> {
    let mut about = ports.iter().filter_map(|service| service.about.as_deref());
    about.find_map(|about| about.namespace.as_deref())
}

/// Why the rules for callers of a port cannot be enforced, for each such port: nobody may connect to it.
pub fn unenforced<'a>(
    ports: &'a [Service],
    rules: &'a WiderRules,
    domains: &'a Domains,
) -> impl Iterator<Item = (u16, AccessError)> + 'a {
    let namespace =
        ports.first().and_then(|first| written_namespace(ports).or_else(|| namespace_of(&first.host)));
    ports
        .iter()
        .filter_map(move |port| rules.access(port, namespace, domains).err().map(|error| (port.port, error)))
}

impl Terms<'_> {
    fn offer(&self, ports: Vec<Service>) -> Offer {
        let export =
            ports.first().and_then(|first| export_of(self.exports, self.cluster, &first.host, &ports));
        let about = || ports.iter().filter_map(|service| service.about.as_deref());
        let staleness = about().map(|about| about.staleness).find(|rule| *rule != Staleness::Keep);
        let (staleness, merge) = (staleness.unwrap_or_default(), about().any(|about| about.merge));
        let bare = ports.iter().find(|service| service.default_port);
        let aliases = bare.map(|service| service.aliases.clone()).unwrap_or_default();
        let host = ports.first().map(|first| first.host.clone());
        let namespace = written_namespace(&ports).or_else(|| namespace_of(host.as_ref()?)).map(str::to_owned);
        let port = |service| self.port(service, export.as_ref(), namespace.as_deref());
        let ports: Vec<_> = ports.into_iter().map(port).collect();
        let is_exported = ports.iter().any(|port| port.exported);
        let opens = |name: &String| {
            export.as_ref().is_some_and(|export| export.gateways.is_empty() || export.gateways.contains(name))
        };
        let gateways = self.gateways.iter().filter(|(name, _)| is_exported && opens(name));
        Offer {
            network: self.network.to_owned(),
            aliases,
            ports,
            gateways: gateways.flat_map(|(_, gateways)| gateways.iter().cloned()).collect(),
            staleness,
            merge,
            exposed_on: export
                .filter(|_| is_exported)
                .into_iter()
                .flat_map(|export| export.gateways)
                .collect(),
            gateway_ranges: Ranges::default(),
        }
    }

    fn port(&self, service: Service, export: Option<&Export>, namespace: Option<&str>) -> Port {
        let skips_mtls_check = service.skips_mtls_check();
        let health =
            Box::new(service.health.as_deref().cloned().unwrap_or_default().usual(service.tls_mode()));
        let tls = match (service.tls_mode(), service.client_certificate()) {
            (TlsMode::Terminate, _) => Tls::Terminated,
            (TlsMode::Passthrough, ClientCertificate::None) => Tls::Unauthenticated,
            (TlsMode::Passthrough, ClientCertificate::Probed | ClientCertificate::Declared) => Tls::Mutual,
        };
        let access = self.rules.access(&service, namespace, self.domains);
        // Rules that cannot be enforced must not be read as none.
        let export = export.filter(|_| access.is_ok());
        let access = access.unwrap_or_else(|_| Access::closed());
        let endpoints: Vec<_> = service
            .endpoints
            .into_iter()
            .map(|one| {
                let exposed =
                    export.filter(|_| skips_mtls_check || (self.demands)(&service.host, &one.address));
                endpoint(one, exposed)
            })
            .collect();
        let is_fit = endpoints.is_empty() || endpoints.iter().any(|endpoint| endpoint.exposed);
        Port {
            number: service.port,
            default_port: service.default_port,
            tls,
            alpn: service.alpn,
            sources: service.sources,
            balance: service.balance,
            max_connections: service.max_connections,
            send_proxy: service.send_proxy,
            endpoints,
            ready: Vec::new(),
            timeouts: service.timeouts,
            health: Some(health),
            exported: export.is_some() && is_fit,
            access,
            identities: service.tls.map(|tls| tls.identities).unwrap_or_default(),
            traffic: service.traffic,
        }
    }
}

/// An endpoint; `exposed` is the export that it qualifies for.
fn endpoint(endpoint: services::Endpoint, exposed: Option<&Export>) -> Endpoint {
    let by_name = exposed.zip(endpoint.instance.as_ref());
    Endpoint {
        instance_exported: by_name.is_some_and(|(export, name)| export.instances.contains(name)),
        exposed: exposed.is_some(),
        address: endpoint.address,
        locality: endpoint.locality,
        weight: u16::try_from(endpoint.weight).unwrap_or(u16::MAX),
        health: Health::Ready,
        instance: endpoint.instance,
        tls: None,
        identity: None,
        aliases: endpoint.aliases.into_vec(),
        labels: endpoint.labels,
    }
}

/// The projection of a slice for another cluster: its exported ports, with endpoints only for a direct peer, and the
/// rules for callers of its trust domains.
#[must_use]
pub fn project_for_peer(slice: &Slice, to: PeerAccess, domains: &[TrustDomain]) -> Slice {
    let offer = slice.offer.as_ref().filter(|_| to != PeerAccess::Hidden).and_then(|offer| {
        let exported = offer.ports.iter().filter(|port| port.exported);
        let ports: Vec<_> = exported.map(|port| port_abroad(port, to, domains)).collect();
        let own = || Offer { exposed_on: Vec::new(), ..offer.clone() };
        (!ports.is_empty()).then(|| Offer { ports, ..own() })
    });
    Slice { key: slice.key.clone(), order: slice.order, offer }
}

/// How a peer reaches the endpoints of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerAccess {
    /// The peer is in the same network.
    Direct,
    /// The peer is in another network and uses gateways.
    ViaGateway,
    /// The peer may not know the slice.
    Hidden,
}

fn port_abroad(port: &Port, to: PeerAccess, domains: &[TrustDomain]) -> Port {
    // Plaintext never leaves the cluster.
    let is_direct = to == PeerAccess::Direct && port.tls != Tls::Terminated;
    let access = port.access.for_domains(domains);
    let exposed = || port.endpoints.iter().filter(|endpoint| endpoint.exposed);
    let seen = |endpoint: &Endpoint| Endpoint {
        instance: endpoint.instance.clone().filter(|_| endpoint.instance_exported),
        aliases: if endpoint.instance_exported { endpoint.aliases.clone() } else { Vec::new() },
        ..endpoint.clone()
    };
    Port {
        endpoints: if is_direct { exposed().map(seen).collect() } else { Vec::new() },
        ready: ready(exposed()),
        // Source conditions are enforced by the owner's gateway, which sees the sources.
        sources: Vec::new(),
        max_connections: None,
        send_proxy: false,
        // How a cluster's own callers choose endpoints is told to nobody else.
        traffic: None,
        health: port.health.as_deref().map(|health| Box::new(health.clone().at_peers(port.tls.mode()))),
        // Behind a gateway the owner sees another source than the peer does.
        access: if is_direct { access } else { access.without_sources() },
        ..port.clone()
    }
}

fn ready<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> Vec<Ready> {
    let mut ready: Vec<Ready> = Vec::new();
    for endpoint in endpoints.filter(|endpoint| endpoint.weight > 0) {
        let place = ready.iter().position(|entry| entry.locality == endpoint.locality);
        let place = place.unwrap_or_else(|| {
            ready.push(Ready { locality: endpoint.locality.clone(), ready: 0, instances: Vec::new() });
            ready.len() - 1
        });
        let Some(entry) = ready.get_mut(place) else { continue };
        // The instances of an endpoint that is not ready keep their names.
        entry.ready += u32::from(endpoint.health == Health::Ready);
        let instance = endpoint.instance.clone().filter(|_| endpoint.instance_exported);
        entry.instances.extend(instance.map(|name| Instance { name, aliases: endpoint.aliases.clone() }));
    }
    ready
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use isthmus_model::host::HostName;
    use isthmus_model::locality::Locality;
    use isthmus_model::registry_file;

    fn read(text: &str) -> BTreeMap<HostPattern, Offer> {
        exported(text, &[], &|_, _| false)
    }

    fn some(text: &str) -> BTreeMap<HostPattern, Option<Offer>> {
        read(text).into_iter().map(|(host, offer)| (host, Some(offer))).collect()
    }

    fn exported(
        text: &str,
        exports: &[Rule],
        demands: &dyn Fn(&HostPattern, &Target) -> bool,
    ) -> BTreeMap<HostPattern, Offer> {
        let gateway = |name: &str, address: &str| {
            let gateway = Gateway { address: address.parse().unwrap(), locality: Locality::default() };
            (name.to_owned(), vec![gateway])
        };
        let terms = Terms {
            cluster: &"east".parse().unwrap(),
            network: "east-net",
            exports,
            rules: &WiderRules::default(),
            domains: &Domains::new("east".parse().unwrap(), TrustDomain::new("east.example").unwrap()),
            gateways: &[gateway("gw-1", "203.0.113.1:15443"), gateway("gw-2", "203.0.113.2:15443")],
            demands,
        };
        offers(registry_file(text, Path::new("r.yaml")).unwrap(), &terms)
    }

    #[test]
    fn offer_change_gets_a_new_revision_and_an_equal_offer_none() {
        let mut own = Own::restored("east".parse().unwrap(), 7, Vec::new());
        let one = "services: [{ host: a.b, endpoints: [{ address: '10.0.0.1:443' }] }, { host: c.d }]";
        let changed = own.set_offers(some(one));
        let orders: Vec<_> =
            changed.iter().map(|slice| (slice.key.to_string(), slice.order.revision)).collect();
        assert_eq!(orders, [("east/a.b".to_owned(), 1), ("east/c.d".to_owned(), 2)]);
        assert_eq!(own.set_offers(some(one)), []);
        let mut next = some("services: [{ host: a.b, endpoints: [{ address: '10.0.0.2:443' }] }]");
        next.extend(["c.d", "never.was"].map(|host| (HostPattern::parse(host).unwrap(), None)));
        let changed = own.set_offers(next);
        let shown: Vec<_> =
            changed.iter().map(|slice| (slice.order.revision, slice.offer.is_some())).collect();
        assert_eq!(shown, [(3, false), (4, true)], "c.d is withdrawn, a.b has changed");
        assert!(changed.iter().all(|slice| slice.order.incarnation == 7));
        assert_eq!(own.slices().count(), 1);
    }

    /// The disk may be older than what others were sent before a crash.
    #[test]
    fn restored_offers_are_newer_than_everything_sent_before() {
        let east: Cluster = "east".parse().unwrap();
        let one = "services: [{ host: a.b, endpoints: [{ address: '10.0.0.1:443' }] }, { host: c.d }]";
        let mut own = Own::restored(east.clone(), 7, Vec::new());
        let persisted = own.set_offers(some(one));
        let said =
            own.set_offers(some("services: [{ host: a.b, endpoints: [{ address: '10.0.0.2:443' }] }]"));
        for incarnation in [3, 9] {
            let mut again = Own::restored(east.clone(), incarnation, persisted.clone());
            assert_eq!(again.set_offers(some(one)), [], "the same offer");
            let orders: BTreeSet<_> = again.slices().map(|slice| slice.order).collect();
            assert!(orders.len() == 2 && orders.first() > said.iter().map(|slice| &slice.order).max());
        }
    }

    #[test]
    fn host_with_several_ports_is_one_slice() {
        let offers = read(
            "services:\n\
             - { host: db.pxc, port: 3306, sni_port: 3306, aliases: [db], endpoints: [\n\
                 { address: '10.0.0.1:3306', locality: { zone: a } }, { address: '10.0.0.2:3306', locality: { zone: a } }] }\n\
             - { host: db.pxc, port: 4567, endpoints: [{ address: '10.0.0.1:4567', weight: 0 }] }",
        );
        let [(host, offer)] = offers.iter().collect::<Vec<_>>()[..] else { panic!("one host") };
        assert_eq!((host.to_string().as_str(), offer.ports.len(), offer.aliases.len()), ("db.pxc", 2, 1));
        assert!(offer.ports[0].default_port && !offer.ports[1].default_port);
        assert!(offer.ports.iter().all(|port| !port.exported) && offer.gateways.is_empty());
    }

    const DATABASE: &str = "services:\n\
        - { host: db.pxc.svc.cluster.local, port: 3306, endpoints: [\n\
            { address: '10.0.0.1:3306', instance: db-0, aliases: [src-db-0.pxc], locality: { zone: a } },\n\
            { address: '10.0.0.2:3306', instance: db-1, locality: { zone: a } },\n\
            { address: '10.0.0.3:3306', instance: db-2, locality: { zone: b } }] }\n";

    fn rule() -> Rule {
        Rule {
            hosts: vec![HostPattern::parse("*.pxc.svc.cluster.local").unwrap()],
            gateways: vec!["gw-2".to_owned()],
            instances: crate::exports::Instances::Named([HostName::parse("db-0").unwrap()].into()),
            ..Rule::default()
        }
    }

    fn slice(offer: &Offer) -> Slice {
        let key = Key { cluster: "east".parse().unwrap(), host: HostPattern::parse("db.pxc").unwrap() };
        Slice { key, order: Order { incarnation: 1, revision: 1 }, offer: Some(offer.clone()) }
    }

    #[test]
    fn export_shows_only_endpoints_that_require_a_certificate() {
        let is_third = |address: &Target| address.to_string() == "10.0.0.3:3306";
        let offers = exported(DATABASE, &[rule()], &|_, address| !is_third(address));
        let offer = offers.values().next().unwrap();
        let exposed: Vec<_> = offer.ports[0].endpoints.iter().map(|one| one.exposed).collect();
        assert_eq!(exposed, [true, true, false]);
        assert_eq!(offer.exposed_on, ["gw-2"]);
        assert_eq!(
            offer.gateways.iter().map(|one| one.address.to_string()).collect::<Vec<_>>(),
            ["203.0.113.2:15443"]
        );
        let far = project_for_peer(&slice(offer), PeerAccess::ViaGateway, &[]).offer.unwrap();
        assert!(far.ports[0].endpoints.is_empty() && far.exposed_on.is_empty());
        let [ready] = &far.ports[0].ready[..] else { panic!("one zone is ready: {:?}", far.ports[0].ready) };
        assert_eq!((ready.locality.zone.as_str(), ready.ready), ("a", 2));
        let [instance] = &ready.instances[..] else { panic!("one is exported by name") };
        assert_eq!((instance.name.as_str(), instance.aliases.len()), ("db-0", 1));
        let near = project_for_peer(&slice(offer), PeerAccess::Direct, &[]).offer.unwrap();
        let names: Vec<_> = near.ports[0].endpoints.iter().map(|one| one.instance.is_some()).collect();
        assert_eq!(names, [true, false], "the second is not exported by name");
        assert_eq!(project_for_peer(&slice(offer), PeerAccess::Hidden, &[]).offer, None);
    }

    #[test]
    fn policy_of_traffic_stays_in_the_cluster_and_labels_are_for_direct_peers() {
        let labelled = DATABASE.replace("instance: db-0,", "instance: db-0, labels: { version: v2 },");
        let text = labelled.replace("port: 3306,", "port: 3306, traffic: { panic: off },");
        let offers = exported(&text, &[rule()], &|_, _| true);
        let offer = offers.values().next().unwrap();
        assert_eq!(offer.ports[0].traffic.as_ref().unwrap().panic, None);
        let near = project_for_peer(&slice(offer), PeerAccess::Direct, &[]).offer.unwrap();
        let far = project_for_peer(&slice(offer), PeerAccess::ViaGateway, &[]).offer.unwrap();
        assert_eq!((&near.ports[0].traffic, &far.ports[0].traffic), (&None, &None));
        assert_eq!(near.ports[0].endpoints[0].labels.get("version"), Some("v2"));
    }

    #[test]
    fn terminated_port_is_exported_unchecked_and_reached_through_gateways_alone() {
        let identity = "spiffe://east.example/ns/pxc/sa/db";
        let text = DATABASE
            .replace("port: 3306,", &format!("port: 3306, tls: terminate, identities: ['{identity}'],"));
        let offers = exported(&text, &[rule()], &|_, _| false);
        let offer = offers.values().next().unwrap();
        let port = &offer.ports[0];
        assert!(port.exported && port.tls == Tls::Terminated && port.access == Access::closed());
        assert!(port.endpoints.iter().all(|endpoint| endpoint.exposed));
        for to in [PeerAccess::Direct, PeerAccess::ViaGateway] {
            let abroad = project_for_peer(&slice(offer), to, &[]).offer.unwrap();
            let [port] = &abroad.ports[..] else { panic!("{abroad:?}") };
            assert!(port.endpoints.is_empty() && abroad.gateways.len() == 1, "{to:?}");
            assert_eq!(port.ready.iter().map(|ready| ready.ready).sum::<u32>(), 3);
            assert_eq!(port.identities[0].to_string(), identity);
        }
    }

    #[test]
    fn service_without_a_qualified_endpoint_is_not_exported() {
        let offers = exported(DATABASE, &[rule()], &|_, _| false);
        let offer = offers.values().next().unwrap();
        assert!(!offer.ports[0].exported && offer.gateways.is_empty() && offer.exposed_on.is_empty());
        assert_eq!(project_for_peer(&slice(offer), PeerAccess::ViaGateway, &[]).offer, None);
        let empty = "services: [{ host: db.pxc.svc.cluster.local, port: 3306 }]";
        assert!(exported(empty, &[rule()], &|_, _| false).values().all(|offer| offer.ports[0].exported));
        let open = DATABASE.replace("port: 3306,", "port: 3306, allow_unauthenticated: true,");
        let open = exported(&open, &[rule()], &|_, _| false);
        let port = &open.values().next().unwrap().ports[0];
        assert!(port.exported && port.tls == Tls::Unauthenticated);
    }

    #[test]
    fn access_is_combined_of_all_scopes_and_cut_for_a_peer() {
        let text = "services: [{ host: a.shop.svc.example, client_certificate: none, access: { advisory: true, allow: [\
            'spiffe://west.example/ns/x/sa/a', 'spiffe://south.example/ns/x/sa/a'], deny: [{ sources: [10.0.0.0/8] }] },\
            endpoints: [{ address: '10.0.0.1:1' }] }]";
        let everything = Rule { hosts: vec![HostPattern::parse("*.example").unwrap()], ..Rule::default() };
        let offers = exported(text, std::slice::from_ref(&everything), &|_, _| true);
        let offer = offers.values().next().unwrap();
        assert_eq!(offer.ports[0].access.rules().count(), 3);
        let west = [TrustDomain::new("west.example").unwrap()];
        let rules = |to, domains: &[TrustDomain]| {
            let port = project_for_peer(&slice(offer), to, domains).offer.unwrap().ports.remove(0);
            port.access.rules().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(rules(PeerAccess::Direct, &west), ["service rule deny[0]", "service rule allow[0]"]);
        assert_eq!(rules(PeerAccess::ViaGateway, &west), ["service rule allow[0]"], "it sees other sources");
        assert_eq!(rules(PeerAccess::ViaGateway, &[]), [""; 0]);
    }
}
