//! `stale: probe` of what other clusters offer: while nothing is heard of a cluster, where its slices lead is asked
//! whether it can be reached, and what is not is left out until it answers or the cluster is heard. A name stays its
//! owner's all the while.

use std::collections::BTreeSet;
use std::time::{Instant, SystemTime};

use isthmus_health::schedule::{Answer, Down, Probes};
use isthmus_model::address::Target;
use isthmus_model::host::HostPattern;
use isthmus_model::slice::{Cluster, Health, Key, Offer, Slice, Staleness};

use super::{Imports, Peer};

/// So many addresses are named where one is held back for them.
const NAMED: usize = 3;

/// By which rule a slice is kept of whose cluster nothing is heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale {
    /// The rule.
    pub rule: Staleness,
    /// Where it leads and nobody answers.
    pub down: Vec<Down>,
}

impl Imports {
    /// Takes what was answered since the last turn, and says whom to ask now, at most so many.
    pub fn turn(&mut self, answers: Vec<(Target, Answer)>, most: usize, now: Instant) -> Vec<Target> {
        if std::mem::take(&mut self.unsettled) {
            let wanted = self.wanted();
            self.probes.want(&wanted, now);
        }
        let mut changed = BTreeSet::new();
        for (target, answer) in answers {
            if self.probes.answered(&target, answer.clone(), now) {
                tracing::warn!(address = %target, ?answer, "of a cluster that is not heard of");
                changed.insert(target);
            }
        }
        if !changed.is_empty() {
            let leading =
                (0..self.peers.len()).flat_map(|rank| self.leading(rank, &|to| changed.contains(to)));
            let leading: Vec<_> = leading.collect();
            self.dirty.extend(leading);
        }
        self.probes.next(most, now)
    }

    /// What is asked, and what is down.
    #[must_use]
    pub fn probes(&self) -> &Probes {
        &self.probes
    }

    /// How a slice is kept, while nothing is heard of its cluster. `now` and `clock` are the same moment.
    #[must_use]
    pub fn stale(&self, of: &Cluster, host: &HostPattern, now: Instant, clock: SystemTime) -> Option<Stale> {
        let peer = self.peers.get(self.rank(of)?).filter(|peer| peer.lost.is_some())?;
        let slice = peer.slices.get(&Key { cluster: of.clone(), host: host.clone() })?;
        let rule = slice.offer.as_ref()?.staleness;
        let leads_to: BTreeSet<_> = peer.consent.leads_to(&slice).collect();
        let mut down = if rule == Staleness::Probe { self.probes.down(now, clock) } else { Vec::new() };
        down.retain(|down| leads_to.contains(&down.address));
        Some(Stale { rule, down })
    }

    /// A cluster is heard of again, or no longer.
    pub(super) fn probe_anew(&mut self, rank: usize) {
        // Asking begins with the next turn; what nobody needs to know any more is forgotten at once.
        self.unsettled = true;
        let leading = self.leading(rank, &|to| self.probes.is_down(to));
        let wanted = self.wanted();
        self.probes.keep_only(&wanted);
        self.dirty.extend(leading);
    }

    /// Where slices lead that are kept while they answer.
    fn wanted(&self) -> BTreeSet<Target> {
        let silent = self.peers.iter().filter(|peer| peer.lost.is_some());
        let leads_to = |peer: &Peer, slice: &Slice| peer.consent.leads_to(slice).cloned().collect::<Vec<_>>();
        silent.flat_map(|peer| peer.probed().flat_map(move |slice| leads_to(peer, &slice))).collect()
    }

    /// Slices of a cluster, kept while they answer, that lead to one of these.
    fn leading(&self, rank: usize, is_meant: &dyn Fn(&Target) -> bool) -> Vec<(usize, HostPattern)> {
        let slices = self
            .peers
            .get(rank)
            .into_iter()
            .flat_map(|peer| peer.probed().filter(|slice| peer.consent.leads_to(slice).any(is_meant)));
        slices.map(|slice| (rank + 1, slice.key.host.clone())).collect()
    }

    /// A slice that is let in, without what is down.
    pub(super) fn as_reached(&self, peer: &Peer, mut slice: Slice) -> Result<Slice, String> {
        let is_probed = peer.lost.is_some();
        let offer = slice.offer.as_mut().filter(|offer| is_probed && offer.staleness == Staleness::Probe);
        let Some(offer) = offer else { return Ok(slice) };
        let left_out = leave_out(offer, &|address| self.probes.is_down(address));
        if left_out.is_empty() || leads_anywhere(offer) {
            return Ok(slice);
        }
        let named: Vec<_> = left_out.iter().take(NAMED).map(ToString::to_string).collect();
        let more = if left_out.len() > NAMED { ", …" } else { "" };
        Err(format!(
            "cannot be reached, and its cluster is not heard of (stale: probe): {}{more}",
            named.join(", ")
        ))
    }
}

impl Peer {
    /// Its slices that are kept while they answer.
    fn probed(&self) -> impl Iterator<Item = Slice> {
        let probed = self.slices.limited().filter(|(_, rule)| *rule == Staleness::Probe);
        probed.filter_map(|(key, _)| self.slices.get(key))
    }
}

/// Takes gateways and endpoints out that are down, and says which.
fn leave_out(offer: &mut Offer, is_down: &dyn Fn(&Target) -> bool) -> BTreeSet<Target> {
    let mut left_out = BTreeSet::new();
    for endpoint in offer.ports.iter_mut().flat_map(|port| &mut port.endpoints) {
        if is_down(&endpoint.address) {
            // A port without endpoints would be reached through gateways.
            endpoint.health = Health::NotReady;
            left_out.insert(endpoint.address.clone());
        }
    }
    let down = offer.gateways.extract_if(.., |gateway| is_down(&gateway.address));
    left_out.extend(down.map(|gateway| gateway.address));
    left_out
}

fn leads_anywhere(offer: &Offer) -> bool {
    offer.ports.iter().any(|port| {
        if port.endpoints.is_empty() {
            !offer.gateways.is_empty()
        } else {
            port.endpoints.iter().any(|endpoint| endpoint.health == Health::Ready)
        }
    })
}
