//! Services that agents give this gateway: it follows one of them, accepts slices, and puts what they come to
//! live beside the file's. Not the protocol: that is `isthmus_xds::ads`.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use isthmus_certs::{Client as Tls, IdPattern, Peer, Trust};
use isthmus_xds::accepted::Accepted;
use isthmus_xds::ads::client::{Client, Refused, Update};
use isthmus_xds::ads::subscribe::{Contact, Subscription, Tables};
use isthmus_xds::agent::SLICE;
use isthmus_xds::proto::envoy::config::core::v3::{Locality, Node};
use isthmus_xds::slice::{self, Health, Key, Offer, Slice};

use crate::config::settings::{self, Service, Target};
use crate::control::Control;

/// Follows agents for as long as the gateway runs.
pub(crate) async fn follow(servers: Vec<Target>, trust: Trust, control: Arc<Control>) -> io::Result<()> {
    let node = &control.process.fixed.node;
    let own = trust.current();
    let agents = format!("{}/isthmus/{}/agent/*", own.identity.id().trust_domain().id(), node.cluster);
    let agents = IdPattern::parse(&agents).map_err(io::Error::other)?;
    let tls = Tls::new(trust, Peer::Matching(vec![agents]), &[b"h2"]).map_err(io::Error::other)?;
    let locality = Locality {
        region: node.locality.region.clone(),
        zone: node.locality.zone.clone(),
        sub_zone: node.locality.sub_zone.clone(),
    };
    let subscription = Subscription {
        servers,
        tls: Arc::new(tls),
        node: Node {
            id: node.id.clone(),
            cluster: node.cluster.clone(),
            locality: Some(locality),
            user_agent_name: "isthmus-gateway".to_owned(),
            ..Node::default()
        },
    };
    let network = node.network.clone();
    let mut slices = Slices { control, network, accepted: Accepted::default(), keys: BTreeMap::new() };
    subscription.follow(vec![Client::new(SLICE, [])], &mut slices).await;
    Ok(())
}

/// The slices that were accepted, and the services that they are here.
struct Slices {
    control: Arc<Control>,
    network: String,
    accepted: Accepted,
    /// By name, in order, so that the same slices always make the same tables.
    keys: BTreeMap<String, Key>,
}

impl Slices {
    fn take(&mut self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let slice = Slice::decode(bytes).map_err(|error| error.to_string())?;
        if slice.key.to_string() != name {
            return Err(format!("is the slice of {}", slice.key));
        }
        if let Some(offer) = &slice.offer
            && offer.network != self.network
        {
            return Err(format!(
                "stands in network {:?}, and this gateway in {:?}; services across networks are not supported yet",
                offer.network, self.network
            ));
        }
        let key = slice.key.clone();
        self.accepted.take(slice).map_err(|older| older.to_string())?;
        self.keys.insert(name.to_owned(), key);
        Ok(())
    }
}

impl Tables for Slices {
    fn apply(&mut self, update: &Update) -> Vec<Refused> {
        let mut refused = Vec::new();
        for resource in &update.resources {
            if let Err(why) = self.take(&resource.name, &resource.bytes) {
                tracing::warn!(slice = ?resource.name, %why, "a slice was refused");
                refused.push(Refused { name: resource.name.clone(), why });
            }
        }
        for key in update.removed.iter().filter_map(|name| self.keys.get(name)) {
            self.accepted.leave(key);
        }
        let accepted = &self.accepted;
        self.keys.retain(|_, key| accepted.get(key).is_some());
        let slices = self.keys.values().filter_map(|key| accepted.get(key));
        self.control.learned(slices.flat_map(|slice| services(slice)).map(Arc::new).collect());
        refused
    }

    fn contact(&mut self, contact: Contact<'_>) {
        match contact {
            Contact::Made(agent) => tracing::info!(%agent, "following an agent"),
            Contact::Lost(agent, why) => tracing::warn!(%agent, why, "no agent there; the tables stay"),
        }
    }
}

/// A slice as the services of this gateway: one for each port whose endpoints speak TLS themselves.
fn services(slice: &Slice) -> Vec<Service> {
    let offer = slice.offer.iter();
    let passed = offer.flat_map(|offer| offer.ports.iter().map(move |port| (offer, port)));
    passed
        .filter(|(_, port)| port.tls != slice::Tls::Terminated)
        .map(|(offer, port)| service(slice, offer, port))
        .collect()
}

fn service(slice: &Slice, offer: &Offer, port: &slice::Port) -> Service {
    Service {
        host: slice.key.host.clone(),
        port: port.number,
        bare: port.bare,
        aliases: if port.bare { offer.aliases.clone() } else { Vec::new() },
        alpn: port.alpn.clone(),
        sources: port.sources.clone(),
        balance: port.balance,
        max_connections: port.max_connections,
        send_proxy: port.send_proxy,
        timeouts: port.timeouts.clone(),
        endpoints: port
            .endpoints
            .iter()
            .filter(|one| one.tls != Some(slice::Tls::Terminated))
            .map(endpoint)
            .collect(),
    }
}

fn endpoint(endpoint: &slice::Endpoint) -> settings::Endpoint {
    settings::Endpoint {
        address: endpoint.address.clone(),
        instance: endpoint.instance.clone(),
        // What is not ready takes no new connections, and keeps those it has.
        weight: if endpoint.health == Health::Ready { endpoint.weight.into() } else { 0 },
        locality: endpoint.locality.clone(),
    }
}
