//! Follows the agents of other clusters: their slices go into the state, invalid ones are rejected.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use isthmus_certs::{Client as Tls, IdPattern, Peer as Expected, Trust};
use parking_lot::{Mutex, MutexGuard};
use tokio::task::{JoinSet, spawn_blocking};
use tracing::Instrument as _;

use isthmus_ads::client::{Client, Refused, Resource, Update};
use isthmus_ads::subscribe::{Again, Answers, Contact, Subscription, Tables};
use isthmus_grpc::dial::Chain;
use isthmus_model::address::Ranges;
use isthmus_model::slice::Cluster;
use isthmus_proto::envoy::config::core::v3::Node;
use isthmus_proto::type_url::{SLICE, TRUST_BUNDLE};
use isthmus_registry::imports::DecodedSlice;
use isthmus_store::Embedded;
use isthmus_trust::bundles::Keeper;
use isthmus_trust::join::{self, Joined, JoinedClusters};

use super::config::{Peer, Settings};
use super::peer::peer_access;
use super::peer_bundle::PeerBundle;
use super::state::State;
use super::{Error, locked};

/// Slices applied under one lock.
const AT_ONCE: usize = 32;
/// Bytes of slices applied under one lock.
const BYTES_AT_ONCE: usize = 128 << 10;
/// How often the state directory is checked for clusters that have joined.
const PACE: Duration = Duration::from_secs(1);

/// Follows every peer: those in the file and those that join while this runs.
pub(super) struct Federation {
    settings: Arc<Settings>,
    trust: Trust,
    state: Arc<Mutex<State>>,
    keeper: Arc<Keeper>,
    joined: JoinedNews,
    known: BTreeSet<Cluster>,
    tasks: JoinSet<()>,
}

impl Federation {
    /// Begins with the peers in the file and those that have joined. Gateways are served afterwards: they are told that
    /// the services of all other clusters are gone.
    pub(super) async fn start(
        settings: Arc<Settings>,
        trust: Trust,
        state: Arc<Mutex<State>>,
    ) -> Result<Federation, Error> {
        let keeper = Keeper::new(trust.clone(), settings.trust.clone(), settings.state.clone());
        let joined = JoinedNews::new(locked(&state).trust_store.clone(), &settings);
        let known = settings.peers.iter().map(|peer| peer.cluster.clone()).collect();
        let peers = settings.peers.clone();
        let mut federation = Federation {
            settings,
            trust,
            state,
            keeper: Arc::new(keeper),
            joined,
            known,
            tasks: JoinSet::new(),
        };
        peers.into_iter().for_each(|peer| federation.begin(peer));
        federation.look().await?;
        Ok(federation)
    }

    /// Follows clusters that join, until dropped.
    pub(super) async fn run(mut self) -> Result<(), Error> {
        let mut pace = tokio::time::interval(PACE);
        loop {
            tokio::select! {
                _ = pace.tick() => {}
                Some(ended) = self.tasks.join_next() => ended.map_err(Error::Broken)?,
            }
            self.look().await?;
        }
    }

    async fn look(&mut self) -> Result<(), Error> {
        let Some(joined) = self.joined.poll().await? else { return Ok(()) };
        locked(&self.state).name_problems(&joined);
        let is_whole = joined.is_whole();
        for peer in joined.peers.into_iter().map(as_peer) {
            if !self.known.insert(peer.cluster.clone()) {
                continue;
            }
            tracing::info!(peer = %peer.cluster, "peer joined");
            {
                let mut state = locked(&self.state);
                state.views.add(&peer.domain, &peer.cluster, peer_access(&self.settings, &peer));
                state.add_peer(&peer);
            }
            self.begin(peer);
        }
        if is_whole {
            locked(&self.state).views.set_whole();
        }
        Ok(())
    }

    fn begin(&mut self, peer: Peer) {
        let bundle = PeerBundle::new(Arc::clone(&self.keeper), &peer);
        let offers = Offers { cluster: peer.cluster.clone(), state: Arc::clone(&self.state), bundle };
        let span = tracing::info_span!("peer", cluster = %peer.cluster);
        let (own, trust) = (self.settings.cluster.clone(), self.trust.clone());
        self.tasks.spawn(follow_or_log(own, peer, trust, offers).instrument(span));
    }
}

/// The clusters that have joined, read off the async workers.
struct JoinedNews {
    /// None without a state directory, and while a thread reads.
    clusters: Option<JoinedClusters>,
    /// Without a state directory no cluster has joined, which is told once.
    none: Option<Joined>,
}

impl JoinedNews {
    fn new(store: Option<Embedded>, settings: &Settings) -> JoinedNews {
        let clusters = store.zip(settings.state.as_deref());
        let clusters = clusters.map(|(store, state)| JoinedClusters::new(store, state));
        JoinedNews { none: clusters.is_none().then(Joined::default), clusters }
    }

    /// The joined clusters, if they have changed. A store that cannot be used reports that itself.
    async fn poll(&mut self) -> Result<Option<Joined>, Error> {
        let Some(mut clusters) = self.clusters.take() else { return Ok(self.none.take()) };
        let read = spawn_blocking(move || {
            let news = clusters.poll();
            (clusters, news)
        });
        let (clusters, news) = read.await.map_err(Error::Broken)?;
        self.clusters = Some(clusters);
        Ok(news.unwrap_or_default())
    }
}

fn as_peer(joined: join::Peer) -> Peer {
    let join::Introduction { party, network, address, gateways: _ } = joined.introduction;
    Peer {
        cluster: party.cluster,
        address,
        within: Some(Ranges::default()),
        domain: party.trust_domain,
        network: Some(network),
    }
}

/// Follows a peer; one that cannot be followed is logged, and the others go on.
async fn follow_or_log(own: Cluster, peer: Peer, trust: Trust, offers: Offers) {
    let (state, cluster) = (Arc::clone(&offers.state), peer.cluster.clone());
    if let Err(error) = follow(own, peer, trust, offers).await {
        tracing::error!(%error, "cannot follow peer until the agent restarts");
        locked(&state).contact(&cluster, Some(error.to_string()));
    }
}

/// Follows a peer until dropped.
async fn follow(own: Cluster, peer: Peer, trust: Trust, mut offers: Offers) -> Result<(), Error> {
    let agents = IdPattern::agents(&peer.domain, peer.cluster.as_str())?;
    let tls = Tls::new(trust, Expected::Matching(vec![agents]), &[b"h2"])?;
    let node = Node {
        id: format!("agent~{own}"),
        cluster: own.to_string(),
        user_agent_name: "isthmus-agent".to_owned(),
        ..Node::default()
    };
    let servers = vec![peer.address.clone()];
    let subscription =
        Subscription { servers, within: peer.within, tls: Arc::new(tls), node, answers: Answers::OF_PEERS };
    let mut clients = vec![Client::of_tables(SLICE)];
    // No known versions: after a restart the peer sends its bundle again, which is small, and the outcome is recorded.
    clients.extend(offers.bundle.as_ref().map(|_| Client::new(TRUST_BUNDLE, [])));
    subscription.follow(clients, &mut offers).await;
    Ok(())
}

/// Splits slices into pieces of at most [`AT_ONCE`] slices and [`BYTES_AT_ONCE`] bytes; a larger slice is a piece by
/// itself.
fn pieces(mut resources: &[Resource]) -> impl Iterator<Item = &[Resource]> {
    std::iter::from_fn(move || {
        let sizes = resources.iter().take(AT_ONCE).scan(0, |sum, resource| {
            *sum += resource.bytes.len();
            Some(*sum)
        });
        let count = sizes.take_while(|sum| *sum <= BYTES_AT_ONCE).count().max(1);
        let (piece, rest) = resources.split_at_checked(count)?;
        resources = rest;
        Some(piece)
    })
}

/// Slices and bundles of one peer.
struct Offers {
    cluster: Cluster,
    state: Arc<Mutex<State>>,
    /// Its bundles; none where it is of the own trust domain.
    bundle: Option<PeerBundle>,
}

impl Offers {
    /// Applies an update in pieces, so that other changes wait for one piece of a large one at most.
    fn take(&self, update: &Update) -> Vec<Refused> {
        let mut refused = self.change(|state| state.take(&self.cluster, Vec::new(), &[]));
        for resources in pieces(&update.resources) {
            let admitted: Vec<_> = self.change(|state| {
                let admit =
                    |resource: &Resource| state.imports.admit(&self.cluster, &resource.name, &resource.bytes);
                resources.iter().map(admit).collect()
            });
            // Slices are decoded without the lock.
            let decoded = resources.iter().zip(admitted).map(|(resource, admitted)| {
                let Resource { name, bytes, .. } = resource;
                let decode =
                    |is_admitted: bool| is_admitted.then(|| DecodedSlice::decode(name, bytes)).transpose();
                (name.as_str(), admitted.and_then(decode))
            });
            let decoded = decoded.collect();
            refused.extend(self.change(|state| state.take(&self.cluster, decoded, &[])));
        }
        for removed in update.removed.chunks(AT_ONCE) {
            refused.extend(self.change(|state| state.take(&self.cluster, Vec::new(), removed)));
        }
        refused
    }

    /// Changes the state under its lock, and hands the lock to the next waiter: after a plain unlock this thread would
    /// lock it again before a waiter wakes.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = locked(&self.state);
        let done = change(&mut state);
        MutexGuard::unlock_fair(state);
        done
    }
}

impl Tables for Offers {
    fn apply(&mut self, update: &Update) -> Vec<Refused> {
        match &mut self.bundle {
            Some(bundle) if update.type_url == TRUST_BUNDLE => bundle.apply(update, |outcome| {
                locked(&self.state).record_bundle_update(&self.cluster, outcome);
            }),
            _ => self.take(update),
        }
    }

    fn versions(&self, _type_url: &str) -> HashMap<String, String> {
        locked(&self.state).known(&self.cluster).into_iter().collect()
    }

    fn shown(&mut self, chain: Chain) {
        if let Some(bundle) = &mut self.bundle {
            bundle.begin(chain);
        }
    }

    async fn again(&mut self) -> Again {
        match &mut self.bundle {
            Some(bundle) => bundle.again().await,
            None => std::future::pending().await,
        }
    }

    fn contact(&mut self, contact: Contact<'_>) {
        let lost = match contact {
            Contact::Made(agent) => {
                tracing::info!(%agent, "connected to peer");
                None
            }
            Contact::Lost(agent, why) => {
                tracing::warn!(%agent, why, "peer unreachable; keeping its last slices");
                Some(why.to_owned())
            }
        };
        locked(&self.state).contact(&self.cluster, lost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn update_pieces_are_limited_by_slices_and_bytes() {
        let resources = |sizes: &[usize]| -> Vec<Resource> {
            let resource = |size: &usize| Resource {
                name: String::new(),
                version: String::new(),
                bytes: vec![0; *size].into(),
            };
            sizes.iter().map(resource).collect()
        };
        let counts = |sizes: &[usize]| pieces(&resources(sizes)).map(<[_]>::len).collect::<Vec<_>>();
        assert_eq!(counts(&[]), [0; 0]);
        assert_eq!(counts(&[1; 70]), [32, 32, 6]);
        assert_eq!(counts(&[BYTES_AT_ONCE / 2; 5]), [2, 2, 1]);
        assert_eq!(counts(&[1, BYTES_AT_ONCE * 4, BYTES_AT_ONCE * 4, 1]), [1, 1, 1, 1]);
    }
}
