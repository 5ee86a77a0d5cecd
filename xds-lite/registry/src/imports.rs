//! What other clusters offer, and what of it is let in: each speaks for itself alone, under names that it was
//! granted, and a name that is taken is not taken over. Pure. Not how it arrives.

mod consent;
mod decode;
mod holdings;
mod peer;
mod probing;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use serde::Serialize;

use isthmus_health::schedule::Probes;
use isthmus_model::address::Target;
use isthmus_model::host::{HostName, HostPattern};
use isthmus_model::slice::{Cluster, Key, Offer, Slice};

pub use consent::Consent;
pub use decode::DecodedSlice;
pub use holdings::{PeerUsage, SliceLimits};
pub use probing::Stale;

use holdings::Size;
use peer::{Claims, Peer, names, sharing};

/// What is offered and what is let in.
#[derive(Debug, Default)]
pub struct Imports {
    /// By rank: what an earlier one has, a later one does not take over.
    peers: Vec<Peer>,
    /// Who claims a name: the own cluster is first, then each peer by its place.
    claims: Claims,
    own: BTreeMap<HostPattern, Own>,
    dirty: BTreeSet<(usize, HostPattern)>,
    /// Where slices of silent clusters lead that are kept while they answer.
    probes: Probes,
    /// The probed addresses must be computed again.
    probe_targets_changed: bool,
}

/// What is known of the own services.
#[derive(Debug)]
struct Own {
    names: Vec<HostPattern>,
    ports: Vec<(u16, isthmus_model::slice::Tls)>,
    merge: bool,
}

/// What becomes of a slice of another cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The gateways get it, as it is here.
    Imported(Slice),
    /// The gateways get it without the targets that are down, which are all of them: its names must not lead
    /// to a wildcard of somebody else meanwhile.
    Unreachable(Slice, String),
    /// They do not, and why.
    Quarantined(String),
}

/// What to write to disk of an inserted slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Nothing: its name was not granted.
    Nothing,
    /// The slice.
    Slice {
        /// The record of an old withdrawn slice to delete.
        forgets: Option<Key>,
    },
}

/// A slice of another cluster as status shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportStatus {
    /// Whose.
    pub cluster: Cluster,
    /// Which.
    pub host: HostPattern,
    /// Why it is quarantined; none: it is imported.
    #[serde(rename = "held")]
    pub quarantined: Option<String>,
}

impl Imports {
    /// Nothing is offered yet.
    #[must_use]
    pub fn new(consents: Vec<Consent>) -> Imports {
        let mut imports = Imports::default();
        consents.into_iter().for_each(|consent| imports.add(consent));
        imports
    }

    /// One more may bring something, after all others.
    pub fn add(&mut self, consent: Consent) {
        self.peers.push(Peer::new(consent));
    }

    /// Admits, decodes and inserts a slice of a cluster.
    ///
    /// # Errors
    /// Why it is refused; the previous slice stays.
    pub fn restore(&mut self, from: &Cluster, name: &str, bytes: &[u8]) -> Result<Stored, String> {
        if !self.admit(from, name, bytes)? {
            return Ok(Stored::Nothing);
        }
        self.insert(from, DecodedSlice::decode(name, bytes)?)
    }

    /// Inserts a decoded slice in place of the previous one of its cluster and host.
    ///
    /// # Errors
    /// Why it is refused; the previous slice stays.
    pub fn insert(&mut self, from: &Cluster, decoded: DecodedSlice<'_>) -> Result<Stored, String> {
        let DecodedSlice { slice, bytes, names: after } = decoded;
        let size = Size { bytes: bytes.len() as u64, names: after.len() as u64 };
        let Some(rank) = self.rank(from) else { return Err("is of an unknown cluster".to_owned()) };
        let Some(peer) = self.peers.get_mut(rank) else { return Ok(Stored::Nothing) };
        peer.consent.check(&slice)?;
        let host = slice.key.host.clone();
        let before = peer.slices.get(&slice.key).as_ref().map(names).unwrap_or_default();
        let sharing = after.iter().map(|name| sharing(&self.claims, rank + 1, &host, name)).max();
        if slice.offer.is_some() {
            peer.holdings.check(&host, size, sharing.unwrap_or_default())?;
        }
        self.probe_targets_changed |= peer.lost.is_some();
        let is_offered = slice.offer.is_some();
        let is_changed = peer.slices.insert(&slice, bytes).map_err(|outdated| outdated.to_string())?;
        let stored = if is_offered {
            peer.holdings.put(&host, size);
            Stored::Slice { forgets: None }
        } else {
            Stored::Slice { forgets: peer.record_withdrawal(&host) }
        };
        if is_changed {
            self.claim(rank + 1, &host, &before, &after);
        }
        Ok(stored)
    }

    /// A slice is no longer given to this cluster. Says whether there was one.
    pub fn leave(&mut self, from: &Cluster, host: &HostPattern) -> bool {
        let Some(rank) = self.rank(from) else { return false };
        let key = Key { cluster: from.clone(), host: host.clone() };
        let Some(peer) = self.peers.get_mut(rank) else { return false };
        self.probe_targets_changed |= peer.lost.is_some();
        peer.holdings.not_granted(host, false);
        let before = peer.slices.get(&key).as_ref().map(names).unwrap_or_default();
        let stood = peer.slices.forget(&key);
        if stood {
            peer.record_withdrawal(host);
            self.claim(rank + 1, host, &before, &[]);
        }
        stood
    }

    /// Notes what the own cluster has under a host.
    pub fn own(&mut self, slice: &Slice) {
        let host = &slice.key.host;
        let before = self.own.get(host).map(|own| own.names.clone()).unwrap_or_default();
        let after = names(slice);
        match &slice.offer {
            Some(offer) => {
                let ports = offer.ports.iter().map(|port| (port.number, port.tls)).collect();
                self.own.insert(host.clone(), Own { names: after.clone(), ports, merge: offer.merge });
            }
            None => _ = self.own.remove(host),
        }
        self.claim(0, host, &before, &after);
    }

    /// Marks a cluster as unreachable since then; none: it is reachable again.
    pub fn set_unreachable_since(&mut self, with: &Cluster, now: Option<Instant>) {
        let Some(rank) = self.rank(with) else { return };
        let Some(peer) = self.peers.get_mut(rank) else { return };
        let was_lost = peer.lost.is_some();
        match now {
            Some(now) => _ = peer.lost.get_or_insert(now),
            None => {
                peer.lost = None;
                let back: Vec<_> = peer.expired.drain().collect();
                back.iter().for_each(|host| self.judge_again(rank + 1, host));
            }
        }
        if was_lost != now.is_some() {
            self.probe_anew(rank);
        }
    }

    /// Lets go of what was promised for a time only, of clusters that are not heard of.
    pub fn expire(&mut self, now: Instant) {
        let mut expired = Vec::new();
        for (rank, peer) in self.peers.iter_mut().enumerate() {
            let Some(silence) = peer.lost.map(|lost| now.saturating_duration_since(lost)) else { continue };
            for (key, _) in peer.slices.limited().filter(|(_, rule)| rule.is_over(silence)) {
                if peer.expired.insert(key.host.clone()) {
                    expired.push((rank + 1, key.host.clone()));
                }
            }
        }
        expired.iter().for_each(|(rank, host)| self.judge_again(*rank, host));
    }

    /// Each slice whose verdict may have changed, once.
    pub fn changes(&mut self) -> Vec<(Key, Verdict)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().filter_map(|(rank, host)| self.verdict(rank, &host)).collect()
    }

    /// All that is offered, and what became of it.
    #[must_use]
    pub fn shown(&self) -> Vec<ImportStatus> {
        let slices = self
            .peers
            .iter()
            .enumerate()
            .flat_map(|(rank, peer)| peer.slices.hosts().map(move |host| (rank + 1, host)));
        let not_granted = self
            .peers
            .iter()
            .flat_map(|peer| peer.holdings.all_not_granted().iter().map(|host| peer.show_not_granted(host)));
        let mut shown: Vec<_> =
            slices.filter_map(|(rank, host)| self.show(rank, host)).chain(not_granted).collect();
        shown.sort_by(|a, b| (&a.host, &a.cluster).cmp(&(&b.host, &b.cluster)));
        shown
    }

    /// The hosts of other clusters that have a name: as their own, as an alias, or as an instance's alias.
    pub fn hosts_of(&self, name: &HostPattern) -> impl Iterator<Item = &HostPattern> {
        let claims = self.claims.get(name).into_iter().flatten();
        claims.filter(|(rank, _)| *rank > 0).map(|(_, host)| host)
    }

    /// What is offered under one host, and what became of it.
    #[must_use]
    pub fn shown_of(&self, host: &HostPattern) -> Vec<ImportStatus> {
        let offering = self.peers.iter().enumerate().filter(|(_, peer)| peer.offers(host));
        let not_granted = self.peers.iter().filter(|peer| peer.holdings.all_not_granted().contains(host));
        let not_granted = not_granted.map(|peer| peer.show_not_granted(host));
        let mut shown: Vec<_> =
            offering.filter_map(|(place, _)| self.show(place + 1, host)).chain(not_granted).collect();
        shown.sort_by(|a, b| a.cluster.cmp(&b.cluster));
        shown
    }

    /// Whether an address that a name resolved to may be one of a cluster that has the name.
    #[must_use]
    pub fn may_stand_at(&self, name: &Target, ip: IpAddr) -> bool {
        self.peers.iter().any(|peer| peer.consent.allows(name) && peer.consent.gateways.allow(ip))
    }

    fn show(&self, rank: usize, host: &HostPattern) -> Option<ImportStatus> {
        let (Key { cluster, host }, verdict) = self.verdict(rank, host)?;
        let quarantined = match verdict {
            Verdict::Imported(_) => None,
            Verdict::Unreachable(_, why) | Verdict::Quarantined(why) => Some(why),
        };
        Some(ImportStatus { cluster, host, quarantined })
    }

    fn rank(&self, cluster: &Cluster) -> Option<usize> {
        self.peers.iter().position(|peer| peer.consent.cluster == *cluster)
    }

    /// Moves the claims of a host from some names to others. Those that come after it and share one are looked at
    /// again: what its own cluster has beside it, and what comes before, does not change by it.
    fn claim(&mut self, rank: usize, host: &HostPattern, before: &[HostPattern], after: &[HostPattern]) {
        for name in before {
            if let Some(claims) = self.claims.get_mut(name) {
                claims.remove(&(rank, host.clone()));
                if claims.is_empty() {
                    self.claims.remove(name);
                }
            }
        }
        for name in after {
            self.claims.entry(name.clone()).or_default().insert((rank, host.clone()));
        }
        self.mark_dirty(rank, host, before.iter().chain(after));
    }

    /// A host whose slice stays has begun or ceased to count.
    fn judge_again(&mut self, rank: usize, host: &HostPattern) {
        let peer = rank.checked_sub(1).and_then(|place| self.peers.get(place));
        let slice = peer.and_then(|peer| {
            peer.slices.get(&Key { cluster: peer.consent.cluster.clone(), host: host.clone() })
        });
        let names = slice.as_ref().map(names).unwrap_or_default();
        self.mark_dirty(rank, host, names.iter());
    }

    fn mark_dirty<'a>(
        &mut self,
        rank: usize,
        host: &HostPattern,
        names: impl Iterator<Item = &'a HostPattern>,
    ) {
        for claims in names.filter_map(|name| self.claims.get(name)) {
            self.dirty.extend(claims.iter().rev().take_while(|(other, _)| *other > rank).cloned());
        }
        if rank > 0 {
            self.dirty.insert((rank, host.clone()));
        }
    }

    fn verdict(&self, rank: usize, host: &HostPattern) -> Option<(Key, Verdict)> {
        let peer = self.peers.get(rank.checked_sub(1)?)?;
        let key = Key { cluster: peer.consent.cluster.clone(), host: host.clone() };
        let Some(slice) = peer.slices.get(&key) else {
            return Some((key, Verdict::Quarantined("is withdrawn".to_owned())));
        };
        let verdict = if peer.expired.contains(host) {
            Verdict::Quarantined("has expired: its cluster has not been heard of for too long".to_owned())
        } else {
            let judged = self.judge(rank, peer, &slice);
            judged.map_or_else(Verdict::Quarantined, |slice| self.as_reached(peer, slice))
        };
        Some((key, verdict))
    }

    fn judge(&self, rank: usize, peer: &Peer, slice: &Slice) -> Result<Slice, String> {
        let host = &slice.key.host;
        if !peer.consent.is_reachable {
            return Err("is in a network that this one may not reach".to_owned());
        }
        let Some(offer) = &slice.offer else { return Err("is withdrawn".to_owned()) };
        for (other, theirs) in self.earlier(rank, host) {
            if theirs != host {
                return Err(format!("is called as {theirs} of {} is, too", self.called(other)));
            }
            self.may_merge(other, host, offer)?;
        }
        Ok(self.as_here(rank, peer, slice, offer))
    }

    /// Who claims a name before a rank, and may: a claim that was not granted counts for nothing.
    fn earlier(&self, rank: usize, name: &HostPattern) -> impl Iterator<Item = (usize, &HostPattern)> {
        let claims = self.claims.get(name).into_iter().flatten();
        let earlier = claims.take_while(move |(other, _)| *other < rank);
        earlier.filter(|(other, host)| self.may_claim(*other, host)).map(|(other, host)| (*other, host))
    }

    fn may_claim(&self, rank: usize, host: &HostPattern) -> bool {
        rank.checked_sub(1).is_none_or(|place| {
            self.peers.get(place).is_some_and(|peer| {
                peer.consent.is_reachable && peer.consent.grants(host) && !peer.expired.contains(host)
            })
        })
    }

    fn called(&self, rank: usize) -> &str {
        let peer = rank.checked_sub(1).and_then(|place| self.peers.get(place));
        peer.map_or("this cluster", |peer| peer.consent.cluster.as_str())
    }

    fn may_merge(&self, other: usize, host: &HostPattern, offer: &Offer) -> Result<(), String> {
        let theirs = self.ports_and_merge(other, host);
        let whose = self.called(other);
        let Some((ports, merge)) = theirs else { return Ok(()) };
        if !(merge && offer.merge) {
            return Err(format!(
                "has the name of a service of {whose}; with `merge: true` on both sides they would be one"
            ));
        }
        let differs = offer
            .ports
            .iter()
            .any(|port| ports.iter().any(|(number, tls)| *number == port.number && *tls != port.tls));
        if differs {
            Err(format!("differs in TLS from that of {whose}, so they are not one"))
        } else {
            Ok(())
        }
    }

    fn ports_and_merge(
        &self,
        rank: usize,
        host: &HostPattern,
    ) -> Option<(Vec<(u16, isthmus_model::slice::Tls)>, bool)> {
        let Some(place) = rank.checked_sub(1) else {
            return self.own.get(host).map(|own| (own.ports.clone(), own.merge));
        };
        let peer = self.peers.get(place)?;
        let key = Key { cluster: peer.consent.cluster.clone(), host: host.clone() };
        let offer = peer.slices.get(&key)?.offer?;
        Some((offer.ports.iter().map(|port| (port.number, port.tls)).collect(), offer.merge))
    }

    /// The slice with nothing that its cluster was not granted.
    fn as_here(&self, rank: usize, peer: &Peer, slice: &Slice, offer: &Offer) -> Slice {
        let is_free = |name: &HostPattern| {
            peer.consent.grants(name)
                && !self.earlier(rank, name).any(|(_, theirs)| *theirs != slice.key.host)
        };
        let may_have = |name: &HostName| is_free(&HostPattern::Exact(name.clone()));
        let offer = Offer {
            aliases: offer.aliases.iter().filter(|alias| is_free(alias)).cloned().collect(),
            ports: offer.ports.iter().map(|port| peer.consent.port(port, &may_have)).collect(),
            exposed_on: Vec::new(),
            // Whatever its owner says of that.
            gateway_ranges: peer.consent.gateways.clone(),
            ..offer.clone()
        };
        Slice { offer: Some(offer), ..slice.clone() }
    }
}

#[cfg(test)]
mod tests;
