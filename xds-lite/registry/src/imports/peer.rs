//! One cluster that may bring something: what stands of it, and what it has said of names that it was not granted.
//! Not what becomes of its slices beside those of others.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use prost::Message;

use isthmus_model::SliceStore;
use isthmus_model::host::HostPattern;
use isthmus_model::slice::{Cluster, Key, Slice, version};

use super::expiry::Expiry;
use super::facts::Facts;
use super::holdings::Holdings;
use super::{Consent, Imports, PeerUsage};

/// Who claims names; an earlier one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claimant {
    /// The own cluster.
    Own,
    /// A peer, by its place.
    Peer(usize),
}

/// Who claims a name, and with which host.
pub(super) type Claims = HashMap<HostPattern, BTreeSet<(Claimant, HostPattern)>>;

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) consent: Consent,
    pub(super) slices: SliceStore,
    /// The facts of each of its slices.
    pub(super) facts: HashMap<HostPattern, Facts>,
    pub(super) holdings: Holdings,
    /// Since when nothing is heard of it.
    pub(super) lost: Option<Instant>,
    pub(super) expiry: Expiry,
}

impl Imports {
    /// The name and version of each slice of a cluster: what it need not send again.
    pub fn versions(&self, of: &Cluster) -> impl Iterator<Item = (String, String)> {
        let offered = |peer: &Peer, host: &HostPattern| {
            let key = Key { cluster: peer.consent.cluster.clone(), host: host.clone() };
            Some((key.to_string(), version(peer.slices.bytes(&key)?)))
        };
        let peer = self.peer(of).into_iter();
        peer.flat_map(move |peer| peer.slices.hosts().filter_map(move |host| offered(peer, host)))
    }

    /// The names of the slices to persist, by cluster.
    pub fn persistent(&self) -> impl Iterator<Item = (&Cluster, String)> {
        self.peers
            .iter()
            .flat_map(|peer| peer.slices.entries().map(|(name, _)| (&peer.consent.cluster, name)))
    }

    /// The encoded slice to persist.
    #[must_use]
    pub fn to_persist(&self, of: &Cluster, key: &Key) -> Option<&[u8]> {
        self.peer(of)?.slices.bytes(key)
    }

    fn peer(&self, of: &Cluster) -> Option<&Peer> {
        self.peers.get(self.place(of)?)
    }

    /// What a cluster has of this one's memory and disk.
    #[must_use]
    pub fn usage(&self, of: &Cluster) -> Option<PeerUsage> {
        Some(self.peer(of)?.holdings.usage())
    }
}

impl Peer {
    pub(super) fn new(consent: Consent) -> Peer {
        let holdings = Holdings::new(consent.limits);
        Peer {
            consent,
            slices: SliceStore::default(),
            facts: HashMap::new(),
            holdings,
            lost: None,
            expiry: Expiry::default(),
        }
    }

    /// Replaces the facts of a host, and returns the previous ones.
    pub(super) fn set_facts(&mut self, host: &HostPattern, facts: Option<Facts>) -> Option<Facts> {
        let after = facts.as_ref().and_then(|facts| facts.expires_after);
        let before = match facts {
            Some(facts) => self.facts.insert(host.clone(), facts),
            None => self.facts.remove(host),
        };
        self.expiry.replace(host, before.as_ref().and_then(|facts| facts.expires_after), after);
        before
    }

    /// The host that is meant, where a name is of a slice of this cluster.
    pub(super) fn own_host(&self, name: &str) -> Option<HostPattern> {
        let Key { cluster, host } = name.parse().ok()?;
        (cluster == self.consent.cluster).then_some(host)
    }

    pub(super) fn why_not_granted(&self) -> String {
        let cluster = &self.consent.cluster;
        format!(
            "has a name that {cluster} was not granted; add it to `imports` (hosts) or export a shared workspace"
        )
    }

    /// Records a withdrawal. Returns the oldest remembered one if it had to be dropped.
    pub(super) fn record_withdrawal(&mut self, host: &HostPattern) -> Option<Key> {
        let host = self.holdings.forget(host)?;
        let key = Key { cluster: self.consent.cluster.clone(), host };
        self.slices.purge(&key);
        Some(key)
    }
}

/// How many other slices of a peer have a name.
pub(super) fn sharing(claims: &Claims, place: usize, host: &HostPattern, name: &HostPattern) -> usize {
    let peer = Claimant::Peer(place);
    let of_name = claims.get(name).into_iter().flatten().rev();
    let of_peer = of_name.take_while(|(other, _)| *other >= peer);
    of_peer.filter(|(other, theirs)| *other == peer && theirs != host).count()
}

/// The names of a host itself; those of its instances stand under it.
pub(super) fn names(slice: &Slice) -> Vec<HostPattern> {
    let Some(offer) = &slice.offer else { return Vec::new() };
    let instances = offer.ports.iter().flat_map(|port| {
        let seen = port.endpoints.iter().flat_map(|endpoint| &endpoint.aliases);
        let told = port.ready.iter().flat_map(|ready| &ready.instances);
        seen.chain(told.flat_map(|instance| &instance.aliases))
    });
    let instances: BTreeSet<_> = instances.cloned().map(HostPattern::Exact).collect();
    std::iter::once(slice.key.host.clone()).chain(offer.aliases.iter().cloned()).chain(instances).collect()
}

/// What of a slice tells whether it takes the slice back.
#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(bool, tag = "5")]
    withdrawn: bool,
}

pub(super) fn is_withdrawal(bytes: &[u8]) -> bool {
    Head::decode(bytes).is_ok_and(|head| head.withdrawn)
}
