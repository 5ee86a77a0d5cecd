//! Searches the endpoint of one connection where health, demotion, panic or a split have a say: by rank, then by part of
//! the split, then by group. Pure.

use std::ops::Range;

use isthmus_model::access::Caller;

use super::Choice;
use super::deal::deal;
use super::draw::{Draw, rendezvous};
use crate::config::settings::Balance;
use crate::snapshot::{Endpoint, Group, Load, Part, Service, Split};

/// What an endpoint must be, from the best to the last resort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Healthy, and not tried last.
    Answers,
    Healthy,
    HealthyWithoutWay,
    /// Perhaps dead, in a family with a route.
    HasWay,
    Any,
}

/// The search for the endpoint of one connection.
pub(crate) struct Search<'c, 's> {
    service: &'s Service,
    choice: &'c Choice<'c>,
    caller: Caller<'c>,
}

impl<'c, 's> Search<'c, 's> {
    pub(crate) fn new(service: &'s Service, choice: &'c Choice<'c>) -> Search<'c, 's> {
        let caller = Caller { identity: choice.identity, source: choice.source, port: service.port };
        Search { service, choice, caller }
    }

    /// Whether a connection may use an endpoint, healthy or not.
    pub(crate) fn may_use(&self, endpoint: &Endpoint) -> bool {
        let choice = self.choice;
        endpoint.weight > 0
            && endpoint.takes(choice.side)
            && endpoint.admits(&self.caller)
            && choice.instance.is_none_or(|name| endpoint.is_instance(name, choice.side))
            && self.service.has_room(endpoint)
            && !choice.tried.contains(&endpoint.address)
    }

    fn has_way(&self, endpoint: &Endpoint) -> bool {
        self.may_use(endpoint) && !self.choice.off.has(endpoint.address.ip())
    }

    fn is_demoted(&self, endpoint: &Endpoint) -> bool {
        endpoint.state.is_demoted(self.choice.source, self.choice.now)
    }

    /// Whether an endpoint has its whole share. One that has not ends that for the service.
    pub(super) fn is_whole(&self, endpoint: &Endpoint) -> bool {
        let (state, now) = (&endpoint.state, self.choice.now);
        self.has_way(endpoint)
            && {
                let is_whole = state.healthy(now) && state.ramp(now) >= 100;
                if !is_whole {
                    self.service.found_uneven();
                }
                is_whole
            }
            && !self.is_demoted(endpoint)
    }

    fn is_usable(&self, endpoint: &Endpoint, rank: Rank) -> bool {
        let is_healthy = || endpoint.state.healthy(self.choice.now);
        match rank {
            Rank::Answers => self.has_way(endpoint) && is_healthy() && !self.is_demoted(endpoint),
            Rank::Healthy => self.has_way(endpoint) && is_healthy(),
            Rank::HealthyWithoutWay => self.may_use(endpoint) && is_healthy(),
            Rank::HasWay => self.has_way(endpoint),
            Rank::Any => self.may_use(endpoint),
        }
    }

    pub(super) fn draw<F: Fn(&Endpoint) -> bool>(
        &self,
        group: &'s Group,
        turn: usize,
        usable: F,
    ) -> Draw<'s, F> {
        let Choice { source, now, .. } = *self.choice;
        Draw { service: self.service, group, source, turn, now, usable }
    }

    /// Considers health, panic and the split.
    pub(super) fn anywhere(&self, random: &mut fastrand::Rng) -> Option<&'s Endpoint> {
        let loads = self.service.loads(self.choice.now);
        let loads = loads.of_side(self.choice.side);
        let fails_closed = self.service.rules.traffic.panic.is_none();
        let ranks: &[Rank] = if fails_closed {
            &[Rank::Answers, Rank::Healthy, Rank::HealthyWithoutWay]
        } else {
            &[Rank::Answers, Rank::Healthy, Rank::HasWay, Rank::Any]
        };
        ranks.iter().find_map(|rank| match self.service.split().filter(|_| self.choice.instance.is_none()) {
            Some(split) => self.in_split(split, *rank, loads, random),
            None => self.in_groups(0..loads.len(), *rank, loads, self.choice.turn, random),
        })
    }

    /// The part whose turn it is; the turns of a part without a usable endpoint are divided among the others. Endpoints
    /// that no part has come last, but before parts that were taken out of the split.
    fn in_split(
        &self,
        split: &'s Split,
        rank: Rank,
        loads: &[Load],
        random: &mut fastrand::Rng,
    ) -> Option<&'s Endpoint> {
        let mut turn = self.choice.turn;
        let (mut left, mut aborted): (Vec<&Part>, Vec<&Part>) =
            split.parts().iter().filter(|part| part.weight > 0).partition(|part| !part.is_aborted());
        while let Some((index, its_turn)) = self.part(split, &left, turn) {
            let part = left.swap_remove(index);
            if let Some(endpoint) = self.in_groups(part.groups.clone(), rank, loads, its_turn, random) {
                return Some(endpoint);
            }
            turn = its_turn;
        }
        let unlisted = self.in_groups(split.unlisted(), rank, loads, turn, random);
        unlisted.or_else(|| {
            aborted.drain(..).find_map(|part| self.in_groups(part.groups.clone(), rank, loads, turn, random))
        })
    }

    /// Returns the part that a turn, or the source, belongs to, and the turn in it.
    fn part(&self, split: &Split, parts: &[&Part], turn: usize) -> Option<(usize, usize)> {
        if split.is_sticky() || self.is_by_source() {
            let score = |part: &Part| rendezvous(self.choice.source, &part.key, part.weight.into());
            let best =
                parts.iter().enumerate().max_by(|(_, one), (_, other)| score(one).total_cmp(&score(other)));
            return best.map(|(index, _)| (index, turn));
        }
        deal(turn, parts.iter().map(|part| part.weight.into()))
    }

    fn is_by_source(&self) -> bool {
        self.service.rules.balance == Balance::SourceHash
    }

    /// The group whose turn it is by health, then the others, the nearest first.
    fn in_groups(
        &self,
        range: Range<usize>,
        rank: Rank,
        loads: &[Load],
        turn: usize,
        random: &mut fastrand::Rng,
    ) -> Option<&'s Endpoint> {
        let loads = loads.get(range.clone()).unwrap_or_default();
        let groups = || self.service.groups().skip(range.start).take(loads.len()).enumerate();
        let (due, its_turn) = self.due(loads, turn).unwrap_or((0, turn));
        let first = groups().nth(due).and_then(|(_, group)| {
            let load = loads.get(due).copied().unwrap_or_default();
            let is_first_attempt = self.choice.tried.is_empty() && self.choice.instance.is_none();
            // Where all are unhealthy, those of other parts come first; then there is a rank for it.
            let panics = load.panics && is_first_attempt && loads.iter().any(|load| load.health > 0);
            let rank = if panics { rank.max(Rank::HasWay) } else { rank };
            self.draw(group, its_turn, |endpoint| self.is_usable(endpoint, rank)).endpoint(random)
        });
        first.or_else(|| {
            groups().filter(|(index, _)| *index != due).find_map(|(_, group)| {
                self.draw(group, turn, |endpoint| self.is_usable(endpoint, rank)).endpoint(random)
            })
        })
    }

    /// Returns the group that a turn, or the source, belongs to by the loads, and the turn in it.
    fn due(&self, loads: &[Load], turn: usize) -> Option<(usize, usize)> {
        if self.is_by_source() {
            let score =
                |index: usize, load: &Load| rendezvous(self.choice.source, &index, load.per_cent.into());
            let loaded = loads.iter().enumerate().filter(|(_, load)| load.per_cent > 0);
            let best = loaded.max_by(|one, other| score(one.0, one.1).total_cmp(&score(other.0, other.1)));
            return best.map(|(index, _)| (index, turn));
        }
        deal(turn, loads.iter().map(|load| load.per_cent.into()))
    }
}
