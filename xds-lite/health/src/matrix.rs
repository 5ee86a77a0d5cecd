//! Decides when a gateway probes each gateway address of other clusters, and what follows from the results: round trip
//! and loss, whether the address is up, and its class of distance. Pure: it returns the addresses that are due and takes
//! the results; time and randomness are arguments. If all addresses fail, the last good ones stay in use: then it is
//! this gateway that is cut off.

mod distances;
mod round_trip;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use isthmus_model::address::Target;
use isthmus_model::matrix::{Row, State};
use isthmus_model::slice::Cluster;

use distances::Classes;
pub use distances::Distances;
use round_trip::{RoundTrip, Window};

/// Interval between probes of an address.
const EVERY: Duration = Duration::from_secs(5);
/// Interval after a first result and after a failure, until the state is certain.
const SOON: Duration = Duration::from_secs(1);
/// Intervals vary by this part in both directions: gateways that started together do not probe together.
const JITTER: f64 = 0.2;
/// Consecutive failures after which an address is down.
const FAILURES: u32 = 3;
/// Consecutive successes after which it is up again.
const SUCCESSES: u32 = 2;
/// Round trips before an address has a class of distance.
const SAMPLES: u32 = 3;
/// A probe without result after this time is considered lost, and repeated.
const LOST: Duration = Duration::from_secs(60);
/// Of addresses that fail together, those are the last good ones that answered within this time before the last answer.
const TOGETHER: Duration = Duration::from_secs(30);
/// How long they stay in use once the first address answers again: the others get the time to answer as well.
const GRACE: Duration = Duration::from_secs(10);
/// The most addresses of a cluster that are probed: other clusters' lists are untrusted.
const OF_CLUSTER: usize = 16;
/// The most addresses of all clusters.
const OF_ALL: usize = 256;

/// A gateway address of another cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The cluster.
    pub cluster: Cluster,
    /// The gateway as the cluster offers it.
    pub gateway: Target,
    /// The address: the same, or one that the name resolved to.
    pub address: std::net::SocketAddr,
}

/// The result of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A TLS alert arrived after this time: what every gateway answers.
    Alerted(Duration),
    /// The connection was closed or reset after this time, as a proxy of another make does.
    Closed(Duration),
    /// Nothing arrived: why.
    Unreached(String),
    /// The probe was not made: this machine lacks a resource.
    Unasked,
}

/// A change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The address.
    pub place: Place,
    /// Its state from now on.
    pub state: State,
    /// The last failure.
    pub why: String,
}

/// The probed addresses with their state.
#[derive(Debug, Default)]
pub struct Matrix {
    known: BTreeMap<Place, Known>,
    due: BTreeSet<(Instant, Place)>,
    left_out: usize,
    cut_off: Option<CutOff>,
    classes: Classes,
}

#[derive(Debug)]
struct Known {
    due: Instant,
    trip: Option<RoundTrip>,
    window: Window,
    /// Consecutive results of one kind.
    failures: u32,
    successes: u32,
    is_failing: bool,
    answered: Option<Instant>,
    /// It has answered with an alert: from then on, a close is a failure.
    alerts: bool,
    state: State,
    since: Instant,
    why: String,
}

/// No address answers.
#[derive(Debug)]
struct CutOff {
    since: Instant,
    /// The last good addresses.
    kept: BTreeSet<Place>,
    /// Until when these are kept; none: until an address answers.
    until: Option<Instant>,
}

impl Matrix {
    /// Sets the addresses to probe, at most 16 of a cluster and 256 in all. The first probes of new ones are spread over a
    /// second; until they have completed, an address is neither up nor down. `random` is in 0..1.
    pub fn want(
        &mut self,
        places: impl IntoIterator<Item = Place>,
        now: Instant,
        mut random: impl FnMut() -> f64,
    ) {
        let (mut wanted, mut of_cluster, mut left_out) =
            (BTreeSet::new(), BTreeMap::<Cluster, usize>::new(), 0);
        for place in places {
            let count = of_cluster.entry(place.cluster.clone()).or_default();
            if *count >= OF_CLUSTER || wanted.len() >= OF_ALL {
                left_out += 1;
            } else if wanted.insert(place) {
                *count += 1;
            }
        }
        self.left_out = left_out;
        let Matrix { known, due, .. } = self;
        known.retain(|place, one| {
            let stays = wanted.contains(place);
            if !stays {
                due.remove(&(one.due, place.clone()));
            }
            stays
        });
        for place in wanted.into_iter().filter(|place| !known.contains_key(place)).collect::<Vec<_>>() {
            let first = now + SOON.mul_f64(random().clamp(0.0, 1.0));
            due.insert((first, place.clone()));
            known.insert(place, Known::new(first, now));
        }
    }

    /// The addresses that are due, at most `most`, longest wait first; each is returned once until its result arrives.
    pub fn next(&mut self, most: usize, now: Instant) -> Vec<Place> {
        let due = self.due.iter().take_while(|(due, _)| *due <= now).take(most);
        let asked: Vec<_> = due.map(|(_, place)| place.clone()).collect();
        for place in &asked {
            self.put_off(place, now + LOST);
        }
        asked
    }

    /// When the next address is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    fn put_off(&mut self, place: &Place, until: Instant) {
        if let Some(known) = self.known.get_mut(place) {
            self.due.remove(&(known.due, place.clone()));
            known.due = until;
            self.due.insert((until, place.clone()));
        }
    }

    /// Records a result; returns the addresses whose state changes. `random` is in 0..1.
    pub fn answered(&mut self, place: &Place, answer: Answer, now: Instant, random: f64) -> Vec<Change> {
        let Some(known) = self.known.get_mut(place) else { return Vec::new() };
        known.record(answer, now);
        let pause = known.pause().mul_f64(1.0 + JITTER * (2.0 * random.clamp(0.0, 1.0) - 1.0));
        self.put_off(place, now + pause);
        self.settle(now)
    }

    /// Applies what the passage of time changes; returns the addresses whose state changes.
    pub fn settle(&mut self, now: Instant) -> Vec<Change> {
        self.note_cut_off(now);
        let kept = self.cut_off.as_ref().map(|cut_off| &cut_off.kept);
        let mut changes = Vec::new();
        for (place, known) in &mut self.known {
            let is_kept = kept.is_some_and(|kept| kept.contains(place));
            let state = match known.is_failing {
                _ if known.window.is_empty() => State::Unknown,
                true if is_kept => State::Kept,
                true => State::Down,
                // One failure is not enough, nor is one success.
                false => State::Up,
            };
            if state != known.state {
                (known.state, known.since) = (state, now);
                changes.push(Change { place: place.clone(), state, why: known.why.clone() });
            }
        }
        changes
    }

    /// A cut-off begins when every address that was probed fails, and ends a while after one answers.
    fn note_cut_off(&mut self, now: Instant) {
        let mut probed = self.known.values().filter(|known| !known.window.is_empty()).peekable();
        let is_cut_off = probed.peek().is_some() && probed.all(|known| known.is_failing);
        match &mut self.cut_off {
            None if !is_cut_off => {}
            Some(CutOff { until: None, .. }) if is_cut_off => {}
            Some(cut_off) if !is_cut_off => {
                let until = *cut_off.until.get_or_insert(now + GRACE);
                if now >= until {
                    self.cut_off = None;
                }
            }
            before => {
                let mut kept = before.take().map(|before| before.kept).unwrap_or_default();
                kept.extend(last_good(&self.known).cloned());
                self.cut_off = Some(CutOff { since: now, kept, until: None });
            }
        }
    }

    /// Since when no address has answered.
    #[must_use]
    pub fn cut_off_since(&self) -> Option<Instant> {
        self.cut_off.as_ref().filter(|cut_off| cut_off.until.is_none()).map(|cut_off| cut_off.since)
    }

    /// The addresses that new connections avoid.
    pub fn down(&self) -> impl Iterator<Item = &Place> {
        self.known.iter().filter(|(_, known)| known.state == State::Down).map(|(place, _)| place)
    }

    /// Addresses that are not probed because there are too many.
    #[must_use]
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// Computes the classes of distance anew; returns them if they have changed. A gateway with several addresses is as
    /// near as the nearest of those that answer. A gateway that is down keeps its distance.
    pub fn measure(&mut self, now: Instant) -> Option<Distances> {
        let mut nearest: BTreeMap<Target, (bool, Duration)> = BTreeMap::new();
        for (place, known) in &self.known {
            let Some(trip) = known.trip.filter(|trip| trip.samples() >= SAMPLES) else { continue };
            let found = (known.is_failing, trip.smoothed);
            let best = nearest.entry(place.gateway.clone()).or_insert(found);
            *best = (*best).min(found);
        }
        let trips = nearest.into_iter().map(|(gateway, (_, trip))| (gateway, trip)).collect();
        self.classes.advance(&trips, now).then(|| self.classes.current().clone())
    }

    /// All addresses, in order. `now` and `clock` are the same moment.
    #[must_use]
    pub fn rows(&self, now: Instant, clock: SystemTime) -> Vec<Row> {
        let row = |(place, known): (&Place, &Known)| Row {
            cluster: place.cluster.to_string(),
            gateway: place.gateway.to_string(),
            address: place.address.to_string(),
            state: known.state,
            since: seconds(clock, now.saturating_duration_since(known.since)),
            rtt_micros: known.trip.map(|trip| micros(trip.smoothed)),
            jitter_micros: known.trip.map(|trip| micros(trip.deviation)),
            loss_percent: known.window.loss_percent(),
            class: self.classes.current().class(&place.gateway),
            why: (!known.why.is_empty()).then(|| known.why.clone()),
        };
        self.known.iter().map(row).collect()
    }
}

/// The addresses that answered shortly before the last answer of all.
fn last_good(known: &BTreeMap<Place, Known>) -> impl Iterator<Item = &Place> {
    let last = known.values().filter_map(|known| known.answered).max();
    let is_good = move |known: &Known| {
        last.zip(known.answered)
            .is_some_and(|(last, answered)| last.saturating_duration_since(answered) <= TOGETHER)
    };
    known.iter().filter(move |(_, known)| is_good(known)).map(|(place, _)| place)
}

/// Seconds since 1970 of a moment that long ago.
#[must_use]
pub fn seconds(clock: SystemTime, ago: Duration) -> u64 {
    let since = clock.checked_sub(ago).unwrap_or(clock);
    since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Known {
    fn new(due: Instant, now: Instant) -> Known {
        Known {
            due,
            trip: None,
            window: Window::default(),
            failures: 0,
            successes: 0,
            is_failing: false,
            answered: None,
            alerts: false,
            state: State::Unknown,
            since: now,
            why: String::new(),
        }
    }

    fn record(&mut self, answer: Answer, now: Instant) {
        match answer {
            Answer::Alerted(trip) => {
                self.alerts = true;
                self.succeed(trip, now);
            }
            Answer::Closed(trip) if !self.alerts => self.succeed(trip, now),
            Answer::Closed(_) => self.fail("the connection was closed without an alert".to_owned()),
            Answer::Unreached(why) => self.fail(why),
            Answer::Unasked => {}
        }
    }

    fn succeed(&mut self, trip: Duration, now: Instant) {
        self.window.add(false);
        self.answered = Some(now);
        (self.failures, self.successes) = (0, self.successes.saturating_add(1));
        let is_back = self.is_failing && self.successes >= SUCCESSES;
        self.is_failing &= !is_back;
        if !self.is_failing {
            self.why.clear();
        }
        match &mut self.trip {
            // What was measured before the failure is old.
            Some(known) if is_back => known.restart(trip),
            Some(known) => known.add(trip),
            None => self.trip = Some(RoundTrip::first(trip)),
        }
    }

    fn fail(&mut self, why: String) {
        self.window.add(true);
        (self.failures, self.successes) = (self.failures.saturating_add(1), 0);
        self.is_failing |= self.failures >= FAILURES;
        self.why = why;
    }

    /// The time until the next probe: short while a state is not certain.
    fn pause(&self) -> Duration {
        let is_certain = match self.is_failing {
            true => self.successes == 0,
            false => self.failures == 0 && self.trip.is_some_and(|trip| trip.samples() >= SAMPLES),
        };
        if is_certain { EVERY } else { SOON }
    }
}

#[cfg(test)]
mod tests;
