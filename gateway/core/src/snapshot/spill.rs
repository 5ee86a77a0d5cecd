//! Divides a service's connections among its priorities by their health, and finds those in panic, with the formulas
//! that Envoy documents. Pure.

/// What health leaves of a priority, counted in endpoints; another cluster's gateway counts as the endpoints behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) healthy: u64,
    pub(crate) all: u64,
}

impl Count {
    pub(crate) fn add(&mut self, endpoints: u64, are_healthy: bool) {
        self.all = self.all.saturating_add(endpoints);
        if are_healthy {
            self.healthy = self.healthy.saturating_add(endpoints);
        }
    }

    /// Its healthy share in per cent, over-provisioned.
    fn health(self, overprovisioning: u16) -> u8 {
        let per_cent = u64::from(overprovisioning).saturating_mul(self.healthy).checked_div(self.all);
        per_cent.map_or(0, |per_cent| u8::try_from(per_cent.min(100)).unwrap_or(100))
    }

    fn is_below(self, per_cent: u8) -> bool {
        self.all == 0 || self.healthy.saturating_mul(100) < self.all.saturating_mul(per_cent.into())
    }
}

/// What a priority receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Its health in per cent, over-provisioned.
    pub(crate) health: u8,
    /// Its share of the connections in per cent.
    pub(crate) per_cent: u8,
    /// Whether first attempts go to all of its endpoints, healthy or not.
    pub(crate) panics: bool,
}

/// Returns the load of each priority; where all are in panic, they share by their sizes. Loads sum up to 100 per cent, or to 0 where nothing is healthy and `panic` is off.
pub(crate) fn loads(priorities: &[Count], overprovisioning: u16, panic: Option<u8>) -> Vec<Load> {
    let health = priorities.iter().map(|count| count.health(overprovisioning));
    let mut loads: Vec<_> = health.map(|health| Load { health, ..Load::default() }).collect();
    let shares: Vec<_> = loads.iter().map(|load| u64::from(load.health)).collect();
    let total = shares.iter().sum::<u64>().min(100);
    let threshold = panic.unwrap_or_default();
    for (load, count) in loads.iter_mut().zip(priorities) {
        load.panics = threshold > 0 && total < 100 && count.is_below(threshold);
    }
    if loads.iter().all(|load| load.panics) {
        let sizes: Vec<_> = priorities.iter().map(|count| count.all).collect();
        deal(&mut loads, &sizes, sizes.iter().sum());
    } else {
        deal(&mut loads, &shares, total);
    }
    loads
}

/// Deals 100 per cent in proportion to `shares`, in order and rounded down; the first with a share gets the rest.
fn deal(loads: &mut [Load], shares: &[u64], total: u64) {
    let mut left: u8 = 100;
    for (load, share) in loads.iter_mut().zip(shares) {
        let part = share.saturating_mul(100).checked_div(total).unwrap_or_default();
        load.per_cent = u8::try_from(part).unwrap_or(u8::MAX).min(left);
        left -= load.per_cent;
    }
    if let Some((load, _)) = loads.iter_mut().zip(shares).find(|(_, share)| **share > 0) {
        load.per_cent += left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(healthy: u64, all: u64) -> Count {
        Count { healthy, all }
    }

    fn shares(loads: &[Load]) -> Vec<u8> {
        loads.iter().map(|load| load.per_cent).collect()
    }

    fn panics(loads: &[Load]) -> Vec<bool> {
        loads.iter().map(|load| load.panics).collect()
    }

    /// The loads by the default settings, of healthy percentages.
    fn of_percentages(healthy: &[u64]) -> Vec<Load> {
        let counts: Vec<_> = healthy.iter().map(|healthy| count(*healthy, 100)).collect();
        loads(&counts, 140, Some(50))
    }

    #[test]
    fn loads_without_panic_are_those_of_the_documented_tables() {
        let table: &[(&[u64], &[u8])] = &[
            (&[100, 100], &[100, 0]),
            (&[72, 100], &[100, 0]),
            (&[71, 100], &[99, 1]),
            (&[50, 100], &[70, 30]),
            (&[25, 100], &[35, 65]),
            (&[0, 100], &[0, 100]),
            (&[72, 72], &[100, 0]),
            (&[71, 71], &[99, 1]),
            (&[50, 50], &[70, 30]),
            (&[25, 25], &[50, 50]),
            (&[72, 72, 100], &[100, 0, 0]),
            (&[71, 71, 100], &[99, 1, 0]),
            (&[50, 50, 100], &[70, 30, 0]),
            (&[25, 100, 100], &[35, 65, 0]),
            (&[25, 25, 100], &[35, 35, 30]),
            // Rounded down: what is left is the first one's.
            (&[25, 25, 20], &[37, 35, 28]),
            (&[5, 65], &[8, 92]),
        ];
        for (healthy, expected) in table {
            let counts: Vec<_> = healthy.iter().map(|healthy| count(*healthy, 100)).collect();
            assert_eq!(shares(&loads(&counts, 140, None)), *expected, "{healthy:?}");
        }
    }

    #[test]
    fn panic_begins_where_all_priorities_together_are_not_healthy_enough() {
        assert_eq!(panics(&of_percentages(&[0, 100])), [false, false], "the other one has enough");
        assert_eq!(panics(&of_percentages(&[25, 25])), [true, true]);
        assert_eq!(panics(&of_percentages(&[5, 65])), [true, false]);
        assert_eq!(panics(&of_percentages(&[49])), [true]);
        assert_eq!(panics(&of_percentages(&[50])), [false]);
        assert_eq!(panics(&loads(&[count(1, 4)], 140, Some(25))), [false]);
        assert_eq!(panics(&loads(&[count(1, 4)], 140, Some(26))), [true]);
        assert_eq!(panics(&loads(&[count(1, 100)], 140, None)), [false]);
    }

    #[test]
    fn priorities_that_are_all_dead_share_by_their_sizes() {
        let dead = |panic| loads(&[count(0, 5), count(0, 10), count(0, 0)], 140, panic);
        assert_eq!((shares(&dead(Some(50))), panics(&dead(Some(50)))), (vec![34, 66, 0], vec![true; 3]));
        assert_eq!((shares(&dead(None)), panics(&dead(None))), (vec![0; 3], vec![false; 3]), "fails closed");
        assert_eq!(shares(&dead(Some(0))), [0; 3]);
    }

    #[test]
    fn priorities_in_panic_share_by_their_sizes() {
        // Five dead before one of five that comes and goes.
        let with = |healthy| loads(&[count(0, 5), count(healthy, 5)], 140, Some(50));
        assert_eq!((shares(&with(1)), shares(&with(0))), (vec![50, 50], vec![50, 50]));
        assert_eq!(panics(&with(1)), [true, true]);
    }

    #[test]
    fn priority_without_endpoints_gets_nothing() {
        assert_eq!(shares(&loads(&[count(0, 0), count(3, 3)], 140, Some(50))), [0, 100]);
        assert_eq!(shares(&loads(&[count(0, 0), count(0, 0)], 140, Some(50))), [0, 0]);
        assert_eq!(loads(&[], 140, Some(50)), []);
        assert_eq!(shares(&loads(&[count(u64::MAX, u64::MAX)], 1_000, Some(100))), [100]);
    }
}
