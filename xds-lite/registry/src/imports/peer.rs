//! One cluster that may bring something: what stands of it, and what it has said of names that it was not granted.
//! Not what becomes of its slices beside those of others.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Instant;

use prost::Message;

use isthmus_model::SliceStore;
use isthmus_model::host::HostPattern;
use isthmus_model::slice::{Cluster, Key, Slice, version};

use super::holdings::Holdings;
use super::{Consent, ImportStatus, Imports, PeerUsage};

/// Who claims a name: the own cluster is first, then each peer by its place.
pub(super) type Claims = HashMap<HostPattern, BTreeSet<(usize, HostPattern)>>;

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) consent: Consent,
    pub(super) slices: SliceStore,
    pub(super) holdings: Holdings,
    /// Since when nothing is heard of it.
    pub(super) lost: Option<Instant>,
    /// What went because nothing was heard for too long.
    pub(super) expired: HashSet<HostPattern>,
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
        self.peers.get(self.rank(of)?)
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
        Peer { consent, slices: SliceStore::default(), holdings, lost: None, expired: HashSet::new() }
    }

    /// The host that is meant, where a name is of a slice of this cluster.
    pub(super) fn own_host(&self, name: &str) -> Option<HostPattern> {
        let Key { cluster, host } = name.parse().ok()?;
        (cluster == self.consent.cluster).then_some(host)
    }

    pub(super) fn show_not_granted(&self, host: &HostPattern) -> ImportStatus {
        let cluster = self.consent.cluster.clone();
        let why = format!(
            "has a name that {cluster} was not granted; add it to `imports` (hosts) or export a shared workspace"
        );
        ImportStatus { cluster, host: host.clone(), quarantined: Some(why) }
    }

    /// Records a withdrawal. Returns the oldest remembered one if it had to be dropped.
    pub(super) fn record_withdrawal(&mut self, host: &HostPattern) -> Option<Key> {
        let host = self.holdings.leave(host)?;
        let key = Key { cluster: self.consent.cluster.clone(), host };
        self.slices.purge(&key);
        Some(key)
    }

    pub(super) fn offers(&self, host: &HostPattern) -> bool {
        let key = Key { cluster: self.consent.cluster.clone(), host: host.clone() };
        self.slices.contains(&key)
    }
}

/// How many other slices of a rank have a name.
pub(super) fn sharing(claims: &Claims, rank: usize, host: &HostPattern, name: &HostPattern) -> usize {
    let of_name = claims.get(name).into_iter().flatten().rev();
    let of_rank = of_name.take_while(|(other, _)| *other >= rank);
    of_rank.filter(|(other, theirs)| *other == rank && theirs != host).count()
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
