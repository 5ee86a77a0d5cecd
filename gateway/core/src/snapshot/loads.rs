//! Remembers how health divides a service's connections among its priorities. Counted while something is unhealthy
//! only, and no more than once in a while, so that the pick of a healthy service costs one look at a flag.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::Service;
use super::spill::{Count, Load, loads};
use crate::config::settings::Side;
use crate::socket::Millis;

/// How long a count is used.
const USED_MS: Millis = 100;

/// The loads of a service's groups at a moment, for both sides: connections from other clusters reach fewer endpoints.
#[derive(Debug)]
pub(crate) struct Loads {
    counted: Millis,
    outbound: Box<[Load]>,
    east_west: Box<[Load]>,
}

impl Loads {
    /// The loads by group.
    pub(crate) fn of_side(&self, side: Side) -> &[Load] {
        match side {
            Side::Outbound => &self.outbound,
            Side::EastWest => &self.east_west,
        }
    }
}

impl Service {
    /// Whether its connections go to the nearest group as if all endpoints were healthy.
    pub(crate) fn is_even(&self) -> bool {
        self.is_even.load(Relaxed)
    }

    /// Records that an endpoint is unhealthy, or has not its whole share.
    pub(crate) fn found_uneven(&self) {
        self.is_even.store(false, Relaxed);
    }

    /// Returns how health divides its connections.
    pub(crate) fn loads(&self, now: Millis) -> Arc<Loads> {
        let known = self.last_loads.load();
        match &*known {
            // A clock of another thread may be a little behind.
            Some(known) if now < known.counted.saturating_add(USED_MS) => Arc::clone(known),
            _ => self.count(now),
        }
    }

    fn count(&self, now: Millis) -> Arc<Loads> {
        let mut is_even = self.split().is_none();
        let [mut outbound, mut east_west] = [Vec::new(), Vec::new()];
        for group in self.groups() {
            let [mut all, mut reached] = [Count::default(), Count::default()];
            for endpoint in group.endpoints(self).iter().filter(|endpoint| endpoint.counts()) {
                let is_healthy = endpoint.weight > 0 && endpoint.state.healthy(now);
                is_even &= is_healthy && endpoint.state.ramp(now) >= 100;
                all.add(endpoint.stands_for(), is_healthy);
                if endpoint.takes(Side::EastWest) {
                    reached.add(endpoint.stands_for(), is_healthy);
                }
            }
            outbound.push(all);
            east_west.push(reached);
        }
        let loads = Arc::new(Loads {
            counted: now,
            outbound: self.divided(&outbound),
            east_west: self.divided(&east_west),
        });
        self.last_loads.store(Some(Arc::clone(&loads)));
        self.is_even.store(is_even, Relaxed);
        loads
    }

    /// Divides the connections of each part of a split among its groups, or all of them.
    fn divided(&self, counts: &[Count]) -> Box<[Load]> {
        let traffic = &self.rules.traffic;
        let of = |counts: &[Count]| loads(counts, traffic.overprovisioning, traffic.panic);
        match self.split() {
            None => of(counts).into(),
            Some(split) => {
                let ranges = split.ranges().filter_map(|range| counts.get(range));
                ranges.flat_map(of).collect()
            }
        }
    }
}
