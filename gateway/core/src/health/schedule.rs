//! Decides which endpoint is probed next, at a cost that does not depend on the size of the tables. Each service's
//! endpoints have their turns, spread over its interval. When more are due than may be asked, clusters take turns, and
//! within one cluster services do: neither a peer with many services nor a service with many endpoints delays the others
//! by more than its part. Pure: time and randomness are arguments.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use crate::socket::Millis;

/// Probes of one cluster's endpoints under way at once: one that hangs leaves room for the others.
pub(super) const LANE_AT_ONCE: usize = 128;
/// Probes that are late by less are as configured: the prober looks that often.
pub(crate) const TICK_MS: Millis = 20;

/// Whose endpoints: another cluster behind its gateways, or this network's.
pub(crate) type Owner = Option<Box<str>>;

/// The endpoints that are probed.
#[derive(Debug)]
pub(crate) struct Schedule<S> {
    lanes: BTreeMap<Owner, Lane>,
    jobs: HashMap<Key, Job<S>>,
    /// The owner of the last probe.
    last: Owner,
    endpoints: usize,
}

/// A service, by a number of its own, and the owner of the endpoints.
type Key = (usize, Owner);

#[derive(Debug, Default)]
struct Lane {
    due: BTreeSet<(Millis, usize)>,
    running: usize,
}

#[derive(Debug)]
struct Job<S> {
    service: S,
    /// Positions of endpoints in the service.
    members: Box<[u32]>,
    /// Whose turn it is.
    turn: usize,
    interval: Millis,
    due: Millis,
}

/// An endpoint to probe.
#[derive(Debug)]
pub(crate) struct Due<S> {
    pub(crate) service: S,
    /// Its position in the service.
    pub(crate) member: usize,
    pub(crate) owner: Owner,
    /// Per cent of its interval that it has waited.
    pub(crate) stretch: u32,
}

impl<S> Default for Schedule<S> {
    fn default() -> Schedule<S> {
        Schedule { lanes: BTreeMap::new(), jobs: HashMap::new(), last: None, endpoints: 0 }
    }
}

impl<S: Clone> Schedule<S> {
    /// Number of endpoints.
    pub(crate) fn endpoints(&self) -> usize {
        self.endpoints
    }

    /// Sets the endpoints of a service that are probed, by owner. A service that is known keeps its place; the first
    /// probe of a new one is somewhere in its interval.
    pub(crate) fn want(
        &mut self,
        number: usize,
        service: &S,
        members: BTreeMap<Owner, Vec<u32>>,
        interval: Millis,
        (now, random): (Millis, &mut fastrand::Rng),
    ) {
        for (owner, members) in members {
            let key = (number, owner);
            let before = self.remove(&key);
            let step = step(interval, members.len());
            let first = now.saturating_add(random.u64(0..step.max(1)));
            let (turn, due) = before.map_or((0, first), |job| (job.turn, job.due.min(first)));
            self.lanes.entry(key.1.clone()).or_default().due.insert((due, number));
            self.endpoints += members.len();
            self.jobs
                .insert(key, Job { service: service.clone(), members: members.into(), turn, interval, due });
        }
    }

    /// Takes the next probe that is due; each must be followed by [`Schedule::ended`]. One for whose service `is_current`
    /// does not hold is dropped.
    pub(crate) fn next(
        &mut self,
        now: Millis,
        random: &mut fastrand::Rng,
        is_current: impl Fn(&S) -> bool,
    ) -> Option<Due<S>> {
        loop {
            let key = self.next_key(now)?;
            let Some(job) = self.jobs.get_mut(&key).filter(|job| is_current(&job.service)) else {
                self.remove(&key);
                continue;
            };
            let step = step(job.interval, job.members.len());
            let late = now.saturating_sub(job.due).saturating_sub(TICK_MS);
            let member = job.members.get(job.turn % job.members.len().max(1)).copied().unwrap_or_default();
            job.turn = (job.turn + 1) % job.members.len().max(1);
            // What was missed is not made up for, or it would be before others that have waited.
            let next = job.due.max(now.saturating_sub(TICK_MS)).saturating_add(jittered(step, random));
            let due = std::mem::replace(&mut job.due, next);
            let service = job.service.clone();
            let lane = self.lanes.entry(key.1.clone()).or_default();
            lane.due.remove(&(due, key.0));
            lane.due.insert((next, key.0));
            lane.running += 1;
            self.last.clone_from(&key.1);
            let stretch = late.saturating_add(step).saturating_mul(100) / step;
            let stretch = u32::try_from(stretch).unwrap_or(u32::MAX);
            return Some(Due { service, member: member as usize, owner: key.1, stretch });
        }
    }

    /// A probe has ended.
    pub(crate) fn ended(&mut self, owner: &Owner) {
        if let Some(lane) = self.lanes.get_mut(owner) {
            lane.running = lane.running.saturating_sub(1);
        }
        self.drop_lane(owner);
    }

    /// When the next probe is due; none if there is none, or if only the end of another one lets it begin.
    pub(crate) fn next_due(&self) -> Option<Millis> {
        let open = self.lanes.values().filter(|lane| lane.running < LANE_AT_ONCE);
        open.filter_map(|lane| lane.due.first()).map(|(due, _)| *due).min()
    }

    fn next_key(&self, now: Millis) -> Option<Key> {
        let after = self.lanes.range((Bound::Excluded(&self.last), Bound::Unbounded));
        let before = self.lanes.range((Bound::Unbounded, Bound::Included(&self.last)));
        after.chain(before).find_map(|(owner, lane)| {
            let (due, number) = lane.due.first().filter(|_| lane.running < LANE_AT_ONCE)?;
            (*due <= now).then(|| (*number, owner.clone()))
        })
    }

    fn remove(&mut self, key: &Key) -> Option<Job<S>> {
        let job = self.jobs.remove(key)?;
        self.endpoints -= job.members.len();
        if let Some(lane) = self.lanes.get_mut(&key.1) {
            lane.due.remove(&(job.due, key.0));
        }
        self.drop_lane(&key.1);
        Some(job)
    }

    fn drop_lane(&mut self, owner: &Owner) {
        if self.lanes.get(owner).is_some_and(|lane| lane.due.is_empty() && lane.running == 0) {
            self.lanes.remove(owner);
        }
    }
}

/// The time between two probes of a service, of which each endpoint gets its part.
fn step(interval: Millis, members: usize) -> Millis {
    (interval / members.max(1) as Millis).max(1)
}

/// A tenth more or less, so that gateways that began together do not stay together.
fn jittered(step: Millis, random: &mut fastrand::Rng) -> Millis {
    step - step / 10 + random.u64(0..=step / 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        schedule: Schedule<usize>,
        random: fastrand::Rng,
        now: Millis,
    }

    impl World {
        fn new() -> World {
            World { schedule: Schedule::default(), random: fastrand::Rng::with_seed(7), now: 0 }
        }

        fn want(&mut self, number: usize, owner: &str, members: u32) {
            let members = BTreeMap::from([(
                Some(owner).filter(|owner| !owner.is_empty()).map(Into::into),
                (0..members).collect(),
            )]);
            self.schedule.want(number, &number, members, 3_000, (self.now, &mut self.random));
        }

        /// How often each service is probed in a time, by its number, with so many probes a second.
        fn run(&mut self, seconds: u64, a_second: u64) -> HashMap<usize, usize> {
            let mut counts = HashMap::new();
            let each_tick = a_second * TICK_MS / 1_000;
            for _ in 0..seconds * 1_000 / TICK_MS {
                self.now += TICK_MS;
                for _ in 0..each_tick {
                    let Some(due) = self.schedule.next(self.now, &mut self.random, |_| true) else { break };
                    self.schedule.ended(&due.owner);
                    *counts.entry(due.service).or_default() += 1;
                }
            }
            counts
        }
    }

    #[test]
    fn endpoints_are_probed_once_in_their_interval() {
        let mut world = World::new();
        (1..=10).for_each(|number| world.want(number, "", u32::try_from(number).unwrap()));
        let counts = world.run(300, 500);
        for number in 1..=10 {
            let each = counts[&number] / number;
            assert!(
                (90..=110).contains(&each),
                "service {number}: {each} probes of each endpoint in 100 intervals"
            );
        }
        assert_eq!(world.schedule.endpoints(), 55);
    }

    #[test]
    fn every_endpoint_of_a_service_has_its_turn() {
        let mut world = World::new();
        world.want(1, "", 7);
        let mut seen = Vec::new();
        while seen.len() < 14 {
            world.now += 1;
            let next = world.schedule.next(world.now, &mut world.random, |_| true);
            seen.extend(next.map(|due| due.member));
        }
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn large_service_does_not_delay_small_ones() {
        let mut world = World::new();
        world.want(0, "", 60_000);
        (1..=100).for_each(|number| world.want(number, "", 1));
        let counts = world.run(30, 500);
        let fewest = (1..=100).map(|number| counts[&number]).min().unwrap();
        assert!(fewest >= 9, "{fewest} probes in 10 intervals");
        assert!(counts[&0] > 13_000, "the rest is its: {}", counts[&0]);
    }

    #[test]
    fn peer_with_many_services_does_not_delay_others() {
        let mut world = World::new();
        (0..100).for_each(|number| world.want(number, "", 1));
        (100..200).for_each(|number| world.want(number, "west", 1));
        (200..100_000).for_each(|number| world.want(number, "greedy", 1));
        let counts = world.run(30, 500);
        let fewest = (0..200).map(|number| counts[&number]).min().unwrap();
        assert!(fewest >= 9, "{fewest} probes in 10 intervals");
    }

    #[test]
    fn overload_stretches_all_intervals_alike() {
        let mut world = World::new();
        (0..10_000).for_each(|number| world.want(number, "", 1));
        let counts = world.run(100, 500);
        let (fewest, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
        // Each interval is a tenth longer or shorter.
        assert!(counts.len() == 10_000 && most - fewest <= 2, "{fewest} to {most}");
        let due = world.schedule.next(world.now + TICK_MS, &mut world.random, |_| true).unwrap();
        assert!((600..750).contains(&due.stretch), "20 s instead of 3: {} per cent", due.stretch);
    }

    #[test]
    fn hanging_cluster_has_a_bounded_number_of_probes() {
        let mut world = World::new();
        (0..1_000).for_each(|number| world.want(number, "dead", 1));
        world.want(5_000, "", 1);
        world.now = 10_000;
        let World { schedule, random, .. } = &mut world;
        let taken: Vec<_> = std::iter::from_fn(|| schedule.next(10_000, random, |_| true)).collect();
        assert_eq!(taken.iter().filter(|due| due.owner.is_some()).count(), LANE_AT_ONCE);
        assert_eq!(taken.iter().filter(|due| due.owner.is_none()).count(), 1);
        assert!(schedule.next_due().unwrap() > 10_000, "only the own cluster's next one");
        schedule.ended(&Some("dead".into()));
        assert!(schedule.next(10_000, random, |_| true).is_some());
    }

    #[test]
    fn schedule_drops_services_that_are_gone_and_keeps_the_turn_of_others() {
        let mut world = World::new();
        (0..3).for_each(|number| world.want(number, "", 2));
        world.run(4, 500);
        world.want(1, "", 3);
        assert_eq!(world.schedule.endpoints(), 7);
        assert!(world.schedule.jobs[&(1, None)].due <= world.now + 1_000, "the first of three steps");
        world.now += 10_000;
        let next = world.schedule.next(world.now, &mut world.random, |number| *number == 1).unwrap();
        assert_eq!(next.service, 1);
        world.now += 10_000;
        assert!(world.schedule.next(world.now, &mut world.random, |_| false).is_none());
        assert_eq!((world.schedule.endpoints(), world.schedule.next_due()), (0, None));
        world.schedule.ended(&None);
        assert!(world.schedule.lanes.is_empty());
    }
}
