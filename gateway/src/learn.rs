//! Services that agents give this gateway: it follows one of them, accepts slices, and puts what they come to
//! live beside the file's. Not the protocol: that is `isthmus_xds::ads`.

mod probing;
mod services;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isthmus_certs::{Client as Tls, IdPattern, Peer, Trust};
use isthmus_xds::HostPattern;
use isthmus_xds::accepted::Accepted;
use isthmus_xds::ads::client::{Client, Refused, Update};
use isthmus_xds::ads::subscribe::{Contact, Subscription, Tables};
use isthmus_xds::agent::SLICE;
use isthmus_xds::kept::Kept;
use isthmus_xds::probes::Probes;
use isthmus_xds::probing::probe;
use isthmus_xds::proto::envoy::config::core::v3::{Locality, Node};
use isthmus_xds::slice::{Cluster, Key, Slice, version};

use crate::config::settings::{Service, Target};
use crate::control::Control;

use probing::Asking;
use services::Here;

/// How often it is looked for what has expired.
const PACE: Duration = Duration::from_secs(1);

/// Agents to follow.
pub(crate) struct Follow {
    subscription: Subscription,
    client: Client,
    slices: Arc<Mutex<Slices>>,
}

impl Follow {
    /// The tables that were kept of the time before are live once this returns.
    ///
    /// # Errors
    /// They cannot be read or written, or TLS cannot be made of the trust.
    pub(crate) fn begin(
        servers: Vec<Target>,
        state: Option<&Path>,
        trust: Trust,
        control: Arc<Control>,
    ) -> io::Result<Follow> {
        let slices = Slices::open(Arc::clone(&control), here(&trust, &control), state)?;
        let client = Client::new(SLICE, slices.known());
        let subscription = subscription(servers, trust, &control)?;
        Ok(Follow { subscription, client, slices: Arc::new(Mutex::new(slices)) })
    }

    /// Follows for as long as the gateway runs.
    pub(crate) async fn run(self) -> io::Result<()> {
        let Follow { subscription, client, slices } = self;
        let aging = async {
            let mut pace = tokio::time::interval(PACE);
            loop {
                pace.tick().await;
                locked(&slices).expire(Instant::now());
            }
        };
        let mut followed = Followed(Arc::clone(&slices));
        tokio::select! {
            () = subscription.follow(vec![client], &mut followed) => {}
            () = aging => {}
            () = probe(Asking(Arc::clone(&slices))) => {}
        }
        Ok(())
    }
}

fn here(trust: &Trust, control: &Control) -> Here {
    let own = trust.current();
    let gateway = own.identity.id().path().rsplit('/').next().unwrap_or_default().to_owned();
    Here { cluster: control.process.fixed.node.cluster.clone(), gateway, down: HashSet::new() }
}

fn subscription(servers: Vec<Target>, trust: Trust, control: &Control) -> io::Result<Subscription> {
    let node = &control.process.fixed.node;
    let own = trust.current();
    let id = own.identity.id();
    let agents = format!("{}/isthmus/{}/agent/*", id.trust_domain().id(), node.cluster);
    let agents = IdPattern::parse(&agents).map_err(io::Error::other)?;
    let tls = Tls::new(trust, Peer::Matching(vec![agents]), &[b"h2"]).map_err(io::Error::other)?;
    let locality = Locality {
        region: node.locality.region.clone(),
        zone: node.locality.zone.clone(),
        sub_zone: node.locality.sub_zone.clone(),
    };
    Ok(Subscription {
        servers,
        tls: Arc::new(tls),
        node: Node {
            id: node.id.clone(),
            cluster: node.cluster.clone(),
            locality: Some(locality),
            user_agent_name: "isthmus-gateway".to_owned(),
            ..Node::default()
        },
    })
}

fn locked(slices: &Mutex<Slices>) -> MutexGuard<'_, Slices> {
    slices.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The slices that were accepted.
struct Slices {
    control: Arc<Control>,
    here: Here,
    network: String,
    accepted: Accepted,
    /// In order, so that the same slices always make the same tables.
    hosts: BTreeMap<HostPattern, Host>,
    kept: Option<Kept>,
    lost: Option<Instant>,
    expired: HashSet<Key>,
    /// Begun once no agent is heard.
    probes: Option<Probes>,
}

/// What stands under one host, and what came of it.
#[derive(Default)]
struct Host {
    clusters: Vec<Cluster>,
    services: Vec<Arc<Service>>,
}

impl Slices {
    /// With what was kept of the time before, live at once.
    fn open(control: Arc<Control>, here: Here, state: Option<&Path>) -> io::Result<Slices> {
        let kept = state.map(|folder| Kept::open(&folder.join("agent.slices"))).transpose()?;
        let mut slices = Slices {
            here,
            network: control.process.fixed.node.network.clone(),
            control,
            accepted: Accepted::default(),
            hosts: BTreeMap::new(),
            kept: None,
            lost: Some(Instant::now()),
            expired: HashSet::new(),
            probes: None,
        };
        let mut touched = BTreeSet::new();
        for (name, bytes) in kept.iter().flat_map(Kept::entries) {
            match slices.take(name, bytes) {
                Ok(host) => _ = touched.insert(host),
                Err(why) => tracing::warn!(slice = ?name, %why, "a slice that was kept is not taken"),
            }
        }
        slices.kept = kept;
        slices.renew(touched);
        if !slices.hosts.is_empty() {
            tracing::info!(slices = slices.count(), "begun with the tables that were kept");
            slices.publish();
        }
        Ok(slices)
    }

    /// What need not be sent again, with its version.
    fn known(&self) -> Vec<(String, String)> {
        self.kept.iter().flat_map(Kept::entries).map(|(name, bytes)| (name.clone(), version(bytes))).collect()
    }

    /// Takes a slice; says of which host.
    fn take(&mut self, name: &str, bytes: &[u8]) -> Result<HostPattern, String> {
        let slice = Slice::decode(bytes).map_err(|error| error.to_string())?;
        if slice.key.to_string() != name {
            return Err(format!("is the slice of {}", slice.key));
        }
        if let Some(offer) = &slice.offer
            && slice.key.cluster.as_str() == self.here.cluster
            // Where the file says nothing the agent does.
            && !self.network.is_empty()
            && offer.network != self.network
        {
            return Err(format!(
                "stands in network {:?}, and this gateway in {:?}; set `node.network` to that of its agent",
                offer.network, self.network
            ));
        }
        let Key { cluster, host } = slice.key.clone();
        self.accepted.take(slice).map_err(|older| older.to_string())?;
        let known = self.hosts.entry(host.clone()).or_default();
        if !known.clusters.contains(&cluster) {
            known.clusters.reserve_exact(1);
            known.clusters.push(cluster);
        }
        Ok(host)
    }

    fn apply(&mut self, update: &Update) -> Vec<Refused> {
        let mut refused = Vec::new();
        let mut touched = BTreeSet::new();
        let mut outcome = Ok(());
        for resource in &update.resources {
            match self.take(&resource.name, &resource.bytes) {
                Ok(host) => {
                    touched.insert(host);
                    if let Some(kept) = &mut self.kept {
                        outcome = outcome.and(kept.set(&resource.name, &resource.bytes));
                    }
                }
                Err(why) => {
                    tracing::warn!(slice = ?resource.name, %why, "a slice was refused");
                    refused.push(Refused { name: resource.name.clone(), why });
                }
            }
        }
        for name in &update.removed {
            if let Ok(key) = name.parse::<Key>() {
                self.accepted.leave(&key);
                touched.insert(key.host);
            }
            if let Some(kept) = &mut self.kept {
                outcome = outcome.and(kept.remove(name));
            }
        }
        if let Err(error) = outcome {
            tracing::error!(%error, "tables cannot be kept for a restart; they are live all the same");
        }
        self.renew(touched);
        self.publish();
        self.control.following.send_modify(|following| following.refused(&refused));
        refused
    }

    /// Makes the services of these hosts anew. One that comes out as it was stays the very same, so that
    /// nobody looks at it again.
    fn renew(&mut self, touched: BTreeSet<HostPattern>) {
        for host in touched {
            let Some(mut known) = self.hosts.remove(&host) else { continue };
            let accepted = &self.accepted;
            let slice = |cluster: &Cluster| {
                let key = Key { cluster: cluster.clone(), host: host.clone() };
                accepted.get(&key).map(|slice| (key, slice))
            };
            known.clusters.retain(|cluster| slice(cluster).is_some());
            let standing = known.clusters.iter().filter_map(slice);
            let standing = standing.filter(|(key, _)| !self.expired.contains(key)).map(|(_, slice)| &**slice);
            let services = self.here.services(standing).into_iter().map(|service| {
                let same = known.services.iter().find(|known| ***known == service);
                same.map_or_else(|| Arc::new(service), Arc::clone)
            });
            known.services = services.collect();
            if !known.clusters.is_empty() {
                self.hosts.insert(host, known);
            }
        }
    }

    fn count(&self) -> usize {
        self.hosts.values().map(|host| host.clusters.len()).sum()
    }

    fn publish(&self) {
        let services = self.hosts.values().flat_map(|host| &host.services);
        self.control.learned(services.cloned().collect());
        let count = self.count();
        self.control.following.send_modify(|following| following.slices = count);
    }

    fn contact(&mut self, agent: &str, lost: Option<&str>) {
        self.lost = lost.map(|_| self.lost.unwrap_or_else(Instant::now));
        if lost.is_none() {
            let mut touched = self.believe_again();
            touched.extend(self.expired.drain().map(|key| key.host));
            if !touched.is_empty() {
                self.renew(touched);
                self.publish();
            }
        }
        self.control.following.send_modify(|following| following.contact(agent, lost));
    }

    /// Lets go of what was promised for a time only, while no agent is heard.
    fn expire(&mut self, now: Instant) {
        let Some(silence) = self.lost.map(|lost| now.saturating_duration_since(lost)) else { return };
        let over = self.accepted.iter().filter(|slice| slice.has_expired(silence));
        let news = over.map(|slice| &slice.key).filter(|key| !self.expired.contains(*key));
        let news: Vec<_> = news.cloned().collect();
        let touched: BTreeSet<_> = news.iter().map(|key| key.host.clone()).collect();
        self.expired.extend(news);
        if !touched.is_empty() {
            tracing::warn!(slices = self.expired.len(), "have expired: no agent was heard for too long");
            self.renew(touched);
            self.publish();
        }
    }
}

/// The slices as an agent changes them.
struct Followed(Arc<Mutex<Slices>>);

impl Tables for Followed {
    fn apply(&mut self, update: &Update) -> Vec<Refused> {
        locked(&self.0).apply(update)
    }

    fn contact(&mut self, contact: Contact<'_>) {
        match contact {
            Contact::Made(agent) => {
                tracing::info!(%agent, "following an agent");
                locked(&self.0).contact(&agent.to_string(), None);
            }
            Contact::Lost(agent, why) => {
                tracing::warn!(%agent, why, "no agent there; the tables stay");
                locked(&self.0).contact(&agent.to_string(), Some(why));
            }
        }
    }
}
