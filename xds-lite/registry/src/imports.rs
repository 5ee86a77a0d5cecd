//! What other clusters offer, and what of it is let in: each speaks for itself alone, under names that it was
//! granted, and a name that is taken is not taken over. Pure. Not how it arrives.

mod consent;
mod decode;
mod expiry;
mod facts;
mod holdings;
mod peer;
mod stale_probes;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Instant;

use isthmus_health::schedule::Probes;
use isthmus_model::address::Target;
use isthmus_model::host::{HostName, HostPattern};
use isthmus_model::slice::{Cluster, Key, Offer, Slice};

pub use consent::Consent;
pub use decode::DecodedSlice;
pub use holdings::{PeerUsage, SliceLimits};
pub use stale_probes::Stale;

use facts::Facts;
use holdings::Size;
use peer::{Claimant, Claims, Peer, names, sharing};

/// What is offered and what is let in.
#[derive(Debug, Default)]
pub struct Imports {
    /// In order: what an earlier one has, a later one does not take over.
    peers: Vec<Peer>,
    claims: Claims,
    /// The own cluster's services.
    own: HashMap<HostPattern, Facts>,
    /// Slices to judge again: the peer's place, and the host.
    dirty: BTreeSet<(usize, HostPattern)>,
    /// Where slices of silent clusters lead that are kept while they answer.
    probes: Probes,
    /// The probed addresses must be computed again.
    probe_targets_changed: bool,
    /// Which addresses are probed, or down, has changed.
    have_probes_changed: bool,
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
    /// It is no longer offered.
    Withdrawn,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportStatus {
    /// Whose.
    pub cluster: Cluster,
    /// Which.
    pub host: HostPattern,
    /// Why it is quarantined; none: it is imported.
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
        let Some(place) = self.place(from) else { return Err("is of an unknown cluster".to_owned()) };
        let Some(peer) = self.peers.get_mut(place) else { return Ok(Stored::Nothing) };
        peer.consent.check(&slice)?;
        let host = slice.key.host.clone();
        let sharing = after.iter().map(|name| sharing(&self.claims, place, &host, name)).max();
        if slice.offer.is_some() {
            peer.holdings.check(&host, size, sharing.unwrap_or_default())?;
        }
        self.probe_targets_changed |= peer.lost.is_some();
        let is_changed = peer.slices.insert(&slice, bytes).map_err(|outdated| outdated.to_string())?;
        let probed = peer.consent.probed(&slice);
        let facts = slice.offer.as_ref().map(|offer| Facts::new(after.clone(), offer, probed));
        let is_offered = facts.is_some();
        let before = peer.set_facts(&host, facts).map(|facts| facts.names).unwrap_or_default();
        let stored = if is_offered {
            peer.holdings.insert(&host, size);
            Stored::Slice { forgets: None }
        } else {
            Stored::Slice { forgets: peer.record_withdrawal(&host) }
        };
        if is_changed {
            self.claim(Claimant::Peer(place), &host, &before, &after);
        }
        Ok(stored)
    }

    /// A slice is no longer given to this cluster. Says whether there was one.
    pub fn forget(&mut self, from: &Cluster, host: &HostPattern) -> bool {
        let Some(place) = self.place(from) else { return false };
        let key = Key { cluster: from.clone(), host: host.clone() };
        let Some(peer) = self.peers.get_mut(place) else { return false };
        self.probe_targets_changed |= peer.lost.is_some();
        if peer.holdings.not_granted(host, false) {
            self.dirty.insert((place, host.clone()));
        }
        let stood = peer.slices.forget(&key);
        if stood {
            let before = peer.set_facts(host, None).map(|facts| facts.names).unwrap_or_default();
            peer.record_withdrawal(host);
            self.claim(Claimant::Peer(place), host, &before, &[]);
        }
        stood
    }

    /// Notes what the own cluster has under a host.
    pub fn own(&mut self, slice: &Slice) {
        let host = &slice.key.host;
        let after = names(slice);
        let before = match &slice.offer {
            Some(offer) => self.own.insert(host.clone(), Facts::new(after.clone(), offer, Vec::new())),
            None => self.own.remove(host),
        };
        let before = before.map(|facts| facts.names).unwrap_or_default();
        self.claim(Claimant::Own, host, &before, &after);
    }

    /// Marks a cluster as unreachable since then; none: it is reachable again.
    pub fn set_unreachable_since(&mut self, with: &Cluster, now: Option<Instant>) {
        let Some(place) = self.place(with) else { return };
        let Some(peer) = self.peers.get_mut(place) else { return };
        let was_lost = peer.lost.is_some();
        match now {
            Some(now) => _ = peer.lost.get_or_insert(now),
            None => {
                peer.lost = None;
                let back = peer.expiry.revive();
                self.judge_again(place, &back);
            }
        }
        if was_lost != now.is_some() {
            self.probe_anew(place);
        }
    }

    /// Lets go of what was promised for a time only, of clusters that are not heard of. The cost is in proportion to
    /// what expires.
    pub fn expire(&mut self, now: Instant) {
        for place in 0..self.peers.len() {
            let Some(peer) = self.peers.get_mut(place) else { continue };
            let Some(silence) = peer.lost.map(|lost| now.saturating_duration_since(lost)) else { continue };
            let expired = peer.expiry.expire(silence);
            self.judge_again(place, &expired);
        }
    }

    /// Slices whose verdict may have changed, each once, at most `most`; none left: all are passed on. Together they
    /// are the verdicts on all that is offered.
    pub fn changes(&mut self, most: usize) -> Vec<(Key, Verdict)> {
        let dirty = std::iter::from_fn(|| self.dirty.pop_first()).take(most);
        let dirty: Vec<_> = dirty.collect();
        dirty.into_iter().filter_map(|(place, host)| self.verdict(place, &host)).collect()
    }

    /// Judges the slices of these hosts again: what gateways are told beside them has changed. Returns their number.
    pub fn judge_hosts_again(&mut self, is_meant: impl Fn(&HostPattern) -> bool) -> usize {
        let mut count = 0;
        for (place, peer) in self.peers.iter().enumerate() {
            let meant = peer.facts.keys().filter(|host| is_meant(host));
            self.dirty.extend(meant.inspect(|_| count += 1).map(|host| (place, host.clone())));
        }
        count
    }

    /// The hosts of other clusters that have a name: as their own, as an alias, or as an instance's alias.
    pub fn hosts_of(&self, name: &HostPattern) -> impl Iterator<Item = &HostPattern> {
        let claims = self.claims.get(name).into_iter().flatten();
        claims.filter(|(claimant, _)| *claimant != Claimant::Own).map(|(_, host)| host)
    }

    /// What is offered under one host, and what became of it.
    #[must_use]
    pub fn shown_of(&self, host: &HostPattern) -> Vec<ImportStatus> {
        let shown = (0..self.peers.len()).filter_map(|place| {
            let (Key { cluster, host }, verdict) = self.verdict(place, host)?;
            let quarantined = match verdict {
                Verdict::Imported(_) => None,
                Verdict::Unreachable(_, why) | Verdict::Quarantined(why) => Some(why),
                Verdict::Withdrawn => return None,
            };
            Some(ImportStatus { cluster, host, quarantined })
        });
        let mut shown: Vec<_> = shown.collect();
        shown.sort_by(|a, b| a.cluster.cmp(&b.cluster));
        shown
    }

    /// Whether an address that a name resolved to may be one of a cluster that has the name.
    #[must_use]
    pub fn may_stand_at(&self, name: &Target, ip: IpAddr) -> bool {
        self.peers.iter().any(|peer| peer.consent.allows(name) && peer.consent.gateways.allow(ip))
    }

    fn place(&self, cluster: &Cluster) -> Option<usize> {
        self.peers.iter().position(|peer| peer.consent.cluster == *cluster)
    }

    /// Moves the claims of a host from some names to others. Those that come after it and share one are judged again:
    /// what its own cluster has beside it, and what comes before, does not change by it.
    fn claim(
        &mut self,
        claimant: Claimant,
        host: &HostPattern,
        before: &[HostPattern],
        after: &[HostPattern],
    ) {
        for name in before {
            if let Some(claims) = self.claims.get_mut(name) {
                claims.remove(&(claimant, host.clone()));
                if claims.is_empty() {
                    self.claims.remove(name);
                }
            }
        }
        for name in after {
            self.claims.entry(name.clone()).or_default().insert((claimant, host.clone()));
        }
        before.iter().chain(after).for_each(|name| self.judge_after(claimant, name));
        if let Claimant::Peer(place) = claimant {
            self.dirty.insert((place, host.clone()));
        }
    }

    /// Slices that come after a claimant and share a name are judged again.
    fn judge_after(&mut self, claimant: Claimant, name: &HostPattern) {
        let claims = self.claims.get(name).into_iter().flatten().rev();
        let later = claims.take_while(|(other, _)| *other > claimant);
        self.dirty.extend(later.filter_map(|(other, host)| match other {
            Claimant::Own => None,
            Claimant::Peer(place) => Some((*place, host.clone())),
        }));
    }

    /// Slices of a peer that have expired or are back are judged again, and so is what comes after them.
    fn judge_again(&mut self, place: usize, hosts: &[HostPattern]) {
        for host in hosts {
            let facts = self.peers.get(place).and_then(|peer| peer.facts.get(host));
            for name in facts.map(|facts| facts.names.clone()).unwrap_or_default() {
                self.judge_after(Claimant::Peer(place), &name);
            }
            self.dirty.insert((place, host.clone()));
        }
    }

    fn verdict(&self, place: usize, host: &HostPattern) -> Option<(Key, Verdict)> {
        let peer = self.peers.get(place)?;
        let key = Key { cluster: peer.consent.cluster.clone(), host: host.clone() };
        let verdict = match peer.facts.get(host) {
            None if peer.holdings.is_not_granted(host) => Verdict::Quarantined(peer.why_not_granted()),
            None => Verdict::Withdrawn,
            Some(_) if peer.expiry.has_expired(host) => {
                Verdict::Quarantined("has expired: its cluster has not been heard of for too long".to_owned())
            }
            Some(facts) => match self.judge(place, peer, host, facts) {
                Ok(()) => self.imported(place, peer, &key),
                Err(why) => Verdict::Quarantined(why),
            },
        };
        Some((key, verdict))
    }

    /// Whether a slice is imported, decided without decoding it.
    fn judge(&self, place: usize, peer: &Peer, host: &HostPattern, facts: &Facts) -> Result<(), String> {
        if !peer.consent.is_reachable {
            return Err("is in a network that this one may not reach".to_owned());
        }
        for (other, theirs) in self.earlier(place, host) {
            if theirs != host {
                return Err(format!("is called as {theirs} of {} is, too", self.called(other)));
            }
            self.may_merge(other, host, facts)?;
        }
        Ok(())
    }

    /// Who claims a name before a peer, and may: a claim that was not granted counts for nothing.
    fn earlier(&self, place: usize, name: &HostPattern) -> impl Iterator<Item = (Claimant, &HostPattern)> {
        let claims = self.claims.get(name).into_iter().flatten();
        let earlier = claims.take_while(move |(other, _)| *other < Claimant::Peer(place));
        earlier.filter(|(other, host)| self.may_claim(*other, host)).map(|(other, host)| (*other, host))
    }

    fn may_claim(&self, claimant: Claimant, host: &HostPattern) -> bool {
        let Claimant::Peer(place) = claimant else { return true };
        self.peers.get(place).is_some_and(|peer| {
            peer.consent.is_reachable && peer.consent.grants(host) && !peer.expiry.has_expired(host)
        })
    }

    fn called(&self, claimant: Claimant) -> &str {
        let peer = match claimant {
            Claimant::Own => None,
            Claimant::Peer(place) => self.peers.get(place),
        };
        peer.map_or("this cluster", |peer| peer.consent.cluster.as_str())
    }

    fn may_merge(&self, other: Claimant, host: &HostPattern, facts: &Facts) -> Result<(), String> {
        let theirs = match other {
            Claimant::Own => self.own.get(host),
            Claimant::Peer(place) => self.peers.get(place).and_then(|peer| peer.facts.get(host)),
        };
        let whose = self.called(other);
        let Some(theirs) = theirs else { return Ok(()) };
        if !(theirs.merge && facts.merge) {
            return Err(format!(
                "has the name of a service of {whose}; with `merge: true` on both sides they would be one"
            ));
        }
        if facts.differs_in_tls(theirs) {
            Err(format!("differs in TLS from that of {whose}, so they are not one"))
        } else {
            Ok(())
        }
    }

    /// The slice as the gateways get it.
    fn imported(&self, place: usize, peer: &Peer, key: &Key) -> Verdict {
        let slice = peer.slices.get(key);
        let Some(Slice { offer: Some(offer), order, .. }) = slice else { return Verdict::Withdrawn };
        let offer = self.as_here(place, peer, &key.host, offer);
        self.as_reached(peer, Slice { key: key.clone(), order, offer: Some(offer) })
    }

    /// The offer with nothing that its cluster was not granted.
    fn as_here(&self, place: usize, peer: &Peer, host: &HostPattern, offer: Offer) -> Offer {
        let is_free = |name: &HostPattern| {
            peer.consent.grants(name) && !self.earlier(place, name).any(|(_, theirs)| theirs != host)
        };
        let may_have = |name: &HostName| is_free(&HostPattern::Exact(name.clone()));
        Offer {
            aliases: offer.aliases.iter().filter(|alias| is_free(alias)).cloned().collect(),
            ports: offer.ports.iter().map(|port| peer.consent.port(port, &may_have)).collect(),
            exposed_on: Vec::new(),
            // Whatever its owner says of that.
            gateway_ranges: peer.consent.gateways.clone(),
            ..offer
        }
    }
}

#[cfg(test)]
mod tests;
