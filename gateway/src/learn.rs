//! Services that agents give this gateway: it follows one of them, accepts slices, and puts what they come to
//! live beside the file's. Not the protocol: that is `isthmus_xds::ads`.

mod services;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isthmus_certs::{Client as Tls, IdPattern, Peer, Trust};
use isthmus_xds::accepted::Accepted;
use isthmus_xds::ads::client::{Client, Refused, Update};
use isthmus_xds::ads::subscribe::{Contact, Subscription, Tables};
use isthmus_xds::agent::SLICE;
use isthmus_xds::kept::Kept;
use isthmus_xds::proto::envoy::config::core::v3::{Locality, Node};
use isthmus_xds::slice::{Key, Slice, Staleness, version};

use crate::config::settings::Target;
use crate::control::Control;

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
        }
        Ok(())
    }
}

fn here(trust: &Trust, control: &Control) -> Here {
    let own = trust.current();
    let gateway = own.identity.id().path().rsplit('/').next().unwrap_or_default().to_owned();
    Here { cluster: control.process.fixed.node.cluster.clone(), gateway }
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
    /// By name, in order, so that the same slices always make the same tables.
    keys: BTreeMap<String, Key>,
    kept: Option<Kept>,
    lost: Option<Instant>,
    expired: HashSet<Key>,
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
            keys: BTreeMap::new(),
            kept: None,
            lost: Some(Instant::now()),
            expired: HashSet::new(),
        };
        for (name, bytes) in kept.iter().flat_map(Kept::entries) {
            if let Err(why) = slices.take(name, bytes) {
                tracing::warn!(slice = ?name, %why, "a slice that was kept is not taken");
            }
        }
        slices.kept = kept;
        if !slices.keys.is_empty() {
            tracing::info!(slices = slices.keys.len(), "begun with the tables that were kept");
            slices.publish();
        }
        Ok(slices)
    }

    /// What need not be sent again, with its version.
    fn known(&self) -> Vec<(String, String)> {
        self.kept.iter().flat_map(Kept::entries).map(|(name, bytes)| (name.clone(), version(bytes))).collect()
    }

    fn take(&mut self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let slice = Slice::decode(bytes).map_err(|error| error.to_string())?;
        if slice.key.to_string() != name {
            return Err(format!("is the slice of {}", slice.key));
        }
        if let Some(offer) = &slice.offer
            && slice.key.cluster.as_str() == self.here.cluster
            && offer.network != self.network
        {
            return Err(format!(
                "stands in network {:?}, and this gateway in {:?}; set `node.network` to that of its agent",
                offer.network, self.network
            ));
        }
        let key = slice.key.clone();
        self.accepted.take(slice).map_err(|older| older.to_string())?;
        self.keys.insert(name.to_owned(), key);
        Ok(())
    }

    fn apply(&mut self, update: &Update) -> Vec<Refused> {
        let mut refused = Vec::new();
        let mut outcome = Ok(());
        for resource in &update.resources {
            match self.take(&resource.name, &resource.bytes) {
                Ok(()) => {
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
            if let Some(key) = self.keys.get(name) {
                self.accepted.leave(key);
            }
            if let Some(kept) = &mut self.kept {
                outcome = outcome.and(kept.remove(name));
            }
        }
        if let Err(error) = outcome {
            tracing::error!(%error, "tables cannot be kept for a restart; they are live all the same");
        }
        self.publish();
        self.control.following.send_modify(|following| following.refused(&refused));
        refused
    }

    fn publish(&mut self) {
        let accepted = &self.accepted;
        self.keys.retain(|_, key| accepted.get(key).is_some());
        let standing = self.keys.values().filter(|key| !self.expired.contains(key));
        let slices = standing.filter_map(|key| accepted.get(key)).map(|slice| &**slice);
        self.control.learned(self.here.services(slices).into_iter().map(Arc::new).collect());
        self.control.following.send_modify(|following| following.slices = self.keys.len());
    }

    fn contact(&mut self, agent: &str, lost: Option<&str>) {
        self.lost = lost.map(|_| self.lost.unwrap_or_else(Instant::now));
        if lost.is_none() && !self.expired.is_empty() {
            self.expired.clear();
            self.publish();
        }
        self.control.following.send_modify(|following| following.contact(agent, lost));
    }

    /// Lets go of what was promised for a time only, while no agent is heard.
    fn expire(&mut self, now: Instant) {
        let Some(silence) = self.lost.map(|lost| now.saturating_duration_since(lost)) else { return };
        let rule = |slice: &Slice| slice.offer.as_ref().map(|offer| offer.staleness);
        let over = self.accepted.iter().filter(|slice| match rule(slice) {
            Some(Staleness::ExpireAfter(time)) => silence >= time,
            Some(Staleness::Keep | Staleness::Probe) | None => false,
        });
        let over: Vec<_> = over.map(|slice| slice.key.clone()).collect();
        let before = self.expired.len();
        self.expired.extend(over);
        if self.expired.len() > before {
            tracing::warn!(slices = self.expired.len(), "have expired: no agent was heard for too long");
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
