//! Draws an endpoint from a group by the service's balancing policy. An endpoint that just came back gets a part of its
//! share, and the turns of one that cannot be used go to all others: its neighbour would be overloaded.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use crate::config::settings::Balance;
use crate::snapshot::{Endpoint, Group, Service};
use crate::socket::Millis;

/// Random draws before a count of all endpoints; with at least half of them usable, two are enough on average.
const DRAWS: usize = 8;

/// A draw from a group.
pub(super) struct Draw<'s, F> {
    pub(super) service: &'s Service,
    pub(super) group: &'s Group,
    pub(super) source: IpAddr,
    pub(super) turn: usize,
    pub(super) now: Millis,
    /// The endpoints that may be drawn.
    pub(super) usable: F,
}

impl<'s, F: Fn(&Endpoint) -> bool> Draw<'s, F> {
    /// Returns an endpoint; `None` if none is usable.
    pub(super) fn endpoint(&self, random: &mut fastrand::Rng) -> Option<&'s Endpoint> {
        match self.service.rules.balance {
            Balance::RoundRobin => self.in_turn(),
            Balance::Random => self.at_random(random),
            Balance::LeastConnections => self.less_loaded_of_two(random),
            Balance::SourceHash => {
                let usable = self.endpoints().filter(|endpoint| (self.usable)(endpoint));
                usable.max_by(|one, other| self.score(one).total_cmp(&self.score(other)))
            }
        }
    }

    /// Returns the endpoint of the turn, or else one that depends on the turn alone, so that `explain` tells the same.
    fn in_turn(&self) -> Option<&'s Endpoint> {
        let turn = self.turn.checked_rem(self.group.turns())?;
        let mut by_turn = fastrand::Rng::with_seed(self.turn as u64);
        let due = self.group.at(self.service, turn).filter(|endpoint| self.accepts(endpoint, &mut by_turn));
        due.or_else(|| self.at_random(&mut by_turn))
    }

    fn at_random(&self, random: &mut fastrand::Rng) -> Option<&'s Endpoint> {
        let turns = self.group.turns();
        if turns == 0 {
            return None;
        }
        for _ in 0..DRAWS {
            let drawn = self.group.at(self.service, random.usize(..turns));
            if let Some(endpoint) = drawn.filter(|endpoint| self.accepts(endpoint, random)) {
                return Some(endpoint);
            }
        }
        self.by_share(random)
    }

    fn less_loaded_of_two(&self, random: &mut fastrand::Rng) -> Option<&'s Endpoint> {
        let first = self.at_random(random)?;
        if self.group.turns() == 1 {
            return Some(first);
        }
        let usable = |endpoint: &Endpoint| endpoint.address != first.address && (self.usable)(endpoint);
        let Draw { service, group, source, turn, now, .. } = *self;
        let others =
            Draw { service, group, source, turn, now, usable: &usable as &dyn Fn(&Endpoint) -> bool };
        let second = others.at_random(random);
        Some(second.filter(|second| load(second) < load(first)).unwrap_or(first))
    }

    /// Whether an endpoint takes its turn: always, or with the share that it has by now.
    fn accepts(&self, endpoint: &Endpoint, random: &mut fastrand::Rng) -> bool {
        (self.usable)(endpoint) && {
            let ramp = endpoint.state.ramp(self.now);
            ramp >= 100 || random.u8(..100) < ramp
        }
    }

    /// Returns an endpoint at random, after a count of all shares.
    fn by_share(&self, random: &mut fastrand::Rng) -> Option<&'s Endpoint> {
        let share = |endpoint: &Endpoint| {
            if (self.usable)(endpoint) { self.share(endpoint) } else { 0 }
        };
        let total: u64 = self.endpoints().map(share).sum();
        let mut place = (total > 0).then(|| random.u64(..total))?;
        self.endpoints().find(|endpoint| {
            let share = share(endpoint);
            let is_it = place < share;
            place = place.saturating_sub(share);
            is_it
        })
    }

    fn share(&self, endpoint: &Endpoint) -> u64 {
        u64::from(endpoint.weight) * u64::from(endpoint.state.ramp(self.now).clamp(1, 100))
    }

    fn score(&self, endpoint: &Endpoint) -> f64 {
        let ramp = f64::from(endpoint.state.ramp(self.now).clamp(1, 100)) / 100.0;
        rendezvous(self.source, &endpoint.address, f64::from(endpoint.weight) * ramp)
    }

    fn endpoints(&self) -> impl Iterator<Item = &'s Endpoint> + use<'s, F> {
        self.group.endpoints(self.service).iter()
    }
}

fn load(endpoint: &Endpoint) -> f64 {
    (f64::from(endpoint.state.active()) + 1.0) / f64::from(endpoint.weight)
}

/// Weighted rendezvous hashing: each candidate draws a number from the source's address, the highest wins. When one is
/// added or removed, or its weight changes, only sources that it wins or had won move.
pub(super) fn rendezvous(source: IpAddr, candidate: &impl Hash, weight: f64) -> f64 {
    let mut hasher = DefaultHasher::new(); // the same keys in every process and after a restart
    (source, candidate).hash(&mut hasher);
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    let uniform = ((hasher.finish() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    weight / -uniform.ln()
}
