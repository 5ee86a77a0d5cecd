//! Follows an agent: accepts its slices and puts the resulting services into the tables beside the file's. All of it
//! blocks: it decodes and compiles on the thread of `service_source`. The protocol is in `isthmus_ads`.

mod access;
mod bindings;
mod bundles;
mod persisted;
mod services;
mod stale_probes;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isthmus_ads::client::{Client, Refused, Resource, Update};
use isthmus_ads::subscribe::{Answers, Contact, Subscription, Tables};
use isthmus_certs::{Client as Tls, IdPattern, Peer, Trust};
use isthmus_health::matrix::Distances;
use isthmus_health::schedule::Probes;
use isthmus_health::tcp::run_probes;
use isthmus_model::HostPattern;
use isthmus_model::SliceStore;
use isthmus_model::slice::{Key, Slice};
use isthmus_proto::envoy::config::core::v3::{Locality, Node};
use isthmus_proto::type_url::{LOCAL_BINDING, SLICE, TRUST_BUNDLE};
use isthmus_store::Persistence;

use crate::config::settings::Target;
use crate::control::Control;
use crate::priorities::Position;

use bindings::Bindings;
use bundles::Bundles;
use persisted::Persisted;
use services::Here;
use stale_probes::{Asking, Names};

/// Interval between checks for expired slices.
const PACE: Duration = Duration::from_secs(1);

/// The subscription to the agents.
pub(crate) struct Follow {
    subscription: Subscription,
    persisted: Arc<Persisted>,
    bindings: Arc<Bindings>,
    /// None: bundles are files.
    bundles: Option<Bundles>,
}

impl Follow {
    /// Sets up the subscription; persisted tables are in use when this returns.
    ///
    /// # Errors
    /// TLS cannot be configured from the trust.
    pub(crate) fn begin(
        servers: Vec<Target>,
        state: Option<&Path>,
        trust: Trust,
        control: Arc<Control>,
    ) -> io::Result<Follow> {
        let (here, own) = (here(&trust, &control), trust.current());
        let bundles = Bundles::begin(&trust, &control);
        let subscription = subscription(servers, trust, &control)?;
        let bindings = Bindings::begin(Arc::clone(&control), own.identity.id(), state);
        let persisted = Persisted::begin(Slices::new(control, here), state);
        Ok(Follow { subscription, persisted, bindings, bundles })
    }

    /// Follows until dropped.
    pub(crate) async fn run(self) -> io::Result<()> {
        let Follow { subscription, persisted, bindings, bundles } = self;
        let mut clients: Vec<_> = bundles.iter().map(Bundles::client).collect();
        clients.push(Client::of_tables(SLICE));
        clients.push(bindings.client());
        let slices = persisted.slices();
        let aging = async {
            let mut pace = tokio::time::interval(PACE);
            loop {
                pace.tick().await;
                locked(&slices).expire(Instant::now());
            }
        };
        let measuring = keep_measuring(Arc::clone(&slices));
        let mut followed = Followed { slices: Arc::clone(&slices), bindings, bundles };
        tokio::select! {
            () = subscription.run(clients, &mut followed) => {}
            () = aging => {}
            () = run_probes(Asking(Arc::clone(&slices))) => {}
            () = measuring => {}
        }
        Ok(())
    }
}

/// Applies the distances of other clusters' gateways as they change.
async fn keep_measuring(slices: Arc<Mutex<Slices>>) {
    let mut distances = locked(&slices).control.matrix.distances.subscribe();
    while distances.changed().await.is_ok() {
        let distances = distances.borrow_and_update().clone();
        locked(&slices).measure(distances);
    }
}

fn here(trust: &Trust, control: &Control) -> Here {
    let own = trust.current();
    let id = own.identity.id();
    let gateway = id.path().rsplit('/').next().unwrap_or_default().to_owned();
    let domain = id.trust_domain().clone();
    let node = &control.process.fixed.node;
    let position = Position { cluster: node.cluster.clone(), locality: node.locality.clone() };
    let distances = control.matrix.distances.borrow().clone();
    Here { position, gateway, domain, down: HashSet::new(), distances }
}

/// TLS to the agents of a cluster.
///
/// # Errors
/// It cannot be configured from the trust.
pub(crate) fn tls_to_agents(trust: Trust, cluster: &str) -> io::Result<Tls> {
    let own = trust.current();
    let agents = IdPattern::agents(own.identity.id().trust_domain(), cluster).map_err(io::Error::other)?;
    Tls::new(trust, Peer::Matching(vec![agents]), &[b"h2"]).map_err(io::Error::other)
}

fn subscription(servers: Vec<Target>, trust: Trust, control: &Control) -> io::Result<Subscription> {
    let node = &control.process.fixed.node;
    let tls = tls_to_agents(trust, &node.cluster)?;
    let locality = Locality {
        region: node.locality.region.clone(),
        zone: node.locality.zone.clone(),
        sub_zone: node.locality.sub_zone.clone(),
    };
    Ok(Subscription {
        servers,
        within: None,
        tls: Arc::new(tls),
        node: Node {
            id: node.id.clone(),
            cluster: node.cluster.clone(),
            locality: Some(locality),
            user_agent_name: "isthmus-gateway".to_owned(),
            ..Node::default()
        },
        answers: Answers::OF_OWN,
    })
}

fn locked(slices: &Mutex<Slices>) -> MutexGuard<'_, Slices> {
    slices.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The accepted slices.
struct Slices {
    control: Arc<Control>,
    here: Here,
    network: String,
    store: SliceStore,
    persistence: Option<Persistence>,
    unreachable_since: Option<Instant>,
    /// The versions were sent to an agent: slices that it does not name are removed.
    are_versions_sent: bool,
    expired: HashSet<Key>,
    /// Started when the agent becomes unreachable.
    probes: Option<Probes>,
    /// Allowed ranges of the host names that are probed.
    names: Names,
}

impl Slices {
    fn new(control: Arc<Control>, here: Here) -> Slices {
        Slices {
            here,
            network: control.process.fixed.node.network.clone(),
            control,
            store: SliceStore::default(),
            persistence: None,
            unreachable_since: Some(Instant::now()),
            are_versions_sent: false,
            expired: HashSet::new(),
            probes: None,
            names: Names::default(),
        }
    }

    /// Stores a valid slice and returns its key.
    fn insert(&mut self, name: &str, bytes: &[u8]) -> Result<Key, String> {
        let slice = Slice::decode(bytes).map_err(|error| error.to_string())?;
        if slice.key.to_string() != name {
            return Err(format!("is the slice of {}", slice.key));
        }
        if let Some(offer) = &slice.offer
            && self.here.is_own(&slice.key.cluster)
            // Without `node.network` in the file, any network is accepted.
            && !self.network.is_empty()
            && offer.network != self.network
        {
            return Err(format!(
                "is in network {:?}, but this gateway is in {:?}; set `node.network` to the network of its agent",
                offer.network, self.network
            ));
        }
        self.store.insert(&slice, bytes).map_err(|older| older.to_string())?;
        Ok(slice.key)
    }

    /// Stores a valid slice from an agent and persists it.
    fn accept(&mut self, resource: &Resource) -> Result<Key, String> {
        let Resource { name, bytes, .. } = resource;
        let old = name.parse::<Key>().ok().and_then(|key| self.store.bytes(&key));
        let is_known = old.is_some_and(|old| old == &bytes[..]);
        let key = self.insert(name, bytes)?;
        if !is_known {
            let revision = || self.store.order(&key).map(|order| order.revision);
            let _change =
                tracing::debug_span!("change", cluster = %key.cluster, host = %key.host, revision = revision())
                    .entered();
            tracing::debug!("slice accepted");
            self.persist(name);
        }
        Ok(key)
    }

    fn apply(&mut self, update: &Update) -> Vec<Refused> {
        let mut refused = Vec::new();
        let mut touched = BTreeSet::new();
        for resource in &update.resources {
            match self.accept(resource) {
                Ok(key) => _ = touched.insert(key.host),
                Err(why) => {
                    tracing::warn!(slice = ?resource.name, %why, "slice refused");
                    refused.push(Refused { name: resource.name.clone(), why });
                }
            }
        }
        for name in &update.removed {
            let Ok(key) = name.parse::<Key>() else { continue };
            self.store.forget(&key);
            self.persist(name);
            touched.insert(key.host);
        }
        self.rebuild(touched);
        self.refused(&refused);
        refused
    }

    fn refused(&self, refused: &[Refused]) {
        self.control.following.send_modify(|following| following.refused(refused));
    }

    /// Persists a changed or removed slice.
    fn persist(&self, name: &str) {
        if let Some(persistence) = &self.persistence {
            persistence.changed(name.to_owned());
        }
    }

    /// Rebuilds the services of these hosts and applies them.
    fn rebuild(&self, touched: BTreeSet<HostPattern>) {
        let services = |host: HostPattern| {
            let slices = self.store.of_host(&host);
            let standing = slices.iter().filter(|slice| !self.expired.contains(&slice.key));
            (host, self.here.services(standing))
        };
        self.control.replace_learned_hosts(touched.into_iter().map(services));
        self.control.following.send_modify(|following| following.slices = self.store.len());
    }

    /// Rebuilds the hosts behind gateways whose distance has changed.
    fn measure(&mut self, distances: Distances) {
        let before = std::mem::replace(&mut self.here.distances, distances);
        let changed = self.here.distances.differing(&before);
        let leads_there = |slice: &Slice| {
            let mut gateways = slice.offer.iter().flat_map(|offer| &offer.gateways);
            !self.here.is_own(&slice.key.cluster)
                && gateways.any(|gateway| changed.contains(&gateway.address))
        };
        let touched: BTreeSet<_> =
            self.store.iter().filter(leads_there).map(|slice| slice.key.host).collect();
        tracing::info!(
            gateways = changed.len(),
            hosts = touched.len(),
            "distances of other clusters' gateways changed"
        );
        if !touched.is_empty() {
            self.rebuild(touched);
        }
    }

    fn contact(&mut self, agent: &str, lost: Option<&str>) {
        self.unreachable_since = lost.map(|_| self.unreachable_since.unwrap_or_else(Instant::now));
        if lost.is_none() {
            let mut touched = self.clear_probe_results();
            touched.extend(self.expired.drain().map(|key| key.host));
            if !touched.is_empty() {
                self.rebuild(touched);
            }
        }
        self.control.following.send_modify(|following| following.contact(agent, lost));
    }

    /// Drops slices whose `stale` limit has passed while the agent is unreachable.
    fn expire(&mut self, now: Instant) {
        let Some(silence) = self.unreachable_since.map(|since| now.saturating_duration_since(since)) else {
            return;
        };
        let over = self.store.limited().filter(|(_, rule)| rule.is_over(silence));
        let news = over.map(|(key, _)| key).filter(|key| !self.expired.contains(*key));
        let news: Vec<_> = news.cloned().collect();
        let touched: BTreeSet<_> = news.iter().map(|key| key.host.clone()).collect();
        self.expired.extend(news);
        if !touched.is_empty() {
            tracing::warn!(
                slices = self.expired.len(),
                "slices expired: agent unreachable for longer than their stale limit"
            );
            self.rebuild(touched);
        }
    }
}

/// Applies an agent's updates to the slices, to the bindings, and to the bundles if the gateway manages its trust.
struct Followed {
    slices: Arc<Mutex<Slices>>,
    bindings: Arc<Bindings>,
    bundles: Option<Bundles>,
}

impl Tables for Followed {
    async fn apply(&mut self, update: &Update) -> Vec<Refused> {
        match &self.bundles {
            _ if update.type_url == LOCAL_BINDING => self.bindings.apply(update),
            Some(bundles) if update.type_url == TRUST_BUNDLE => {
                let refused = bundles.apply(update);
                locked(&self.slices).refused(&refused);
                refused
            }
            _ => locked(&self.slices).apply(update),
        }
    }

    fn versions(&self, type_url: &str) -> HashMap<String, String> {
        if type_url == LOCAL_BINDING {
            return self.bindings.versions();
        }
        let mut slices = locked(&self.slices);
        slices.are_versions_sent = true;
        slices.store.versions()
    }

    fn contact(&mut self, contact: Contact<'_>) {
        match contact {
            Contact::Made(agent) => {
                tracing::info!(%agent, "connected to the agent");
                locked(&self.slices).contact(&agent.to_string(), None);
            }
            Contact::Lost(agent, why) => {
                tracing::warn!(%agent, why, "agent unreachable; keeping the last tables");
                locked(&self.slices).contact(&agent.to_string(), Some(why));
            }
        }
    }
}
