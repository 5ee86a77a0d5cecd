//! Puts gateways into classes of distance: those whose round trips are alike are in one class. Classes change only after
//! the change has lasted, so that two gateways of nearly one distance do not swap with each measurement.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_model::address::Target;

/// Round trips that differ by no more than this are alike, whatever their ratio.
const ALIKE: Duration = Duration::from_millis(5);
/// Round trips are alike up to this part more: a quarter.
const ALIKE_PART: u32 = 4;
/// How long a change must last.
const HOLD: Duration = Duration::from_secs(10);

/// The class of distance of each gateway. Equal to another one if all classes are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distances(Arc<BTreeMap<Target, u8>>);

impl Distances {
    /// The class of a gateway: 0 for the nearest ones, and for those that are not measured.
    #[must_use]
    pub fn class(&self, gateway: &Target) -> u8 {
        self.0.get(gateway).copied().unwrap_or_default()
    }

    /// The gateways whose classes differ from those in `other`.
    #[must_use]
    pub fn differing(&self, other: &Distances) -> BTreeSet<Target> {
        let all = self.0.keys().chain(other.0.keys());
        all.filter(|gateway| self.class(gateway) != other.class(gateway)).cloned().collect()
    }

    fn known(&self, gateway: &Target) -> Option<u8> {
        self.0.get(gateway).copied()
    }
}

impl FromIterator<(Target, u8)> for Distances {
    fn from_iter<I: IntoIterator<Item = (Target, u8)>>(classes: I) -> Distances {
        Distances(Arc::new(classes.into_iter().collect()))
    }
}

/// The classes in use, and those that may replace them.
#[derive(Debug, Default)]
pub(super) struct Classes {
    current: Distances,
    next: Option<(Distances, Instant)>,
}

impl Classes {
    pub(super) fn current(&self) -> &Distances {
        &self.current
    }

    /// Compares the round trips with the classes in use; returns true if these have changed.
    pub(super) fn advance(&mut self, round_trips: &BTreeMap<Target, Duration>, now: Instant) -> bool {
        let found = self.classify(round_trips);
        if found == self.current {
            self.next = None;
            return false;
        }
        let since = match &self.next {
            Some((next, since)) if *next == found => *since,
            _ => now,
        };
        // A gateway that is new or gone, and moves no other one, has nothing to wait for.
        let moves = self
            .current
            .0
            .iter()
            .any(|(gateway, class)| found.known(gateway).is_some_and(|now| now != *class));
        if moves && now.saturating_duration_since(since) < HOLD {
            self.next = Some((found, since));
            return false;
        }
        (self.current, self.next) = (found, None);
        true
    }

    /// The nearest gateway of a class decides which others are alike. Gateways that share a class today may differ by
    /// more before they part, and others must differ by less before they meet.
    fn classify(&self, round_trips: &BTreeMap<Target, Duration>) -> Distances {
        let mut sorted: Vec<_> = round_trips.iter().map(|(gateway, trip)| (*trip, gateway)).collect();
        sorted.sort_unstable();
        let mut classes = Vec::with_capacity(sorted.len());
        let (mut class, mut nearest) = (0_u8, None);
        for (trip, gateway) in sorted {
            let known = self.current.known(gateway);
            match nearest {
                Some((first, of_first)) if trip > first + margin(first, of_first, known) => {
                    class = class.saturating_add(1);
                    nearest = Some((trip, known));
                }
                Some(_) => {}
                None => nearest = Some((trip, known)),
            }
            classes.push((gateway.clone(), class));
        }
        classes.into_iter().collect()
    }
}

fn margin(trip: Duration, one: Option<u8>, other: Option<u8>) -> Duration {
    let alike = ALIKE.max(trip / ALIKE_PART);
    match one.zip(other) {
        None => alike,
        Some((one, other)) if one == other => alike * 3 / 2,
        Some(_) => alike * 2 / 3,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gateway(number: u64) -> Target {
        format!("10.0.0.{number}:15443").parse().unwrap()
    }

    fn measured(millis: &[u64]) -> BTreeMap<Target, Duration> {
        let all = (1..).zip(millis);
        all.map(|(number, millis)| (gateway(number), Duration::from_millis(*millis))).collect()
    }

    fn classes(classes: &Classes, count: u64) -> Vec<u8> {
        (1..=count).map(|number| classes.current().class(&gateway(number))).collect()
    }

    #[test]
    fn distances_within_a_quarter_or_five_milliseconds_are_alike() {
        let now = Instant::now();
        for (millis, expected) in [
            (&[30, 90][..], &[0, 1][..]),
            (&[90, 30], &[1, 0]),
            (&[1, 6], &[0, 0]),
            (&[1, 7], &[0, 1]),
            (&[100, 125], &[0, 0]),
            (&[100, 126], &[0, 1]),
            // The first of a class decides: no chain of neighbours joins all.
            (&[100, 120, 140, 160], &[0, 0, 1, 1]),
        ] {
            let mut found = Classes::default();
            assert!(found.advance(&measured(millis), now));
            assert_eq!(classes(&found, millis.len() as u64), expected, "{millis:?}");
        }
    }

    #[test]
    fn distances_change_only_after_the_change_has_lasted() {
        let (mut found, start) = (Classes::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(found.advance(&measured(&[30, 90]), start), "at first at once");
        assert!(!found.advance(&measured(&[300, 90]), at(1)));
        assert!(!found.advance(&measured(&[30, 90]), at(8)), "it was an outlier");
        assert!(!found.advance(&measured(&[300, 90]), at(12)));
        assert!(!found.advance(&measured(&[300, 90]), at(21)));
        assert!(found.advance(&measured(&[320, 90]), at(22)), "slow for ten seconds");
        assert_eq!(classes(&found, 2), [1, 0]);
        assert!(!found.advance(&measured(&[30, 90]), at(23)));
        assert!(found.advance(&measured(&[30, 90]), at(33)));
        assert_eq!(classes(&found, 2), [0, 1]);
    }

    #[test]
    fn distances_near_the_limit_keep_their_classes() {
        let (mut alike, mut apart, start) = (Classes::default(), Classes::default(), Instant::now());
        assert!(alike.advance(&measured(&[100, 120]), start) && apart.advance(&measured(&[100, 130]), start));
        for second in 1..100 {
            let now = start + Duration::from_secs(second);
            assert!(!alike.advance(&measured(&[100, 135]), now), "alike up to three eighths more");
            assert!(!apart.advance(&measured(&[100, 118]), now), "apart down to a sixth more");
        }
    }

    #[test]
    fn distance_of_a_new_gateway_counts_at_once_if_it_moves_no_other() {
        let (mut found, start) = (Classes::default(), Instant::now());
        assert!(found.advance(&measured(&[30]), start));
        assert!(found.advance(&measured(&[30, 90]), start));
        assert!(!found.advance(&measured(&[30, 90, 1]), start), "it would move both others");
        assert!(found.advance(&measured(&[30, 90, 1]), start + HOLD));
        let before = found.current().clone();
        assert!(found.advance(&measured(&[30, 90, 1, 900]), start + HOLD));
        assert_eq!(found.current().differing(&before), BTreeSet::from([gateway(4)]));
    }

    proptest! {
        /// Whatever was before, a nearer gateway is never in a later class.
        #[test]
        fn distances_are_ordered(rounds in proptest::collection::vec(proptest::collection::vec(0_u64..500, 1..8), 1..8)) {
            let (mut found, mut now) = (Classes::default(), Instant::now());
            for millis in rounds {
                let round_trips = measured(&millis);
                for _ in 0..2 {
                    found.advance(&round_trips, now);
                    now += HOLD;
                }
                for (one, near) in &round_trips {
                    for (other, far) in &round_trips {
                        prop_assert!(near > far || found.current().class(one) <= found.current().class(other) || near == far);
                    }
                }
            }
        }
    }
}
