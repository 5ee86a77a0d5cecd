//! Publishes trust bundles: the own one to peers, all trusted ones to the cluster's gateways. Records which peer has
//! acknowledged which bundle, as a root roll-over waits for it. Storing that is `acknowledgements`; receiving peers'
//! bundles is `peer_bundle`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use isthmus_certs::acknowledged::{Acknowledged, Edition, PeerWord, Taken};
use isthmus_certs::trust::Trusted;
use isthmus_certs::{SpiffeId, Trust, TrustDomain, spiffe_bundle};
use isthmus_store::StoreHealth;
use prost::Message as _;
use tokio::sync::Notify;

use isthmus_ads::shared::Shared;
use isthmus_ads::view::View;
use isthmus_model::slice::Cluster;
use isthmus_proto::isthmus::v1::TrustBundle;
use isthmus_trust::bundles::encode;
use isthmus_trust::join::Party;

use super::acknowledgements::Acknowledgements;

/// Pause before a failed write is retried.
const RETRY: Duration = Duration::from_secs(1);

/// Published bundles, and their acknowledgements.
pub(super) struct Bundles {
    /// The own bundle, for other clusters.
    pub(super) for_peers: Arc<Shared>,
    /// All trusted bundles, for the cluster's gateways.
    pub(super) for_gateways: Arc<Shared>,
    own: TrustDomain,
    acks: Arc<Mutex<Acknowledged>>,
    /// Acknowledgements from before a restart, until their clusters are peers again.
    before: Mutex<BTreeMap<String, PeerWord>>,
    stored: Option<Acknowledgements>,
    /// All peers are known. A file written before that would lack some, and a roll-over would not wait for them.
    is_whole: AtomicBool,
    /// The trust or an acknowledgement has changed.
    news: Arc<Notify>,
}

impl Bundles {
    /// The trust domain of the own cluster.
    pub(super) fn own_domain(&self) -> &TrustDomain {
        &self.own
    }

    /// Publishes nothing yet. Acknowledgements are kept in `stored`, if anywhere.
    pub(super) fn new(own: Party, stored: Option<(Acknowledgements, BTreeMap<String, PeerWord>)>) -> Bundles {
        let (stored, before) = stored.unzip();
        let acks = Arc::new(Mutex::new(Acknowledged {
            cluster: own.cluster.to_string(),
            trust_domain: own.trust_domain.clone(),
            offered: None,
            peers: BTreeMap::new(),
        }));
        let for_peers = Arc::new(Shared::new(|_| true));
        let (recorded, news) = (Arc::clone(&acks), Arc::new(Notify::new()));
        let told = Arc::clone(&news);
        for_peers.when_accepted(move |peer, view| {
            note(&recorded, peer, view);
            told.notify_one();
        });
        let for_gateways = Arc::new(Shared::new(|_| true));
        Bundles {
            for_peers,
            for_gateways,
            own: own.trust_domain,
            acks,
            before: Mutex::new(before.unwrap_or_default()),
            stored,
            is_whole: AtomicBool::new(false),
            news,
        }
    }

    /// All peers have been added; acknowledgements are written from now on.
    pub(super) fn set_whole(&self) {
        if !self.is_whole.swap(true, Relaxed) {
            self.news.notify_one();
        }
    }

    /// The health of the file of acknowledgements; none without a state directory.
    pub(super) fn report(&self) -> Option<StoreHealth> {
        self.stored.as_ref().map(Acknowledgements::report)
    }

    /// Awaits a peer's acknowledgement. A peer of the own trust domain has the domain's files itself.
    pub(super) fn add(&self, domain: &TrustDomain, cluster: &Cluster) {
        if *domain == self.own {
            return;
        }
        let before = self.before.lock().unwrap_or_else(PoisonError::into_inner).remove(cluster.as_str());
        let entry = before.filter(|before| before.trust_domain == *domain);
        let none = || PeerWord { trust_domain: domain.clone(), acknowledged: None };
        locked(&self.acks).peers.insert(cluster.to_string(), entry.unwrap_or_else(none));
        self.news.notify_one();
    }

    /// Publishes the bundles that are trusted now.
    pub(super) fn publish(&self, trusted: &Trusted) {
        let mut all = BTreeMap::new();
        for (domain, bundle) in trusted.bundles.iter() {
            match encode(domain, bundle, trusted.bundles.envelope(domain)) {
                Ok(bytes) => _ = all.insert(domain.to_string(), bytes),
                Err(error) => tracing::error!(%domain, %error, "cannot publish a bundle"),
            }
        }
        // The lock is not held while a view changes: an acknowledgement takes it, too.
        locked(&self.acks).offered = trusted.bundles.get(&self.own).map(Edition::from_bundle);
        if let Some(own) = all.get(self.own.as_str()).cloned() {
            self.for_peers.change(|view| _ = view.set(self.own.as_str(), own));
        }
        self.for_gateways.change(|view| {
            let gone: Vec<_> = view.iter().map(|(name, _)| Arc::clone(name)).collect();
            gone.iter().filter(|name| !all.contains_key(&***name)).for_each(|name| _ = view.remove(name));
            all.into_iter().for_each(|(name, bytes)| _ = view.set(&name, bytes));
        });
    }

    /// The published own bundle, and the one that a peer has acknowledged; none where none is awaited.
    pub(super) fn word_of(&self, cluster: &Cluster) -> Option<(Option<Edition>, Option<Taken>)> {
        let acks = locked(&self.acks);
        let entry = acks.peers.get(cluster.as_str())?;
        Some((acks.offered.clone(), entry.acknowledged.clone()))
    }

    /// Whether a peer has acknowledged the published bundle; none where no acknowledgement is awaited.
    pub(super) fn is_present(&self, cluster: &Cluster) -> Option<bool> {
        let (offered, taken) = self.word_of(cluster)?;
        Some(offered.is_some() && taken.map(|taken| taken.edition) == offered)
    }

    /// A peer's reason for rejecting the published bundle.
    pub(super) fn refusal_by(&self, cluster: &Cluster) -> Option<String> {
        let is_its = |id: &str| SpiffeId::parse(id).ok().and_then(|id| Party::of_agent(&id));
        let all = self.for_peers.all().into_iter();
        all.filter(|follower| is_its(&follower.peer).is_some_and(|party| party.cluster == *cluster))
            .find_map(|follower| follower.refusal)
    }

    /// Publishes each change of the trust, and persists acknowledgements.
    pub(super) async fn keep_telling(&self, trust: &Trust) {
        let news = Arc::clone(&self.news);
        trust.on_change(move || news.notify_one());
        let mut published = None;
        let mut saved: Option<Acknowledged> = None;
        loop {
            let trusted = trust.current();
            if published != Some(trusted.epoch) {
                self.publish(&trusted);
                published = Some(trusted.epoch);
            }
            let Some((stored, acks)) = self.unsaved(saved.as_ref()) else {
                self.news.notified().await;
                continue;
            };
            if stored.save(acks.clone()).await {
                saved = Some(acks);
            } else {
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Acknowledgements that differ from the saved ones, and where to save them.
    fn unsaved(&self, saved: Option<&Acknowledged>) -> Option<(&Acknowledgements, Acknowledged)> {
        let stored = self.stored.as_ref().filter(|_| self.is_whole.load(Relaxed))?;
        let acks = locked(&self.acks);
        (saved != Some(&*acks)).then(|| (stored, acks.clone()))
    }
}

/// Records that a peer has accepted the own bundle of this view.
fn note(acks: &Mutex<Acknowledged>, peer: &str, view: &View) {
    let Some(party) = SpiffeId::parse(peer).ok().and_then(|id| Party::of_agent(&id)) else { return };
    let mut acks = locked(acks);
    let Some(edition) = edition(&acks.trust_domain, view) else { return };
    let entry = acks.peers.get_mut(party.cluster.as_str());
    let Some(entry) = entry.filter(|entry| entry.trust_domain == party.trust_domain) else { return };
    if entry.acknowledged.as_ref().is_some_and(|taken| taken.edition == edition) {
        return;
    }
    tracing::info!(peer, sequence = edition.sequence, "peer acknowledged the own bundle");
    entry.acknowledged = Some(Taken::new(edition, SystemTime::now()));
}

fn edition(domain: &TrustDomain, view: &View) -> Option<Edition> {
    let message = TrustBundle::decode(&*view.get(domain.as_str())?.bytes).ok()?;
    Some(Edition::from_bundle(&spiffe_bundle::read(domain, &message.bundle).ok()?))
}

fn locked(acks: &Mutex<Acknowledged>) -> MutexGuard<'_, Acknowledged> {
    acks.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use isthmus_certs::{Authority, Bundle, TrustBundles};

    use super::*;
    use isthmus_ads::server::Stream;
    use isthmus_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
    use isthmus_proto::google::rpc::Status;

    const HOUR: Duration = Duration::from_secs(3600);

    fn party(cluster: &str, domain: &str) -> Party {
        Party { cluster: cluster.parse().unwrap(), trust_domain: TrustDomain::new(domain).unwrap() }
    }

    fn east() -> Party {
        party("east", "east.example")
    }

    fn add(bundles: &Bundles, party: &Party) {
        bundles.add(&party.trust_domain, &party.cluster);
    }

    /// East's trust with a bundle of this number.
    fn trust(root: &Authority, sequence: u64) -> Trust {
        let id = SpiffeId::parse("spiffe://east.example/isthmus/east/agent/a").unwrap();
        let mut bundles = TrustBundles::new();
        let own = root.trust_domain().clone();
        bundles.insert(own.clone(), Bundle::new(&own, sequence, [root.certificate()]).unwrap());
        let north = Authority::generate(TrustDomain::new("north.example").unwrap()).unwrap();
        bundles.add_root(north.trust_domain().clone(), north.certificate()).unwrap();
        Trust::new(root.issue(&id, &[], HOUR).unwrap(), bundles)
    }

    /// An agent that follows the view.
    struct Peer {
        follower: isthmus_ads::shared::FollowerHandle,
        stream: Stream,
    }

    impl Peer {
        fn new(bundles: &Bundles, id: &str) -> Peer {
            Peer { follower: bundles.for_peers.add_follower(id), stream: Stream::default() }
        }

        fn says(&mut self, bundles: &Bundles, request: &DeltaDiscoveryRequest) {
            self.stream.request(request, &bundles.for_peers.view(), &|_| true);
            self.follower.note(&self.stream);
        }

        /// Answers the next response: accepts it, or rejects it for a reason.
        fn answers(&mut self, bundles: &Bundles, refused: Option<&str>) {
            let response = self.stream.response("type", &bundles.for_peers.view(), usize::MAX).unwrap();
            assert_eq!(response.resources.len(), 1, "only the own domain's bundle");
            self.follower.note(&self.stream);
            let error = refused.map(|why| Status { message: why.to_owned(), ..Status::default() });
            let answer = DeltaDiscoveryRequest {
                response_nonce: response.nonce,
                error_detail: error,
                ..Default::default()
            };
            self.says(bundles, &answer);
        }
    }

    fn taken(bundles: &Bundles, cluster: &str) -> Option<u64> {
        bundles.word_of(&cluster.parse().unwrap())?.1.map(|taken| taken.edition.sequence)
    }

    #[test]
    fn bundle_acknowledgement_is_recorded_and_refusal_is_not() {
        let root = Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap();
        let bundles = Bundles::new(east(), None);
        for peer in
            [party("west", "west.example"), party("south", "south.example"), party("twin", "east.example")]
        {
            add(&bundles, &peer);
        }
        assert!(
            bundles.word_of(&"twin".parse().unwrap()).is_none(),
            "a peer of the own domain has the files itself"
        );
        bundles.publish(&trust(&root, 1).current());
        assert_eq!(bundles.for_gateways.view().iter().count(), 2);
        let mut west = Peer::new(&bundles, "spiffe://west.example/isthmus/west/agent/a");
        let mut south = Peer::new(&bundles, "spiffe://south.example/isthmus/south/agent/a");
        let mut false_west = Peer::new(&bundles, "spiffe://north.example/isthmus/west/agent/a");
        for peer in [&mut west, &mut south, &mut false_west] {
            peer.says(&bundles, &DeltaDiscoveryRequest::default());
        }
        false_west.answers(&bundles, None);
        assert_eq!(taken(&bundles, "west"), None, "an agent of another domain must not acknowledge for west");
        west.answers(&bundles, None);
        south.answers(&bundles, Some("disk full"));
        assert_eq!((taken(&bundles, "west"), taken(&bundles, "south")), (Some(1), None));
        bundles.publish(&trust(&root, 2).current());
        west.follower.note(&west.stream);
        assert_eq!(taken(&bundles, "west"), Some(1), "sent is not acknowledged");
        west.answers(&bundles, Some("not now"));
        assert_eq!(taken(&bundles, "west"), Some(1));
        // It subscribes again, and accepts it.
        let again = DeltaDiscoveryRequest {
            resource_names_subscribe: vec!["east.example".to_owned()],
            ..Default::default()
        };
        west.says(&bundles, &again);
        west.answers(&bundles, None);
        assert_eq!(taken(&bundles, "west"), Some(2));
        // A peer that reconnects and names the current version is not sent it again.
        let version = bundles.for_peers.view().get("east.example").unwrap().version.to_string();
        let mut south = Peer::new(&bundles, "spiffe://south.example/isthmus/south/agent/a");
        let known = [("east.example".to_owned(), version)].into();
        south.says(
            &bundles,
            &DeltaDiscoveryRequest { initial_resource_versions: known, ..Default::default() },
        );
        assert_eq!(taken(&bundles, "south"), Some(2));
    }

    #[tokio::test]
    async fn bundle_acknowledgements_survive_restart_for_current_peers() {
        let dir = tempfile::tempdir().unwrap();
        let root = Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap();
        let (west, south) = (party("west", "west.example"), party("south", "south.example"));
        let trust = trust(&root, 1);
        let begin = |peers: &[&Party]| {
            let store = isthmus_trust::join::store(dir.path());
            let bundles = Bundles::new(east(), Some(Acknowledgements::open(store, dir.path(), &east())));
            peers.iter().for_each(|peer| add(&bundles, peer));
            bundles.set_whole();
            bundles
        };
        let kept = async |bundles: &Bundles, is_so: &dyn Fn(&Acknowledged) -> bool| {
            let written = async {
                while !Acknowledged::read(&dir.path().join("acknowledged.json"))
                    .is_ok_and(|kept| is_so(&kept))
                {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::select! {
                () = bundles.keep_telling(&trust) => {}
                done = tokio::time::timeout(Duration::from_secs(30), written) => done.unwrap(),
            }
        };
        let bundles = begin(&[&west, &south]);
        kept(&bundles, &|kept| kept.offered.as_ref().is_some_and(|offered| offered.sequence == 1)).await;
        let mut peer = Peer::new(&bundles, "spiffe://west.example/isthmus/west/agent/a");
        peer.says(&bundles, &DeltaDiscoveryRequest::default());
        peer.answers(&bundles, None);
        kept(&bundles, &|kept| kept.peers["west"].acknowledged.is_some()).await;
        let again = begin(&[&west, &south]);
        assert_eq!((taken(&again, "west"), taken(&again, "south")), (Some(1), None));
        // West has another trust domain now; south is no longer a peer.
        let other = begin(&[&party("west", "other.example")]);
        assert_eq!(taken(&other, "west"), None);
        kept(&other, &|kept| kept.peers.len() == 1 && kept.peers["west"].acknowledged.is_none()).await;
        std::fs::write(dir.path().join("acknowledged.json"), "{").unwrap();
        assert_eq!(taken(&begin(&[&west]), "west"), None, "a damaged file is ignored");
    }
}
