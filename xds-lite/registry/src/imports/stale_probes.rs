//! Applies `stale: probe` to imports: while a cluster is unreachable, the targets of its slices are probed,
//! and those that are down are left out until they answer or the cluster is reachable again. The cluster
//! keeps its names meanwhile.

use std::collections::BTreeSet;
use std::time::{Instant, SystemTime};

use isthmus_health::schedule::{Answer, Down, Probes};
use isthmus_model::address::Target;
use isthmus_model::host::HostPattern;
use isthmus_model::slice::{Cluster, Health, Key, Offer, Slice, Staleness};

use super::{Imports, Peer, Verdict};

/// Addresses listed in the reason of a quarantined slice.
const NAMED: usize = 3;

/// The staleness of a slice whose cluster is unreachable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale {
    /// Its `stale` rule.
    pub rule: Staleness,
    /// Its targets that are down.
    pub down: Vec<Down>,
}

impl Imports {
    /// Applies the answers since the last turn; returns at most `most` targets to probe now.
    pub fn poll_probes(&mut self, answers: Vec<(Target, Answer)>, most: usize, now: Instant) -> Vec<Target> {
        if std::mem::take(&mut self.probe_targets_changed) {
            let wanted = self.wanted();
            self.probes.want(&wanted, now);
            self.have_probes_changed = true;
        }
        let mut changed = BTreeSet::new();
        for (target, answer) in answers {
            if self.probes.answered(&target, answer.clone(), now) {
                tracing::warn!(address = %target, ?answer, "probed address of an unreachable cluster changed its state");
                changed.insert(target);
            }
        }
        if !changed.is_empty() {
            self.have_probes_changed = true;
            let leading =
                (0..self.peers.len()).flat_map(|place| self.leading(place, &|to| changed.contains(to)));
            let leading: Vec<_> = leading.collect();
            self.dirty.extend(leading);
        }
        self.probes.next(most, now)
    }

    /// Whether the probed targets, or those that are down, have changed since the last call.
    pub fn have_probes_changed(&mut self) -> bool {
        std::mem::take(&mut self.have_probes_changed)
    }

    /// The probed targets, and those that are down.
    #[must_use]
    pub fn probes(&self) -> &Probes {
        &self.probes
    }

    /// The staleness of a slice while its cluster is unreachable. `now` and `clock` are the same moment.
    #[must_use]
    pub fn stale(&self, of: &Cluster, host: &HostPattern, now: Instant, clock: SystemTime) -> Option<Stale> {
        let peer = self.peers.get(self.place(of)?).filter(|peer| peer.lost.is_some())?;
        let slice = peer.slices.get(&Key { cluster: of.clone(), host: host.clone() })?;
        let rule = slice.offer.as_ref()?.staleness;
        let leads_to: BTreeSet<_> = peer.consent.leads_to(&slice).collect();
        let mut down = if rule == Staleness::Probe { self.probes.down(now, clock) } else { Vec::new() };
        down.retain(|down| leads_to.contains(&down.address));
        Some(Stale { rule, down })
    }

    /// Reacts to a cluster that became reachable or unreachable.
    pub(super) fn probe_anew(&mut self, place: usize) {
        // Probing begins with the next turn; targets that are no longer needed are dropped at once.
        self.probe_targets_changed = true;
        let leading = self.leading(place, &|to| self.probes.is_down(to));
        let wanted = self.wanted();
        self.probes.keep_only(&wanted);
        self.have_probes_changed = true;
        self.dirty.extend(leading);
    }

    /// Targets of the slices to probe.
    fn wanted(&self) -> BTreeSet<Target> {
        let silent = self.peers.iter().filter(|peer| peer.lost.is_some());
        silent.flat_map(|peer| peer.facts.values()).flat_map(|facts| &facts.probed).cloned().collect()
    }

    /// Probed slices of a peer with one of these targets.
    fn leading(&self, place: usize, is_meant: &dyn Fn(&Target) -> bool) -> Vec<(usize, HostPattern)> {
        let facts = self.peers.get(place).into_iter().flat_map(|peer| &peer.facts);
        let leading = facts.filter(|(_, facts)| facts.probed.iter().any(is_meant));
        leading.map(|(host, _)| (place, host.clone())).collect()
    }

    /// An imported slice without the targets that are down.
    pub(super) fn as_reached(&self, peer: &Peer, mut slice: Slice) -> Verdict {
        let is_probed = peer.lost.is_some();
        let offer = slice.offer.as_mut().filter(|offer| is_probed && offer.staleness == Staleness::Probe);
        let Some(offer) = offer else { return Verdict::Imported(slice) };
        let left_out = leave_out(offer, &|address| self.probes.is_down(address));
        if left_out.is_empty() || leads_anywhere(offer) {
            return Verdict::Imported(slice);
        }
        let named: Vec<_> = left_out.iter().take(NAMED).map(ToString::to_string).collect();
        let more = if left_out.len() > NAMED { ", …" } else { "" };
        let why = format!(
            "cannot be reached while its cluster is unreachable, too (stale: probe): {}{more}",
            named.join(", ")
        );
        Verdict::Unreachable(slice, why)
    }
}

/// Removes gateways and endpoints that are down, and returns them.
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
