//! Selects the view that a client is served. There is one view for each kind of client, not for each client: the
//! cluster's own gateways, and other clusters' agents by how they reach this one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use isthmus_certs::SpiffeId;
use tonic::Status;

use isthmus_ads::service::Directory;
use isthmus_ads::shared::{Follower, Shared};
use isthmus_envoy::export::Adapter;
use isthmus_grpc::budget::Principal;
use isthmus_model::slice::Cluster;
use isthmus_proto::type_url::{SLICE, TRUST_BUNDLE};
use isthmus_registry::registry::PeerAccess;
use isthmus_trust::join::Party;

use super::bundles::Bundles;

/// The views, and which clients see which.
pub(super) struct Views {
    /// Slices for the cluster's gateways: its own and imported ones.
    pub(super) gateways: Arc<Shared>,
    /// Slices for other clusters.
    pub(super) peers: BTreeMap<PeerAccess, Arc<Shared>>,
    /// Tables for the cluster's stock Envoys, if it has any.
    pub(super) envoys: Option<Adapter>,
    pub(super) bundles: Bundles,
    members: RwLock<Members>,
    hearing: Arc<RwLock<Hearing>>,
}

/// Which clusters' slices are known.
#[derive(Default)]
struct Hearing {
    /// The peers, and whether each has sent its state.
    peers: HashMap<Cluster, bool>,
    /// All peers are known; those that have joined may not have been read yet.
    is_whole: bool,
    /// The own services are known; registrations may not have been read yet.
    has_own: bool,
}

impl Hearing {
    fn read(shared: &RwLock<Hearing>) -> RwLockReadGuard<'_, Hearing> {
        shared.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a name of this cluster that is not in the view is gone.
    fn knows(&self, own: &Cluster, cluster: &Cluster) -> bool {
        let others = || if cluster == own { self.has_own } else { self.is_whole };
        self.peers.get(cluster).copied().unwrap_or_else(others)
    }
}

fn cluster_of(name: &str) -> Option<Cluster> {
    name.split_once('/').and_then(|(cluster, _)| cluster.parse().ok())
}

#[derive(Default)]
struct Members {
    gateways: HashSet<SpiffeId>,
    /// Other clusters' agents, and their access to this cluster.
    peers: HashMap<Party, PeerAccess>,
}

impl Views {
    pub(super) fn new(
        own: Cluster,
        gateways: HashSet<SpiffeId>,
        envoys: Option<Adapter>,
        bundles: Bundles,
    ) -> Views {
        let hearing: Arc<RwLock<Hearing>> = Arc::default();
        // An own name is gone once registry files and registrations have been read, a peer's once it has sent its state.
        let (known, here) = (Arc::clone(&hearing), own.clone());
        let is_gone = move |name: &str| {
            cluster_of(name).is_none_or(|cluster| Hearing::read(&known).knows(&here, &cluster))
        };
        // Peers are served own names only.
        let known = Arc::clone(&hearing);
        let is_gone_for_peers =
            move |name: &str| cluster_of(name) != Some(own.clone()) || Hearing::read(&known).has_own;
        let kinds = [PeerAccess::Direct, PeerAccess::ViaGateway, PeerAccess::Hidden];
        Views {
            peers: kinds.map(|kind| (kind, Arc::new(Shared::new(is_gone_for_peers.clone())))).into(),
            gateways: Arc::new(Shared::new(is_gone)),
            envoys,
            bundles,
            members: RwLock::new(Members { gateways, peers: HashMap::new() }),
            hearing,
        }
    }

    /// Serves the agents of a cluster from now on; until it has sent its state, its names are not known to be gone.
    pub(super) fn add(&self, domain: &isthmus_certs::TrustDomain, cluster: &Cluster, sees: PeerAccess) {
        let party = Party { cluster: cluster.clone(), trust_domain: domain.clone() };
        self.members.write().unwrap_or_else(PoisonError::into_inner).peers.insert(party, sees);
        self.hearing.write().unwrap_or_else(PoisonError::into_inner).peers.insert(cluster.clone(), false);
        self.bundles.add(domain, cluster);
    }

    /// The principal whose budget a client uses; none: the client is not served.
    pub(super) fn principal(&self, id: &SpiffeId) -> Option<Principal> {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        if members.gateways.contains(id) {
            return Some(Principal::Gateway(id.clone()));
        }
        members.sees(id)?;
        Some(Principal::Peer(Party::of_agent(id)?.cluster))
    }

    /// The streams of each view.
    pub(super) fn followers(&self) -> BTreeMap<&'static str, Vec<Follower>> {
        let peers = self.peers.values().flat_map(|shared| shared.all()).collect();
        BTreeMap::from([("gateways", self.gateways.all()), ("peers", peers)])
    }

    /// A cluster has sent its state.
    pub(super) fn contacted(&self, cluster: &Cluster) {
        self.learn(|hearing| hearing.peers.insert(cluster.clone(), true) != Some(true));
    }

    /// Own services have been read as a whole.
    pub(super) fn set_own_known(&self) {
        self.learn(|hearing| !std::mem::replace(&mut hearing.has_own, true));
    }

    /// All peers have been added.
    pub(super) fn set_whole(&self) {
        self.learn(|hearing| !std::mem::replace(&mut hearing.is_whole, true));
        self.bundles.set_whole();
    }

    /// Records what is known, and whether that is new: then streams are told of names that are gone.
    fn learn(&self, record: impl FnOnce(&mut Hearing) -> bool) {
        if record(&mut self.hearing.write().unwrap_or_else(PoisonError::into_inner)) {
            self.peers.values().chain([&self.gateways]).for_each(|shared| shared.recheck());
        }
    }
}

impl Members {
    /// The access of another cluster's agent; none: it is not a peer's agent.
    fn sees(&self, id: &SpiffeId) -> Option<PeerAccess> {
        self.peers.get(&Party::of_agent(id)?).copied()
    }
}

impl Directory for Views {
    fn view(&self, peer: &SpiffeId, type_url: &str) -> Result<Arc<Shared>, Status> {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        let sees = members.sees(peer);
        if sees.is_none() && !members.gateways.contains(peer) {
            return Err(Status::permission_denied(format!(
                "{peer} is neither one of this cluster's gateways nor the agent of a peer; list it under `gateways:` or `peers:` of this agent"
            )));
        }
        let shared = match (type_url, sees) {
            (SLICE, None) => Some(Arc::clone(&self.gateways)),
            (SLICE, Some(sees)) => self.peers.get(&sees).map(Arc::clone),
            (TRUST_BUNDLE, None) => Some(Arc::clone(&self.bundles.for_gateways)),
            (TRUST_BUNDLE, Some(_)) => Some(Arc::clone(&self.bundles.for_peers)),
            (_, None) => self.envoys.as_ref().and_then(|envoys| envoys.view(type_url)),
            (_, Some(_)) => None,
        };
        shared.ok_or_else(|| {
            Status::unimplemented(
                "this agent serves service slices and trust bundles; for Listeners, Clusters and assignments set `envoy` of a gateway under `gateways:`",
            )
        })
    }

    fn named(&self, peer: &SpiffeId, type_url: &str) -> Result<Arc<Shared>, Status> {
        let view = self.view(peer, type_url)?;
        Ok(self.envoys.as_ref().and_then(|envoys| envoys.named(type_url)).unwrap_or(view))
    }
}
