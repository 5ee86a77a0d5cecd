//! What one cluster offers, from its registry: services become slices, each change with an order of its own.
//! Not where services are read from (`files`), and not who may see them.

pub mod files;
pub mod registered;
pub mod source;
pub mod store;

use std::collections::BTreeMap;

use crate::config::services::{self, Service};
use crate::host::HostPattern;
use crate::slice::{Cluster, Endpoint, Health, Key, Offer, Order, Port, Ready, Slice, Staleness, Tls};

/// The slices of one cluster, as its registry has them.
#[derive(Debug)]
pub struct Own {
    cluster: Cluster,
    last: Order,
    slices: BTreeMap<HostPattern, Slice>,
}

impl Own {
    /// None yet. An incarnation must be higher than any that the registry had before.
    #[must_use]
    pub fn new(cluster: Cluster, incarnation: u64) -> Own {
        Own { cluster, last: Order { incarnation, revision: 0 }, slices: BTreeMap::new() }
    }

    /// Offers exactly this from now on; what changed, with what is withdrawn.
    pub fn offer(&mut self, mut offers: BTreeMap<HostPattern, Offer>) -> Vec<Slice> {
        let gone: Vec<_> = self.slices.keys().filter(|host| !offers.contains_key(*host)).cloned().collect();
        let mut changed = Vec::new();
        for host in gone {
            changed.extend(self.change(&host, None));
            self.slices.remove(&host);
        }
        offers.retain(|host, offer| {
            self.slices.get(host).and_then(|slice| slice.offer.as_ref()) != Some(offer)
        });
        for (host, offer) in offers {
            changed.extend(self.change(&host, Some(offer)));
        }
        changed
    }

    fn change(&mut self, host: &HostPattern, offer: Option<Offer>) -> Option<Slice> {
        self.last.revision += 1;
        let key = Key { cluster: self.cluster.clone(), host: host.clone() };
        let slice = Slice { key, order: self.last, offer };
        self.slices.insert(host.clone(), slice.clone());
        Some(slice)
    }

    /// Everything that is offered.
    pub fn slices(&self) -> impl Iterator<Item = &Slice> {
        self.slices.values()
    }
}

/// Services, each a host and a port, as offers, each a host with its ports.
pub fn offers(services: impl IntoIterator<Item = Service>, network: &str) -> BTreeMap<HostPattern, Offer> {
    let mut offers: BTreeMap<HostPattern, Offer> = BTreeMap::new();
    for service in services {
        let offer = offers.entry(service.host.clone()).or_insert_with(|| Offer {
            network: network.to_owned(),
            aliases: Vec::new(),
            ports: Vec::new(),
            gateways: Vec::new(),
            staleness: Staleness::Keep,
            merge: false,
        });
        if service.bare {
            offer.aliases.clone_from(&service.aliases);
        }
        offer.ports.push(port(service));
    }
    offers
}

fn port(service: Service) -> Port {
    let ready = ready(&service.endpoints);
    Port {
        number: service.port,
        bare: service.bare,
        tls: Tls::Mutual,
        alpn: service.alpn,
        sources: service.sources,
        balance: service.balance,
        max_connections: service.max_connections,
        send_proxy: service.send_proxy,
        endpoints: service.endpoints.into_iter().map(endpoint).collect(),
        ready,
        timeouts: service.timeouts,
    }
}

fn endpoint(endpoint: services::Endpoint) -> Endpoint {
    Endpoint {
        address: endpoint.address,
        locality: endpoint.locality,
        weight: u16::try_from(endpoint.weight).unwrap_or(u16::MAX),
        health: Health::Ready,
        instance: endpoint.instance,
        instance_exported: false,
        tls: None,
        identity: None,
    }
}

fn ready(endpoints: &[services::Endpoint]) -> Vec<Ready> {
    let mut ready: Vec<Ready> = Vec::new();
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.weight > 0) {
        match ready.iter_mut().find(|one| one.locality == endpoint.locality) {
            Some(one) => one.ready += 1,
            None => {
                ready.push(Ready { locality: endpoint.locality.clone(), ready: 1, instances: Vec::new() })
            }
        }
    }
    ready
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::registry_file;

    fn read(text: &str) -> BTreeMap<HostPattern, Offer> {
        offers(registry_file(text, Path::new("r.yaml")).unwrap(), "east-net")
    }

    #[test]
    fn each_change_has_an_order_of_its_own_and_what_stays_the_same_has_none() {
        let mut own = Own::new("east".parse().unwrap(), 7);
        let one = "services: [{ host: a.b, endpoints: [{ address: '10.0.0.1:443' }] }, { host: c.d }]";
        let changed = own.offer(read(one));
        let orders: Vec<_> =
            changed.iter().map(|slice| (slice.key.to_string(), slice.order.revision)).collect();
        assert_eq!(orders, [("east/a.b".to_owned(), 1), ("east/c.d".to_owned(), 2)]);
        assert_eq!(own.offer(read(one)), []);
        let changed = own.offer(read("services: [{ host: a.b, endpoints: [{ address: '10.0.0.2:443' }] }]"));
        let shown: Vec<_> =
            changed.iter().map(|slice| (slice.order.revision, slice.offer.is_some())).collect();
        assert_eq!(shown, [(3, false), (4, true)], "c.d is withdrawn, a.b has changed");
        assert!(changed.iter().all(|slice| slice.order.incarnation == 7));
        assert_eq!(own.slices().count(), 1);
    }

    #[test]
    fn a_host_with_several_ports_is_one_slice() {
        let offers = read(
            "services:\n\
             - { host: db.pxc, port: 3306, sni_port: 3306, aliases: [db], endpoints: [\n\
                 { address: '10.0.0.1:3306', locality: { zone: a } }, { address: '10.0.0.2:3306', locality: { zone: a } }] }\n\
             - { host: db.pxc, port: 4567, endpoints: [{ address: '10.0.0.1:4567', weight: 0 }] }",
        );
        let [(host, offer)] = offers.iter().collect::<Vec<_>>()[..] else { panic!("one host") };
        assert_eq!((host.to_string().as_str(), offer.ports.len(), offer.aliases.len()), ("db.pxc", 2, 1));
        assert_eq!(offer.ports[0].ready.iter().map(|ready| ready.ready).collect::<Vec<_>>(), [2]);
        assert!(offer.ports[0].bare && !offer.ports[1].bare && offer.ports[1].ready.is_empty());
    }
}
