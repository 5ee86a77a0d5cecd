//! Selects the view that a client is served. There is one view for each kind of client, not for each client: the
//! cluster's own gateways, and those of other clusters' agents in [`super::peer_views`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use isthmus_certs::{SpiffeId, TrustDomain};
use tokio::sync::watch;
use tonic::Status;

use isthmus_ads::service::Directory;
use isthmus_ads::shared::{Follower, Shared};
use isthmus_envoy::export::Adapter;
use isthmus_grpc::budget::Principal;
use isthmus_model::slice::Cluster;
use isthmus_proto::type_url::{LOCAL_BINDING, SLICE, TRUST_BUNDLE};
use isthmus_registry::registry::PeerAccess;
use isthmus_registry::traffic::TrafficRules;
use isthmus_trust::join::Party;

use super::bundles::Bundles;
use super::local_bindings::LocalBindings;
use super::peer_views::PeerViews;
use super::traffic::LiveTraffic;

/// The views, and which clients see which.
pub(super) struct Views {
    /// Slices for the cluster's gateways: its own and imported ones.
    pub(super) gateways: Arc<Shared>,
    /// Slices for other clusters.
    pub(super) peers: PeerViews,
    /// Tables for the cluster's stock Envoys, if it has any.
    pub(super) envoys: Option<Adapter>,
    pub(super) bundles: Bundles,
    pub(super) bindings: LocalBindings,
    /// The policies of traffic that the gateways are told with slices.
    pub(super) traffic: LiveTraffic,
    /// The identities of the cluster's gateways.
    members: HashSet<SpiffeId>,
    hearing: Arc<RwLock<Hearing>>,
    /// Every cluster's slices are known.
    is_complete: watch::Sender<bool>,
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

    /// Whether the own services are known, and those of every peer.
    fn is_complete(&self) -> bool {
        self.has_own && self.is_whole && self.peers.values().all(|is_heard| *is_heard)
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

impl Views {
    pub(super) fn new(
        own: Cluster,
        gateways: HashSet<SpiffeId>,
        envoys: Option<Adapter>,
        (bundles, bindings): (Bundles, LocalBindings),
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
        Views {
            peers: PeerViews::new(is_gone_for_peers),
            gateways: Arc::new(Shared::new(is_gone)),
            envoys,
            bundles,
            bindings,
            traffic: LiveTraffic::default(),
            is_complete: watch::Sender::default(),
            members: gateways,
            hearing,
        }
    }

    /// With these policies of traffic.
    pub(super) fn with_traffic(self, rules: TrafficRules) -> Views {
        Views { traffic: LiveTraffic::new(rules), ..self }
    }

    /// Serves the agents of a cluster from now on; until it has sent its state, its names are not known to be gone.
    pub(super) fn add(&self, domain: &TrustDomain, cluster: &Cluster, access: PeerAccess) {
        self.peers.add(Party { cluster: cluster.clone(), trust_domain: domain.clone() }, access);
        self.hearing.write().unwrap_or_else(PoisonError::into_inner).peers.insert(cluster.clone(), false);
        self.bundles.add(domain, cluster);
    }

    /// The principal whose budget a client uses; none: the client is not served.
    pub(super) fn principal(&self, id: &SpiffeId) -> Option<Principal> {
        if self.has_member(id) {
            return Some(Principal::Gateway(id.clone()));
        }
        let party = Party::of_agent(id).filter(|party| self.peers.knows(party))?;
        Some(Principal::Peer(party.cluster))
    }

    /// Whether an identity is one of the cluster's gateways.
    pub(super) fn has_member(&self, id: &SpiffeId) -> bool {
        self.members.contains(id)
    }

    /// The trust domain of the own cluster.
    pub(super) fn trust_domain(&self) -> &TrustDomain {
        self.bundles.own_domain()
    }

    /// The streams of each view.
    pub(super) fn followers(&self) -> BTreeMap<&'static str, Vec<Follower>> {
        let peers = self.peers.all().iter().flat_map(|shared| shared.all()).collect();
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

    /// Completes once the slices of every cluster are known.
    pub(super) async fn complete(&self) {
        let mut is_complete = self.is_complete.subscribe();
        let _never_closed = is_complete.wait_for(|is_complete| *is_complete).await.is_ok();
    }

    /// All peers have been added.
    pub(super) fn set_whole(&self) {
        self.learn(|hearing| !std::mem::replace(&mut hearing.is_whole, true));
        self.bundles.set_whole();
    }

    /// Records what is known, and whether that is new: then streams are told of names that are gone.
    fn learn(&self, record: impl FnOnce(&mut Hearing) -> bool) {
        let mut hearing = self.hearing.write().unwrap_or_else(PoisonError::into_inner);
        let is_news = record(&mut hearing);
        self.is_complete.send_replace(hearing.is_complete());
        drop(hearing);
        if is_news {
            self.peers.all().iter().chain([&self.gateways]).for_each(|shared| shared.recheck());
        }
    }
}

impl Directory for Views {
    fn view(&self, peer: &SpiffeId, type_url: &str) -> Result<Arc<Shared>, Status> {
        let slices = Party::of_agent(peer).and_then(|party| self.peers.view(&party));
        if slices.is_none() && !self.has_member(peer) {
            return Err(Status::permission_denied(format!(
                "{peer} is neither one of this cluster's gateways nor the agent of a peer; list it under `gateways:` or `peers:` of this agent"
            )));
        }
        let shared = match (type_url, slices) {
            (SLICE, None) => Some(Arc::clone(&self.gateways)),
            (SLICE, Some(slices)) => Some(slices),
            (TRUST_BUNDLE, None) => Some(Arc::clone(&self.bundles.for_gateways)),
            (TRUST_BUNDLE, Some(_)) => Some(Arc::clone(&self.bundles.for_peers)),
            (LOCAL_BINDING, None) => Some(Arc::clone(&self.bindings.for_gateways)),
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

    /// Agents of a trust domain that rules name for the first time are given a view of their own.
    fn is_current(&self, peer: &SpiffeId, type_url: &str, view: &Arc<Shared>) -> bool {
        let party = Party::of_agent(peer).filter(|_| type_url == SLICE);
        party.and_then(|party| self.peers.view(&party)).is_none_or(|now| Arc::ptr_eq(&now, view))
    }
}

#[cfg(test)]
mod tests {
    use isthmus_certs::TrustDomain;
    use isthmus_model::binding::Callers;

    use super::*;

    #[test]
    fn local_bindings_are_for_own_gateways_alone() {
        let domain = |name: &str| TrustDomain::new(&format!("{name}.example")).unwrap();
        let own = Party { cluster: "east".parse().unwrap(), trust_domain: domain("east") };
        let gateway = SpiffeId::gateway(&domain("east"), "east", "gw-1").unwrap();
        let told = (Bundles::new(own.clone(), None), LocalBindings::new(&Callers::default(), Vec::new()));
        let views = Views::new(own.cluster, HashSet::from([gateway.clone()]), None, told);
        views.add(&domain("west"), &"west".parse().unwrap(), PeerAccess::Direct);
        let peer = SpiffeId::agent(&domain("west"), "west", "a").unwrap();
        assert!(views.view(&gateway, LOCAL_BINDING).is_ok());
        assert!(views.view(&peer, SLICE).is_ok());
        assert_eq!(
            views.view(&peer, LOCAL_BINDING).err().map(|error| error.code()),
            Some(tonic::Code::Unimplemented)
        );
    }

    #[tokio::test]
    async fn views_are_complete_once_every_cluster_is_known() {
        let domain = TrustDomain::new("east.example").unwrap();
        let own = Party { cluster: "east".parse().unwrap(), trust_domain: domain.clone() };
        let told = (Bundles::new(own.clone(), None), LocalBindings::new(&Callers::default(), Vec::new()));
        let views = Views::new(own.cluster, HashSet::new(), None, told);
        let west: Cluster = "west".parse().unwrap();
        views.add(&domain, &west, PeerAccess::Direct);
        views.set_own_known();
        views.set_whole();
        assert!(!*views.is_complete.borrow());
        views.contacted(&west);
        views.complete().await;
    }
}
