//! Follows the agents of other clusters, those in the file and those that join: what they send goes to `peers`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use isthmus_certs::{Client as Tls, IdPattern, Peer as Expected, Trust};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use isthmus_ads::client::{Client, Refused, Update};
use isthmus_ads::subscribe::{Answers, Contact, Retry, Subscription, Tables};
use isthmus_grpc::dial::Chain;
use isthmus_model::address::Ranges;
use isthmus_model::slice::Cluster;
use isthmus_proto::envoy::config::core::v3::Node;
use isthmus_proto::type_url::{SLICE, TRUST_BUNDLE};
use isthmus_store::Embedded;
use isthmus_trust::bundles::Keeper;
use isthmus_trust::join::{self, Joined, JoinedClusters};

use super::config::{Peer, Settings};
use super::peer::peer_access;
use super::peer_bundle::PeerBundle;
use super::peers::Peers;
use super::{Error, Owners, blocking};

/// How often the state directory is checked for clusters that have joined.
const PACE: Duration = Duration::from_secs(1);

/// Follows every peer: those in the file and those that join while this runs.
pub(super) struct Federation {
    settings: Arc<Settings>,
    trust: Trust,
    owners: Owners,
    keeper: Arc<Keeper>,
    joined: JoinedNews,
    known: BTreeSet<Cluster>,
    tasks: JoinSet<()>,
}

impl Federation {
    /// Begins with the peers in the file and those that have joined. Gateways are served afterwards: they are told that
    /// the services of all other clusters are gone.
    pub(super) async fn start(settings: Arc<Settings>, trust: Trust, owners: Owners) -> Federation {
        let keeper = Keeper::new(trust.clone(), settings.trust.clone(), settings.state.clone());
        let joined = JoinedNews::new(owners.directory.trust_store().cloned(), &settings);
        let known = settings.peers.iter().map(|peer| peer.cluster.clone()).collect();
        let peers = settings.peers.clone();
        let mut federation = Federation {
            settings,
            trust,
            owners,
            keeper: Arc::new(keeper),
            joined,
            known,
            tasks: JoinSet::new(),
        };
        peers.into_iter().for_each(|peer| federation.begin(peer));
        federation.poll().await;
        federation
    }

    /// Follows clusters that join, until dropped.
    pub(super) async fn run(mut self) -> Result<(), Error> {
        let mut pace = tokio::time::interval(PACE);
        loop {
            tokio::select! {
                _ = pace.tick() => {}
                Some(ended) = self.tasks.join_next() => ended.map_err(Error::Broken)?,
            }
            self.poll().await;
        }
    }

    /// Adds the clusters that have joined.
    async fn poll(&mut self) {
        let Some(joined) = self.joined.poll().await else { return };
        self.owners.directory.name_problems(&joined);
        let is_whole = joined.is_whole();
        for peer in joined.peers.into_iter().map(as_peer) {
            if !self.known.insert(peer.cluster.clone()) {
                continue;
            }
            tracing::info!(peer = %peer.cluster, "peer joined");
            self.owners.views.add(&peer.domain, &peer.cluster, peer_access(&self.settings, &peer));
            let (Owners { own, peers, .. }, added) = (self.owners.clone(), peer.clone());
            blocking(move || {
                own.add_peer(&added.cluster, &added.domain);
                peers.add(&added);
            })
            .await;
            self.begin(peer);
        }
        if is_whole {
            self.owners.views.set_whole();
        }
    }

    fn begin(&mut self, peer: Peer) {
        let bundle = PeerBundle::new(Arc::clone(&self.keeper), &peer);
        let offers = Offers { cluster: peer.cluster.clone(), peers: Arc::clone(&self.owners.peers), bundle };
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
    async fn poll(&mut self) -> Option<Joined> {
        let Some(mut clusters) = self.clusters.take() else { return self.none.take() };
        let (clusters, news) = blocking(move || {
            let news = clusters.poll();
            (clusters, news)
        })
        .await;
        self.clusters = Some(clusters);
        news.unwrap_or_default()
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
    let (peers, cluster) = (Arc::clone(&offers.peers), peer.cluster.clone());
    if let Err(error) = subscribe(own, peer, trust, offers).await {
        tracing::error!(%error, "cannot follow peer until the agent restarts");
        peers.contact(&cluster, Some(error.to_string()));
    }
}

/// Follows a peer until dropped.
async fn subscribe(own: Cluster, peer: Peer, trust: Trust, mut offers: Offers) -> Result<(), Error> {
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
    subscription.run(clients, &mut offers).await;
    Ok(())
}

/// Slices and bundles of one peer.
struct Offers {
    cluster: Cluster,
    peers: Arc<Peers>,
    /// Its bundles; none where it is of the own trust domain.
    bundle: Option<PeerBundle>,
}

impl Tables for Offers {
    /// Slices are decoded, and bundles written to disk, on a thread that may wait.
    async fn apply(&mut self, update: &Update) -> Vec<Refused> {
        let (update, peers, cluster) = (update.clone(), Arc::clone(&self.peers), self.cluster.clone());
        if update.type_url != TRUST_BUNDLE {
            return blocking(move || peers.apply(&cluster, &update.resources, &update.removed)).await;
        }
        let Some(mut bundle) = self.bundle.take() else { return Vec::new() };
        let (bundle, refused) = blocking(move || {
            let refused = bundle.apply(&update, |outcome| peers.record_bundle_update(&cluster, outcome));
            (bundle, refused)
        })
        .await;
        self.bundle = Some(bundle);
        refused
    }

    fn versions(&self, _type_url: &str) -> HashMap<String, String> {
        self.peers.versions(&self.cluster)
    }

    fn presented(&mut self, chain: Chain) {
        if let Some(bundle) = &mut self.bundle {
            bundle.begin(chain);
        }
    }

    async fn retry(&mut self) -> Retry {
        match &mut self.bundle {
            Some(bundle) => bundle.retry().await,
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
        self.peers.contact(&self.cluster, lost);
    }
}
