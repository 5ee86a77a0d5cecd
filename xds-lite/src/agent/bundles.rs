//! What an agent tells of trust domains: other clusters of its own, its gateways of all that it believes. And which
//! peer has taken what, as a root roll-over waits for it. Not what is heard from peers: that is `follow`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use isthmus_certs::acknowledged::{Acknowledged, Edition, PeerWord, Taken};
use isthmus_certs::trust::Trusted;
use isthmus_certs::{SpiffeId, Trust, TrustDomain, spiffe_bundle};
use prost::Message as _;
use tokio::task::spawn_blocking;

use isthmus_ads::shared::Shared;
use isthmus_ads::view::View;
use isthmus_model::slice::Cluster;
use isthmus_proto::isthmus::v1::TrustBundle;
use isthmus_trust::bundles::encode;
use isthmus_trust::join::Party;

/// How soon a change of the trust is told.
const PACE: Duration = Duration::from_millis(50);
/// What could not be written is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// Where it is kept for a restart, and for `isthmus-certs rotate`.
const FILE: &str = "acknowledged.json";

/// What is told, and who has taken it.
pub(super) struct Bundles {
    /// What other clusters see.
    pub(super) project_for_peer: Arc<Shared>,
    /// What the cluster's gateways see.
    pub(super) at_home: Arc<Shared>,
    own: TrustDomain,
    words: Arc<Mutex<Acknowledged>>,
    /// What peers had taken before a restart, until they are peers again.
    before: Mutex<BTreeMap<String, PeerWord>>,
    file: Option<PathBuf>,
    /// All peers are known; what is kept before that would lack some, and a roll-over would not wait for them.
    is_whole: AtomicBool,
}

impl Bundles {
    /// Nothing is told yet.
    pub(super) fn new(own: Party, state: Option<&Path>) -> Bundles {
        let file = state.map(|folder| folder.join(FILE));
        let before = file.as_deref().map(|file| kept(file, &own)).unwrap_or_default();
        let words = Arc::new(Mutex::new(Acknowledged {
            cluster: own.cluster.to_string(),
            trust_domain: own.trust_domain.clone(),
            offered: None,
            peers: BTreeMap::new(),
        }));
        let project_for_peer = Arc::new(Shared::new(|_| true));
        let heard = Arc::clone(&words);
        project_for_peer.when_accepted(move |peer, view| note(&heard, peer, view));
        let at_home = Arc::new(Shared::new(|_| true));
        Bundles {
            project_for_peer,
            at_home,
            own: own.trust_domain,
            words,
            before: Mutex::new(before),
            file,
            is_whole: AtomicBool::new(false),
        }
    }

    /// Everybody who is a peer has been added; what they have is kept from now on.
    pub(super) fn set_whole(&self) {
        self.is_whole.store(true, Relaxed);
    }

    /// Awaits the word of a peer's agent. One of the own domain has the domain's files itself.
    pub(super) fn add(&self, domain: &TrustDomain, cluster: &Cluster) {
        if *domain == self.own {
            return;
        }
        let before = self.before.lock().unwrap_or_else(PoisonError::into_inner).remove(cluster.as_str());
        let word = before.filter(|before| before.trust_domain == *domain);
        let none = || PeerWord { trust_domain: domain.clone(), acknowledged: None };
        locked(&self.words).peers.insert(cluster.to_string(), word.unwrap_or_else(none));
    }

    /// Tells what is trusted now.
    pub(super) fn publish(&self, trusted: &Trusted) {
        let mut all = BTreeMap::new();
        for (domain, bundle) in trusted.bundles.iter() {
            match encode(domain, bundle, trusted.bundles.envelope(domain)) {
                Ok(bytes) => _ = all.insert(domain.to_string(), bytes),
                Err(error) => tracing::error!(%domain, %error, "a bundle cannot be told"),
            }
        }
        // Not held while a view changes: who accepts one notes it here.
        locked(&self.words).offered = trusted.bundles.get(&self.own).map(Edition::of);
        if let Some(own) = all.get(self.own.as_str()).cloned() {
            self.project_for_peer.change(|view| _ = view.set(self.own.as_str(), own));
        }
        self.at_home.change(|view| {
            let gone: Vec<_> = view.iter().map(|(name, _)| Arc::clone(name)).collect();
            gone.iter().filter(|name| !all.contains_key(&***name)).for_each(|name| _ = view.remove(name));
            all.into_iter().for_each(|(name, bytes)| _ = view.set(&name, bytes));
        });
    }

    /// What is told of the own domain, and what a peer has taken of it; nothing, where that is not awaited.
    pub(super) fn word_of(&self, cluster: &Cluster) -> Option<(Option<Edition>, Option<Taken>)> {
        let words = locked(&self.words);
        let word = words.peers.get(cluster.as_str())?;
        Some((words.offered.clone(), word.acknowledged.clone()))
    }

    /// Whether a peer has the bundle that is told now; nothing, where its word is not awaited.
    pub(super) fn is_present(&self, cluster: &Cluster) -> Option<bool> {
        let (offered, taken) = self.word_of(cluster)?;
        Some(offered.is_some() && taken.map(|taken| taken.edition) == offered)
    }

    /// Why a peer does not take what it was told, in its own words.
    pub(super) fn refusal_by(&self, cluster: &Cluster) -> Option<String> {
        let is_its = |id: &str| SpiffeId::parse(id).ok().and_then(|id| Party::of_agent(&id));
        let all = self.project_for_peer.all().into_iter();
        all.filter(|one| is_its(&one.peer).is_some_and(|party| party.cluster == *cluster))
            .find_map(|one| one.refusal)
    }

    /// Tells each change of the trust, and keeps who has taken it.
    pub(super) async fn keep_telling(&self, trust: &Trust) {
        let mut told = None;
        let mut kept: Option<Acknowledged> = None;
        let mut complained = None;
        let mut pace = tokio::time::interval(PACE);
        loop {
            pace.tick().await;
            let trusted = trust.current();
            if told != Some(trusted.epoch) {
                self.publish(&trusted);
                told = Some(trusted.epoch);
            }
            let Some((file, words)) = self.unkept(kept.as_ref()) else { continue };
            match keep(file, words.clone()).await {
                Ok(()) => (kept, complained) = (Some(words), None),
                Err(error) => {
                    let why = error.to_string();
                    if complained.as_ref() != Some(&why) {
                        tracing::error!(
                            error = why,
                            "what peers have acknowledged cannot be kept; a root roll-over waits"
                        );
                    }
                    complained = Some(why);
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// What is not kept yet, and where it is to be.
    fn unkept(&self, kept: Option<&Acknowledged>) -> Option<(PathBuf, Acknowledged)> {
        let file = self.file.as_ref().filter(|_| self.is_whole.load(Relaxed))?;
        let words = locked(&self.words);
        (kept != Some(&*words)).then(|| (file.clone(), words.clone()))
    }
}

async fn keep(file: PathBuf, words: Acknowledged) -> io::Result<()> {
    let written = spawn_blocking(move || {
        if let Some(folder) = file.parent() {
            isthmus_store::private_folder(folder)?;
        }
        if file.symlink_metadata().is_ok_and(|facts| !facts.is_file()) {
            aside(&file);
        }
        words.write(&file).map_err(io::Error::other)
    });
    written.await?
}

/// What was kept. Without it peers say again what they have.
fn kept(file: &Path, own: &Party) -> BTreeMap<String, PeerWord> {
    match Acknowledged::read(file) {
        Ok(kept) if kept.trust_domain == own.trust_domain && kept.cluster == own.cluster.as_str() => {
            kept.peers
        }
        Ok(_) => BTreeMap::new(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
        Err(error) => {
            tracing::error!(file = %file.display(), %error, "what peers had acknowledged is lost until they say it again");
            aside(file);
            BTreeMap::new()
        }
    }
}

/// Sets aside what is no record of acknowledgements and stands in its place.
fn aside(file: &Path) {
    match isthmus_store::set_aside(file) {
        Ok(aside) => {
            tracing::warn!(aside = %aside.display(), "set aside what was damaged; look at it or remove it")
        }
        Err(error) => tracing::warn!(file = %file.display(), %error, "cannot set aside what is damaged"),
    }
}

/// A peer has taken the own domain's bundle as the view has it.
fn note(words: &Mutex<Acknowledged>, peer: &str, view: &View) {
    let Some(party) = SpiffeId::parse(peer).ok().and_then(|id| Party::of_agent(&id)) else { return };
    let mut words = locked(words);
    let Some(edition) = edition(&words.trust_domain, view) else { return };
    let word = words.peers.get_mut(party.cluster.as_str());
    let Some(word) = word.filter(|word| word.trust_domain == party.trust_domain) else { return };
    if word.acknowledged.as_ref().is_some_and(|taken| taken.edition == edition) {
        return;
    }
    tracing::info!(peer, sequence = edition.sequence, "has acknowledged the own bundle");
    word.acknowledged = Some(Taken::new(edition, SystemTime::now()));
}

fn edition(domain: &TrustDomain, view: &View) -> Option<Edition> {
    let message = TrustBundle::decode(&*view.get(domain.as_str())?.bytes).ok()?;
    Some(Edition::of(&spiffe_bundle::read(domain, &message.bundle).ok()?))
}

fn locked(words: &Mutex<Acknowledged>) -> MutexGuard<'_, Acknowledged> {
    words.lock().unwrap_or_else(PoisonError::into_inner)
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
            Peer { follower: bundles.project_for_peer.follow(id), stream: Stream::default() }
        }

        fn says(&mut self, bundles: &Bundles, request: &DeltaDiscoveryRequest) {
            self.stream.request(request, &bundles.project_for_peer.view(), &|_| true);
            self.follower.note(&self.stream);
        }

        /// What it is told, which is refused for a reason or taken.
        fn answers(&mut self, bundles: &Bundles, refused: Option<&str>) {
            let response =
                self.stream.response("type", &bundles.project_for_peer.view(), usize::MAX).unwrap();
            assert_eq!(response.resources.len(), 1, "the own domain's alone");
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
    fn who_takes_the_bundle_is_noted_and_who_refuses_it_is_not() {
        let root = Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap();
        let bundles = Bundles::new(east(), None);
        for peer in
            [party("west", "west.example"), party("south", "south.example"), party("twin", "east.example")]
        {
            add(&bundles, &peer);
        }
        assert!(bundles.word_of(&"twin".parse().unwrap()).is_none(), "it has the files itself");
        bundles.publish(&trust(&root, 1).current());
        assert_eq!(bundles.at_home.view().iter().count(), 2);
        let mut west = Peer::new(&bundles, "spiffe://west.example/isthmus/west/agent/a");
        let mut south = Peer::new(&bundles, "spiffe://south.example/isthmus/south/agent/a");
        let mut false_west = Peer::new(&bundles, "spiffe://north.example/isthmus/west/agent/a");
        for peer in [&mut west, &mut south, &mut false_west] {
            peer.says(&bundles, &DeltaDiscoveryRequest::default());
        }
        false_west.answers(&bundles, None);
        assert_eq!(taken(&bundles, "west"), None, "nobody's word for another domain");
        west.answers(&bundles, None);
        south.answers(&bundles, Some("disk full"));
        assert_eq!((taken(&bundles, "west"), taken(&bundles, "south")), (Some(1), None));
        bundles.publish(&trust(&root, 2).current());
        west.follower.note(&west.stream);
        assert_eq!(taken(&bundles, "west"), Some(1), "told is not taken");
        west.answers(&bundles, Some("not now"));
        assert_eq!(taken(&bundles, "west"), Some(1));
        // It asks for it once more, and takes it.
        let again = DeltaDiscoveryRequest {
            resource_names_subscribe: vec!["east.example".to_owned()],
            ..Default::default()
        };
        west.says(&bundles, &again);
        west.answers(&bundles, None);
        assert_eq!(taken(&bundles, "west"), Some(2));
        // Who comes back and has it need not be told.
        let version = bundles.project_for_peer.view().get("east.example").unwrap().version.to_string();
        let mut south = Peer::new(&bundles, "spiffe://south.example/isthmus/south/agent/a");
        let known = [("east.example".to_owned(), version)].into();
        south.says(
            &bundles,
            &DeltaDiscoveryRequest { initial_resource_versions: known, ..Default::default() },
        );
        assert_eq!(taken(&bundles, "south"), Some(2));
    }

    #[tokio::test]
    async fn what_was_taken_is_known_after_a_restart_of_those_who_are_peers_still() {
        let dir = tempfile::tempdir().unwrap();
        let root = Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap();
        let (west, south) = (party("west", "west.example"), party("south", "south.example"));
        let trust = trust(&root, 1);
        let begin = |peers: &[&Party]| {
            let bundles = Bundles::new(east(), Some(dir.path()));
            peers.iter().for_each(|peer| add(&bundles, peer));
            bundles.set_whole();
            bundles
        };
        let kept = async |bundles: &Bundles, is_so: &dyn Fn(&Acknowledged) -> bool| {
            let written = async {
                while !Acknowledged::read(&dir.path().join(FILE)).is_ok_and(|kept| is_so(&kept)) {
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
        // It has another trust domain now; and south is none any more.
        let other = begin(&[&party("west", "other.example")]);
        assert_eq!(taken(&other, "west"), None);
        kept(&other, &|kept| kept.peers.len() == 1 && kept.peers["west"].acknowledged.is_none()).await;
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(taken(&begin(&[&west]), "west"), None, "it says it again");
    }
}
