//! The views of other clusters' agents. One for each way of reaching this cluster is shared by all agents of which no
//! rule for callers tells anything; agents of a trust domain that rules name have a view of their own.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use isthmus_ads::shared::Shared;
use isthmus_ads::view::View;
use isthmus_certs::TrustDomain;
use isthmus_model::HostPattern;
use isthmus_model::address::Target;
use isthmus_model::slice::{Health, Slice};
use isthmus_registry::registry::{PeerAccess, project_for_peer};
use isthmus_trust::join::Party;

use super::reports::NotReady;

/// What the clients of a view have in common: how they reach this cluster, and the trust domain that the rules are for;
/// none: one that no rule names.
pub(super) type Kind = (PeerAccess, Option<TrustDomain>);

pub(super) struct PeerViews {
    is_gone: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    /// Other clusters' agents, and how they reach this cluster.
    parties: HashMap<Party, PeerAccess>,
    views: BTreeMap<Kind, Arc<Shared>>,
    /// The trust domains that rules have named since the start: a view stays when its last rule is gone.
    named: BTreeSet<TrustDomain>,
    /// Endpoints that the cluster's gateways find unhealthy.
    not_ready: Arc<NotReady>,
}

impl PeerViews {
    /// No peer yet. `is_gone` is as for [`Shared::new`].
    pub(super) fn new(is_gone: impl Fn(&str) -> bool + Send + Sync + 'static) -> PeerViews {
        let peers = PeerViews { is_gone: Arc::new(is_gone), state: RwLock::default() };
        for access in [PeerAccess::Direct, PeerAccess::ViaGateway, PeerAccess::Hidden] {
            peers.write().views.insert((access, None), peers.empty());
        }
        peers
    }

    fn empty(&self) -> Arc<Shared> {
        let is_gone = Arc::clone(&self.is_gone);
        Arc::new(Shared::new(move |name| is_gone(name)))
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves the agents of a cluster from now on.
    pub(super) fn add(&self, party: Party, access: PeerAccess) {
        self.write().parties.insert(party, access);
    }

    /// Whether these agents are served.
    pub(super) fn knows(&self, party: &Party) -> bool {
        self.read().parties.contains_key(party)
    }

    /// The view of these agents; none: they are not served.
    pub(super) fn view(&self, party: &Party) -> Option<Arc<Shared>> {
        let state = self.read();
        let access = *state.parties.get(party)?;
        let own = state.views.get(&(access, Some(party.trust_domain.clone())));
        own.or_else(|| state.views.get(&(access, None))).map(Arc::clone)
    }

    /// Every view.
    pub(super) fn all(&self) -> Vec<Arc<Shared>> {
        self.read().views.values().map(Arc::clone).collect()
    }

    /// Sets the endpoints that count as not ready; returns the hosts whose slices differ from now on.
    pub(super) fn set_not_ready(&self, not_ready: NotReady) -> Vec<HostPattern> {
        let before = std::mem::replace(&mut self.write().not_ready, Arc::new(not_ready));
        let now = Arc::clone(&self.read().not_ready);
        let differs = |host: &&HostPattern| before.get(*host) != now.get(*host);
        let hosts: BTreeSet<_> = before.keys().chain(now.keys()).filter(differs).cloned().collect();
        hosts.into_iter().collect()
    }

    /// The number of endpoints that count as not ready.
    pub(super) fn not_ready(&self) -> usize {
        self.read().not_ready.values().map(BTreeSet::len).sum()
    }

    /// Publishes own slices to every view that may see them, and notes which trust domains their rules name.
    pub(super) fn publish(&self, slices: &[Slice]) {
        let named = |slice: &Slice| domains(slice).cloned().collect::<Vec<_>>();
        let named: BTreeSet<_> = slices.iter().flat_map(named).collect();
        if !named.is_subset(&self.read().named) {
            self.write().named.extend(named);
        }
        let views: Vec<_> =
            self.read().views.iter().map(|(kind, shared)| (kind.clone(), Arc::clone(shared))).collect();
        let not_ready = Arc::clone(&self.read().not_ready);
        let slices: Vec<_> = slices.iter().map(|slice| for_peers(slice, &not_ready)).collect();
        // In the order of their keys: the shared view of each kind of access is the first.
        let mut shared_by_all = Vec::new();
        for ((access, domain), shared) in views {
            if domain.is_none() {
                shared_by_all = slices.iter().map(|slice| Entry::from_slice(slice, access, &[])).collect();
            }
            let domain = domain.as_slice();
            let entry = |(slice, shared): (&Cow<'_, Slice>, &Entry)| {
                let differs = domains(slice).any(|named| domain.contains(named));
                if differs { Entry::from_slice(slice, access, domain) } else { shared.clone() }
            };
            let entries: Vec<_> = slices.iter().zip(&shared_by_all).map(entry).collect();
            shared.change(|view| entries.into_iter().for_each(|entry| entry.insert_into(view)));
        }
    }

    /// The views that agents should have of their own, and do not.
    pub(super) fn missing(&self) -> Vec<Kind> {
        let state = self.read();
        let visible = state.parties.iter().filter(|(_, access)| **access != PeerAccess::Hidden);
        let named = visible.filter(|(party, _)| state.named.contains(&party.trust_domain));
        let wanted: BTreeSet<Kind> =
            named.map(|(party, access)| (*access, Some(party.trust_domain.clone()))).collect();
        wanted.into_iter().filter(|kind| !state.views.contains_key(kind)).collect()
    }

    /// Adds these views, with all own slices. Streams of agents that are served another one end, and come back.
    pub(super) fn divide(&self, kinds: Vec<Kind>, slices: &[Slice]) {
        let not_ready = Arc::clone(&self.read().not_ready);
        let slices: Vec<_> = slices.iter().map(|slice| for_peers(slice, &not_ready)).collect();
        for (access, domain) in kinds {
            let entries: Vec<_> =
                slices.iter().map(|slice| Entry::from_slice(slice, access, domain.as_slice())).collect();
            let shared = self.empty();
            shared.change(|view| entries.into_iter().for_each(|entry| entry.insert_into(view)));
            let mut state = self.write();
            state.views.insert((access, domain), shared);
            if let Some(before) = state.views.get(&(access, None)) {
                before.recheck();
            }
        }
    }
}

/// The slice with the health of its endpoints as other clusters are to know it.
fn for_peers<'a>(slice: &'a Slice, not_ready: &NotReady) -> Cow<'a, Slice> {
    let Some(not_ready) = not_ready.get(&slice.key.host) else { return Cow::Borrowed(slice) };
    let mut slice = slice.clone();
    for port in slice.offer.iter_mut().flat_map(|offer| &mut offer.ports) {
        let number = port.number;
        let is_meant = |address: &Target| match address {
            Target::Address(address) => not_ready.contains(&(number, *address)),
            Target::Name { .. } => false,
        };
        for endpoint in port.endpoints.iter_mut().filter(|endpoint| is_meant(&endpoint.address)) {
            endpoint.health = Health::NotReady;
        }
    }
    Cow::Owned(slice)
}

/// The trust domains that the rules of a slice name.
fn domains(slice: &Slice) -> impl Iterator<Item = &TrustDomain> {
    slice.offer.iter().flat_map(|offer| &offer.ports).flat_map(|port| port.access.domains())
}

/// A slice as one kind of client is sent it.
#[derive(Clone)]
struct Entry {
    name: String,
    is_offered: bool,
    bytes: Bytes,
}

impl Entry {
    fn from_slice(slice: &Slice, access: PeerAccess, domains: &[TrustDomain]) -> Entry {
        let slice = project_for_peer(slice, access, domains);
        let (name, is_offered) = (slice.key.to_string(), slice.offer.is_some());
        Entry { name, is_offered, bytes: slice.encode().into() }
    }

    /// A tombstone is for a view that has had the name.
    fn insert_into(self, view: &mut View) {
        if self.is_offered || view.get(&self.name).is_some() {
            view.set(&self.name, self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use isthmus_model::registry_file;
    use isthmus_model::slice::{Key, Order};
    use isthmus_registry::access::{Domains, WiderRules};
    use isthmus_registry::registry::{Terms, offers};

    use super::*;

    fn slice(host: &str, rules: &str) -> Slice {
        let text = format!("services: [{{ host: {host}, client_certificate: none, access: {rules} }}]");
        let services = registry_file(&text, std::path::Path::new("r.yaml")).unwrap();
        let domain = TrustDomain::new("east.example").unwrap();
        let everything =
            isthmus_registry::exports::Rule { hosts: vec![services[0].host.clone()], ..Default::default() };
        let terms = Terms {
            cluster: &"east".parse().unwrap(),
            network: "east-net",
            exports: &[everything],
            rules: &WiderRules::default(),
            domains: &Domains::new("east".parse().unwrap(), domain),
            gateways: &[],
            demands: &|_, _| true,
        };
        let (host, offer) = offers(services, &terms).pop_first().unwrap();
        let key = Key { cluster: "east".parse().unwrap(), host };
        Slice { key, order: Order { incarnation: 1, revision: 1 }, offer: Some(offer) }
    }

    fn party(cluster: &str, domain: &str) -> Party {
        Party { cluster: cluster.parse().unwrap(), trust_domain: TrustDomain::new(domain).unwrap() }
    }

    fn rules(peers: &PeerViews, party: &Party, host: &str) -> usize {
        let view = peers.view(party).unwrap();
        let slice = Slice::decode(&view.view().get(&format!("east/{host}")).unwrap().bytes).unwrap();
        slice.offer.unwrap().ports[0].access.rules().count()
    }

    const WEST: &str = "{ deny: [spiffe://west.example/ns/a/sa/b], advisory: true }";

    #[test]
    fn peer_views_are_shared_until_a_rule_names_a_domain() {
        let peers = PeerViews::new(|_| true);
        let (west, north) = (party("west", "west.example"), party("north", "north.example"));
        for one in [&west, &north] {
            peers.add(one.clone(), PeerAccess::ViaGateway);
        }
        let plain = slice("plain.example", "{ deny: [{ sources: [10.0.0.0/8] }] }");
        peers.publish(std::slice::from_ref(&plain));
        assert!(peers.missing().is_empty());
        assert!(Arc::ptr_eq(&peers.view(&west).unwrap(), &peers.view(&north).unwrap()));

        let guarded = slice("guarded.example", WEST);
        peers.publish(std::slice::from_ref(&guarded));
        let missing = peers.missing();
        assert_eq!(missing, [(PeerAccess::ViaGateway, Some(west.trust_domain.clone()))]);
        peers.divide(missing, &[plain.clone(), guarded.clone()]);
        assert!(peers.missing().is_empty());
        assert_eq!(
            (rules(&peers, &west, "guarded.example"), rules(&peers, &north, "guarded.example")),
            (1, 0)
        );
        let same = |party| peers.view(party).unwrap().view().get("east/plain.example").cloned().unwrap();
        assert_eq!(same(&west), same(&north));

        // What follows reaches both.
        peers.publish(&[slice("plain.example", WEST)]);
        assert_eq!((rules(&peers, &west, "plain.example"), rules(&peers, &north, "plain.example")), (1, 0));
    }

    #[test]
    fn peer_view_of_a_hidden_cluster_is_never_divided() {
        let peers = PeerViews::new(|_| true);
        let west = party("west", "west.example");
        peers.add(west.clone(), PeerAccess::Hidden);
        peers.publish(&[slice("guarded.example", WEST)]);
        assert!(peers.missing().is_empty());
        assert_eq!(peers.view(&west).unwrap().view().iter().count(), 0);
    }
}
