//! Schedules TCP probes of addresses while the source of their tables is unreachable (`stale: probe`): each address
//! every few seconds; after repeated failures it is down until it answers. Pure: it returns the addresses that are due,
//! and takes the results. `tcp` makes the connections.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant, SystemTime};

use isthmus_model::address::Target;

/// Interval between probes of an address.
const EVERY: Duration = Duration::from_secs(3);
/// Consecutive failures after which an address is down; one success brings it up.
const FAILURES: u32 = 3;
/// A probe without result after this time is considered lost, and repeated.
const LOST: Duration = Duration::from_secs(60);

/// The probed addresses with their state.
#[derive(Debug, Default)]
pub struct Probes {
    known: HashMap<Target, Known>,
    due: BTreeSet<(Instant, Target)>,
}

#[derive(Debug)]
struct Known {
    due: Instant,
    failures: u32,
    /// When the address went down, and why.
    down: Option<(Instant, String)>,
}

/// The result of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The address accepted a connection.
    Reached,
    /// The address did not accept a connection: why.
    Unreached(String),
    /// The probe was not made: this machine lacks a resource, or the name has no address.
    Unasked,
}

/// An address that is down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Down {
    /// The address.
    pub address: Target,
    /// When it went down.
    pub since: SystemTime,
    /// Why it is considered down.
    pub why: String,
}

impl Probes {
    /// Sets the addresses to probe. New ones count as up, and their first probes are spread over the interval.
    pub fn want(&mut self, wanted: &BTreeSet<Target>, now: Instant) {
        self.keep_only(wanted);
        let new: Vec<_> = wanted.iter().filter(|target| !self.known.contains_key(*target)).collect();
        let step = EVERY / u32::try_from(new.len()).unwrap_or(u32::MAX).max(1);
        let mut due = now;
        for target in new {
            self.known.insert(target.clone(), Known { due, failures: 0, down: None });
            self.due.insert((due, target.clone()));
            due += step;
        }
    }

    /// Drops all other addresses.
    pub fn keep_only(&mut self, wanted: &BTreeSet<Target>) {
        let Probes { known, due } = self;
        known.retain(|target, one| {
            let stays = wanted.contains(target);
            if !stays {
                due.remove(&(one.due, target.clone()));
            }
            stays
        });
    }

    /// The addresses that are due, at most `most`, longest wait first; each is returned once until its result arrives.
    pub fn next(&mut self, most: usize, now: Instant) -> Vec<Target> {
        let due = self.due.iter().take_while(|(due, _)| *due <= now).take(most);
        let asked: Vec<_> = due.map(|(_, target)| target.clone()).collect();
        for target in &asked {
            self.put_off(target, now + LOST);
        }
        asked
    }

    fn put_off(&mut self, target: &Target, until: Instant) {
        if let Some(known) = self.known.get_mut(target) {
            self.due.remove(&(known.due, target.clone()));
            known.due = until;
            self.due.insert((until, target.clone()));
        }
    }

    /// Records a result. Returns whether the address went down or came up.
    pub fn answered(&mut self, target: &Target, answer: Answer, now: Instant) -> bool {
        self.put_off(target, now + EVERY);
        let Some(known) = self.known.get_mut(target) else { return false };
        match answer {
            Answer::Reached => {
                known.failures = 0;
                known.down.take().is_some()
            }
            Answer::Unreached(why) => {
                known.failures = known.failures.saturating_add(1);
                let falls = known.failures >= FAILURES && known.down.is_none();
                if falls {
                    known.down = Some((now, why));
                }
                falls
            }
            Answer::Unasked => false,
        }
    }

    /// Whether an address is down.
    #[must_use]
    pub fn is_down(&self, target: &Target) -> bool {
        self.known.get(target).is_some_and(|known| known.down.is_some())
    }

    /// The number of probed addresses.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.known.len()
    }

    /// The addresses that are down, in order. `now` and `clock` are the same moment.
    #[must_use]
    pub fn down(&self, now: Instant, clock: SystemTime) -> Vec<Down> {
        let down = self.known.iter().filter_map(|(target, known)| {
            let (since, why) = known.down.as_ref()?;
            let since = clock.checked_sub(now.saturating_duration_since(*since)).unwrap_or(clock);
            Some(Down { address: target.clone(), since, why: why.clone() })
        });
        let mut down: Vec<_> = down.collect();
        down.sort_by(|one, other| one.address.cmp(&other.address));
        down
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(port: u16) -> Target {
        format!("10.0.0.1:{port}").parse().unwrap()
    }

    fn targets(ports: impl IntoIterator<Item = u16>) -> BTreeSet<Target> {
        ports.into_iter().map(target).collect()
    }

    fn refused() -> Answer {
        Answer::Unreached("refused".to_owned())
    }

    #[test]
    fn probe_is_down_after_three_consecutive_failures_and_up_after_one_success() {
        let (mut probes, start, one) = (Probes::default(), Instant::now(), target(1));
        probes.want(&targets([1]), start);
        let mut now = start;
        let mut ask = |probes: &mut Probes, answer: Answer| {
            assert_eq!(probes.next(9, now), std::slice::from_ref(&one));
            assert_eq!(probes.next(9, now + EVERY), [], "a probe is running");
            let changes = probes.answered(&one, answer, now);
            assert_eq!(probes.next(9, now + EVERY / 2), [], "the result has arrived");
            now += EVERY;
            (changes, probes.is_down(&one))
        };
        assert_eq!(ask(&mut probes, refused()), (false, false));
        assert_eq!(ask(&mut probes, refused()), (false, false));
        assert_eq!(ask(&mut probes, Answer::Reached), (false, false), "not consecutive");
        assert_eq!(ask(&mut probes, refused()), (false, false));
        assert_eq!(ask(&mut probes, Answer::Unasked), (false, false), "not a result");
        assert_eq!(ask(&mut probes, refused()), (false, false));
        assert_eq!(ask(&mut probes, refused()), (true, true));
        assert_eq!(ask(&mut probes, refused()), (false, true));
        let clock = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let down = Down { address: target(1), since: clock - EVERY * 2, why: "refused".to_owned() };
        assert_eq!(probes.down(start + EVERY * 8, clock), [down]);
        assert_eq!(ask(&mut probes, Answer::Reached), (true, false));
        probes.want(&BTreeSet::new(), start);
        assert_eq!((probes.asked(), probes.due.len()), (0, 0));
        assert!(!probes.answered(&one, refused(), start), "a late result is ignored");
    }

    #[test]
    fn probes_are_spread_over_the_interval_bounded_and_fair() {
        let (mut probes, start) = (Probes::default(), Instant::now());
        probes.want(&targets(1..=300), start);
        let at = |share: f64| start + EVERY.mul_f64(share);
        assert_eq!(probes.next(64, start).len(), 1);
        assert_eq!(probes.next(64, at(0.1)).len(), 30);
        assert_eq!(probes.next(64, at(1.0)).len(), 64, "the limit applies");
        let mut seen = BTreeSet::new();
        for _ in 0..4 {
            for target in probes.next(64, at(2.0)) {
                probes.answered(&target, Answer::Reached, at(2.0));
                assert!(seen.insert(target), "no address twice before all others once");
            }
        }
        assert_eq!(seen.len(), 205, "95 probes are still running");
        assert_eq!(probes.next(500, at(1.0) + LOST).len(), 300, "a lost probe is repeated");
    }

    #[test]
    fn probes_keep_the_state_of_addresses_that_stay() {
        let (mut probes, start) = (Probes::default(), Instant::now());
        probes.want(&targets([1, 2]), start);
        for _ in 0..FAILURES {
            probes.answered(&target(1), refused(), start);
        }
        probes.want(&targets([1, 3]), start);
        assert!(probes.is_down(&target(1)) && !probes.is_down(&target(3)));
        probes.keep_only(&targets([3]));
        probes.want(&targets([1, 3]), start);
        assert!(!probes.is_down(&target(1)), "a dropped address starts anew");
    }

    proptest! {
        /// Whatever the order of results, each address has exactly one place in the queue.
        #[test]
        fn probe_queue_has_each_address_once(
            events in proptest::collection::vec((0..4_u8, 1..7_u16, 0..200_u64), 0..100)
        ) {
            let (mut probes, start) = (Probes::default(), Instant::now());
            let mut now = start;
            for (what, port, seconds) in events {
                match what {
                    0 => probes.want(&targets(1..port), now),
                    1 => _ = probes.next(usize::from(port), now),
                    2 => _ = probes.answered(&target(port), refused(), now),
                    _ => _ = probes.answered(&target(port), Answer::Reached, now),
                }
                now += Duration::from_secs(seconds);
                let queued: BTreeSet<_> = probes.due.iter().map(|(due, target)| (*due, target)).collect();
                let known: BTreeSet<_> = probes.known.iter().map(|(target, one)| (one.due, target)).collect();
                prop_assert_eq!(queued, known);
            }
        }
    }
}
