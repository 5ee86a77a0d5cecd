//! Schedules lookups: when each name is due, and what an answer changes. Pure: time and randomness are arguments.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::proto::rr::Name;
use isthmus_model::HostName;
use tokio::time::Instant;

use crate::config::settings::Dns;

/// A lookup that has not ended after this long counts as lost.
const LOST: Duration = Duration::from_secs(60);
/// Delay before the first retry of a failed lookup; it doubles with each further one.
const RETRY: Duration = Duration::from_secs(1);
/// Maximum delay between retries.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Kind {
    fn other(self) -> Kind {
        match self {
            Kind::V4 => Kind::V6,
            Kind::V6 => Kind::V4,
        }
    }

    /// DNS record type.
    fn record(self) -> &'static str {
        match self {
            Kind::V4 => "A",
            Kind::V6 => "AAAA",
        }
    }
}

/// The address families of one lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Both at once.
    Both,
    /// One, while the other is valid for longer or does not answer.
    Only(Kind),
}

impl Asked {
    pub(super) fn has(self, kind: Kind) -> bool {
        self == Asked::Both || self == Asked::Only(kind)
    }
}

/// One lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) name: HostName,
    pub(super) asked: Asked,
    /// The full name under which the other family was found: another search domain may be another host.
    pub(super) at: Option<Name>,
}

/// The result of one lookup.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) v4: Option<Family>,
    pub(super) v6: Option<Family>,
    /// Smallest TTL of all records; none without records.
    pub(super) ttl: Option<Duration>,
    /// Full name that has the records.
    pub(super) at: Option<Name>,
}

/// The answer for one address family.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// At least one address.
    Addresses(Vec<IpAddr>),
    /// The servers have no address of this family.
    Absent,
    /// The lookup failed.
    Failed(String),
}

/// The effect of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct News {
    /// Addresses in use from now on, sorted and unique.
    pub(super) addresses: Vec<IpAddr>,
    /// The addresses have changed.
    pub(super) is_change: bool,
    /// At least one family has answered with addresses.
    pub(super) is_confirmed: bool,
    /// Why some or all addresses could not be confirmed.
    pub(super) problem: Option<String>,
}

/// The queue of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// Queries that addresses depend on.
    Regular,
    /// Silent families of names whose other family answers. They must not delay regular queries.
    Doubtful,
}

type Queued = BTreeSet<(Instant, HostName, Kind)>;

/// All names and when each of their families is due.
#[derive(Debug)]
pub(super) struct Schedule {
    names: HashMap<HostName, Entry>,
    regular: Queued,
    doubtful: Queued,
    min_ttl: Duration,
    max_ttl: Duration,
}

#[derive(Debug)]
struct Entry {
    v4: FamilyState,
    v6: FamilyState,
    at: Option<Name>,
    /// Whether it had confirmed addresses at the last answer.
    resolves: Option<bool>,
}

/// The state of one address family of a name.
#[derive(Debug)]
struct FamilyState {
    addresses: Vec<IpAddr>,
    due: Instant,
    queue: Queue,
    /// Consecutive lookups that could not confirm the addresses.
    failures: u32,
    /// Why the last lookup failed.
    problem: Option<String>,
}

impl Schedule {
    pub(super) fn new(dns: &Dns) -> Schedule {
        Schedule {
            names: HashMap::new(),
            regular: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            min_ttl: dns.min_ttl,
            max_ttl: dns.max_ttl.max(dns.min_ttl),
        }
    }

    /// Adds new names, due at once, and forgets names that are not in `names` (sorted).
    pub(super) fn keep_only(&mut self, names: &[HostName], now: Instant) {
        let gone = self.names.keys().filter(|name| names.binary_search(name).is_err());
        for name in gone.cloned().collect::<Vec<_>>() {
            self.take_off(&name, Kind::V4);
            self.take_off(&name, Kind::V6);
            self.names.remove(&name);
        }
        for name in names {
            if !self.names.contains_key(name) {
                self.names.insert(name.clone(), Entry::new(now));
                self.schedule(name, Kind::V4, now, Queue::Regular);
                self.schedule(name, Kind::V6, now, Queue::Regular);
            }
        }
    }

    /// When the next name of a queue is due.
    pub(super) fn next_due(&self, queue: Queue) -> Option<Instant> {
        let queued = if queue == Queue::Regular { &self.regular } else { &self.doubtful };
        queued.first().map(|(due, ..)| *due)
    }

    /// Takes the next due query of a queue.
    pub(super) fn take_due(&mut self, queue: Queue, now: Instant) -> Option<Question> {
        let (due, name, kind) = self.queued(queue).first()?;
        if *due > now {
            return None;
        }
        let (name, kind) = (name.clone(), *kind);
        let entry = self.names.get(&name)?;
        let (asked, at) = match entry.state_of(kind.other()).due <= now {
            true => (Asked::Both, None),
            false => (Asked::Only(kind), entry.at.clone()),
        };
        for kind in [Kind::V4, Kind::V6].into_iter().filter(|kind| asked.has(*kind)) {
            let queue = self.names.get(&name)?.state_of(kind).queue;
            self.schedule(&name, kind, now + LOST, queue);
        }
        Some(Question { name, asked, at })
    }

    fn queued(&mut self, queue: Queue) -> &mut Queued {
        match queue {
            Queue::Regular => &mut self.regular,
            Queue::Doubtful => &mut self.doubtful,
        }
    }

    fn take_off(&mut self, name: &HostName, kind: Kind) {
        if let Some(held) = self.names.get(name).map(|entry| entry.state_of(kind)) {
            let (due, queue) = (held.due, held.queue);
            self.queued(queue).remove(&(due, name.clone(), kind));
        }
    }

    fn schedule(&mut self, name: &HostName, kind: Kind, due: Instant, queue: Queue) {
        self.take_off(name, kind);
        if let Some(entry) = self.names.get_mut(name) {
            let held = entry.state_of_mut(kind);
            (held.due, held.queue) = (due, queue);
            self.queued(queue).insert((due, name.clone(), kind));
        }
    }

    /// Applies the result of a lookup; none if the name is no longer scheduled. `jitter` is in 0..1.
    pub(super) fn answered(
        &mut self,
        name: &HostName,
        found: Found,
        now: Instant,
        jitter: f64,
    ) -> Option<News> {
        let ttl = found.ttl.map(|ttl| ttl.clamp(self.min_ttl, self.max_ttl));
        let entry = self.names.get_mut(name)?;
        let before = entry.all();
        let asked = [(Kind::V4, found.v4.is_some()), (Kind::V6, found.v6.is_some())];
        let is_confirmed = entry.accept(found);
        let resolves = entry.resolves();
        entry.note(name, resolves, asked);
        let addresses = entry.all();
        let problem = entry.problem(resolves);
        let dues = entry.dues(asked, ttl, now, jitter);
        for (kind, due, queue) in dues {
            self.schedule(name, kind, due, queue);
        }
        Some(News { is_change: addresses != before, addresses, is_confirmed, problem })
    }
}

impl Entry {
    fn new(now: Instant) -> Entry {
        let [v4, v6] = [(); 2].map(|()| FamilyState {
            addresses: Vec::new(),
            due: now,
            queue: Queue::Regular,
            failures: 0,
            problem: None,
        });
        Entry { v4, v6, at: None, resolves: None }
    }

    fn state_of(&self, kind: Kind) -> &FamilyState {
        match kind {
            Kind::V4 => &self.v4,
            Kind::V6 => &self.v6,
        }
    }

    fn state_of_mut(&mut self, kind: Kind) -> &mut FamilyState {
        match kind {
            Kind::V4 => &mut self.v4,
            Kind::V6 => &mut self.v6,
        }
    }

    fn all(&self) -> Vec<IpAddr> {
        let mut all = [self.v4.addresses.as_slice(), self.v6.addresses.as_slice()].concat();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether some address was confirmed at the last lookup of its family.
    fn resolves(&self) -> bool {
        [&self.v4, &self.v6].iter().any(|held| held.failures == 0 && !held.addresses.is_empty())
    }

    /// Applies a result. A failed family keeps its addresses, and so does an absent one if none would be left. Returns
    /// whether the result has addresses.
    fn accept(&mut self, found: Found) -> bool {
        let mut absent = Vec::new();
        let mut is_confirmed = false;
        for (kind, family) in [(Kind::V4, found.v4), (Kind::V6, found.v6)] {
            match family {
                None => {}
                Some(Family::Addresses(addresses)) => {
                    self.state_of_mut(kind).confirm(addresses);
                    is_confirmed = true;
                }
                Some(Family::Absent) => absent.push(kind),
                Some(Family::Failed(why)) => self.state_of_mut(kind).fail(why),
            }
        }
        for kind in &absent {
            let other = self.state_of(kind.other());
            if other.addresses.is_empty() || absent.contains(&kind.other()) {
                self.state_of_mut(*kind).fail("the name has no addresses".to_owned());
            } else {
                self.state_of_mut(*kind).confirm(Vec::new());
            }
        }
        if found.at.is_some() {
            self.at = found.at;
        }
        is_confirmed
    }

    /// Logs once when a name or one of its families stops resolving, and once when it resolves again.
    fn note(&mut self, name: &HostName, resolves: bool, asked: [(Kind, bool); 2]) {
        let before = self.resolves.replace(resolves);
        match (before, resolves) {
            (None | Some(true), false) => {
                let (kept, problem) = (self.all(), self.problem(resolves).unwrap_or_default());
                tracing::warn!(%name, %problem, ?kept, "host name does not resolve; keeping its last addresses");
            }
            (Some(false), true) => tracing::info!(%name, addresses = ?self.all(), "host name resolves again"),
            _ => {}
        }
        // The first failure may be one lost packet.
        for (kind, _) in asked.into_iter().filter(|(_, is_asked)| resolves && *is_asked) {
            let held = self.state_of(kind);
            if held.failures == 2 {
                let (problem, kept) = (held.problem.as_deref().unwrap_or_default(), &held.addresses);
                let family = kind.record();
                tracing::info!(%name, family, problem, ?kept, "no answer for one address family; using the other");
            }
        }
    }

    fn problem(&self, resolves: bool) -> Option<String> {
        let problems = [Kind::V4, Kind::V6].map(|kind| (kind, self.state_of(kind).problem.as_deref()));
        let (kind, problem) = problems.into_iter().find_map(|(kind, problem)| Some((kind, problem?)))?;
        Some(if resolves { format!("{}: {problem}", kind.record()) } else { problem.to_owned() })
    }

    /// Returns when the queried families are due again. If nothing resolves, the other family is due with them: the
    /// name may now be in another search domain.
    fn dues(
        &mut self,
        asked: [(Kind, bool); 2],
        ttl: Option<Duration>,
        now: Instant,
        jitter: f64,
    ) -> Vec<(Kind, Instant, Queue)> {
        let due_of = |held: &FamilyState| match (held.failures, ttl) {
            (0, Some(ttl)) => Some(now + ttl),
            (0, None) => None,
            (failures, _) => Some(now + retry_after(failures, jitter)),
        };
        let is_asked = |kind| asked.contains(&(kind, true));
        let due =
            |kind| if is_asked(kind) { due_of(self.state_of(kind)) } else { Some(self.state_of(kind).due) };
        let dues = [Kind::V4, Kind::V6].map(|kind| (kind, due(kind)));
        let soonest = dues.iter().filter_map(|(_, due)| *due).min();
        let Some(soonest) = soonest else { return Vec::new() };
        let resolves = self.resolves();
        if !resolves {
            self.at = None;
        }
        let queue = |kind| match resolves && self.state_of(kind).failures > 0 {
            true => Queue::Doubtful,
            false => Queue::Regular,
        };
        let due = |(kind, due): (Kind, Option<Instant>)| match due {
            // A family without addresses is queried with the other one.
            Some(due) if resolves => (kind, due, queue(kind)),
            _ => (kind, soonest, queue(kind)),
        };
        dues.map(due).into()
    }
}

impl FamilyState {
    fn confirm(&mut self, addresses: Vec<IpAddr>) {
        (self.addresses, self.failures, self.problem) = (addresses, 0, None);
    }

    fn fail(&mut self, why: String) {
        self.failures = self.failures.saturating_add(1);
        self.problem = Some(why);
    }
}

/// Returns 1 s, 2 s, 4 s … 30 s, each up to a quarter shorter or longer, so that names that failed together are not
/// retried together.
fn retry_after(failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    RETRY.saturating_mul(1 << doublings).min(RETRY_MAX).mul_f64(0.75 + jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: f64 = 0.5;

    fn dns(min_ttl: u64, max_ttl: u64) -> Dns {
        let (min_ttl, max_ttl) = (Duration::from_secs(min_ttl), Duration::from_secs(max_ttl));
        Dns { servers: Vec::new(), min_ttl, max_ttl }
    }

    fn name(text: &str) -> HostName {
        HostName::parse(text).unwrap()
    }

    fn some(addresses: &[&str]) -> Family {
        Family::Addresses(addresses.iter().map(|address| address.parse().unwrap()).collect())
    }

    fn failed() -> Family {
        Family::Failed("SERVFAIL".to_owned())
    }

    fn found(v4: Family, v6: Family, ttl: u64) -> Found {
        let ttl = Some(Duration::from_secs(ttl));
        Found { v4: Some(v4), v6: Some(v6), ttl, at: Some(Name::from_ascii("a.lan.").unwrap()) }
    }

    fn only(kind: Kind, family: Family) -> Found {
        let [v4, v6] = match kind {
            Kind::V4 => [Some(family), None],
            Kind::V6 => [None, Some(family)],
        };
        Found { v4, v6, ttl: None, at: None }
    }

    fn texts(news: &News) -> Vec<String> {
        news.addresses.iter().map(ToString::to_string).collect()
    }

    fn due(schedule: &Schedule, queue: Queue, now: Instant) -> Option<u64> {
        schedule.next_due(queue).map(|due| (due - now).as_secs())
    }

    #[test]
    fn schedule_new_name_is_due_at_once_then_at_ttl() {
        let now = Instant::now();
        let mut schedule = Schedule::new(&dns(5, 60));
        schedule.keep_only(&[name("a"), name("b")], now);
        let mut due_now: Vec<_> = std::iter::from_fn(|| schedule.take_due(Queue::Regular, now)).collect();
        due_now.sort_by(|one, other| one.name.cmp(&other.name));
        let both = |text| Question { name: name(text), asked: Asked::Both, at: None };
        assert_eq!(due_now, [both("a"), both("b")]);
        assert_eq!(schedule.take_due(Queue::Regular, now), None, "all are being looked up");
        for (ttl, wait) in [(30, 30), (1, 5), (3600, 60)] {
            schedule.answered(&name("a"), found(some(&["10.0.0.1"]), Family::Absent, ttl), now, NOW).unwrap();
            assert_eq!(due(&schedule, Queue::Regular, now), Some(wait), "TTL {ttl}");
        }
        schedule.keep_only(&[name("b")], now);
        assert_eq!(schedule.next_due(Queue::Regular), Some(now + LOST), "b's lookup may yet get lost");
        let late = schedule.answered(&name("a"), found(some(&["10.0.0.1"]), Family::Absent, 1), now, NOW);
        assert_eq!(late, None);
        schedule.keep_only(&[], now);
        assert_eq!((schedule.next_due(Queue::Regular), schedule.next_due(Queue::Doubtful)), (None, None));
    }

    #[test]
    fn schedule_keeps_unconfirmed_addresses_and_retries() {
        let now = Instant::now();
        let mut schedule = Schedule::new(&dns(1, 300));
        let name = name("a");
        schedule.keep_only(std::slice::from_ref(&name), now);
        let mut answer = |v4, v6| {
            let news = schedule.answered(&name, found(v4, v6, 300), now, NOW).unwrap();
            let due = [Queue::Regular, Queue::Doubtful].map(|queue| due(&schedule, queue, now));
            (texts(&news), news.is_change, news.problem.is_some(), due)
        };
        let none: Vec<String> = Vec::new();
        let both = || vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned(), "fd00::1".to_owned()];
        let at = |seconds| [Some(seconds), None];
        assert_eq!(answer(failed(), failed()), (none, false, true, at(1)));
        let v4 = || some(&["10.0.0.2", "10.0.0.1", "10.0.0.2"]);
        assert_eq!(answer(v4(), some(&["fd00::1"])), (both(), true, false, at(300)));
        assert_eq!(answer(failed(), failed()), (both(), false, true, at(1)));
        assert_eq!(answer(Family::Absent, Family::Absent), (both(), false, true, at(2)));
        let apart = [Some(300), Some(4)];
        assert_eq!(answer(v4(), failed()), (both(), false, true, apart), "the one that failed is retried");
        assert_eq!(answer(v4(), Family::Absent), (both()[..2].to_vec(), true, false, at(300)));
        assert_eq!(answer(Family::Absent, failed()), (both()[..2].to_vec(), false, true, at(1)));
        assert_eq!(answer(Family::Absent, some(&["fd00::1"])), (both()[2..].to_vec(), true, false, at(300)));
    }

    #[test]
    fn schedule_of_silent_family_is_separate() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut schedule = Schedule::new(&dns(1, 300));
        let name = name("a");
        schedule.keep_only(std::slice::from_ref(&name), start);
        schedule.take_due(Queue::Regular, start).unwrap();
        let news = schedule.answered(&name, found(some(&["10.0.0.1"]), failed(), 10), start, NOW).unwrap();
        assert_eq!((texts(&news), news.is_confirmed), (vec!["10.0.0.1".to_owned()], true));
        assert!(news.problem.unwrap().starts_with("AAAA: "));
        assert_eq!(schedule.take_due(Queue::Regular, at(9)), None, "the other family keeps its own TTL");
        let asked = schedule.take_due(Queue::Doubtful, at(1)).unwrap();
        assert_eq!(asked.asked, Asked::Only(Kind::V6));
        assert_eq!(asked.at.unwrap().to_string(), "a.lan.", "where the other family was found");
        schedule.answered(&name, only(Kind::V6, failed()), at(8), NOW).unwrap();
        assert_eq!(due(&schedule, Queue::Doubtful, at(8)), Some(2));
        let asked = schedule.take_due(Queue::Doubtful, at(10)).unwrap();
        assert_eq!(asked.asked, Asked::Both, "both are due");
        let news = schedule.answered(&name, found(some(&["10.0.0.1"]), failed(), 10), at(10), NOW).unwrap();
        assert!(!news.is_change);
        let news = schedule.answered(&name, only(Kind::V6, some(&["fd00::1"])), at(12), NOW).unwrap();
        assert_eq!((news.addresses.len(), news.is_change, news.problem), (2, true, None));
        assert_eq!(schedule.next_due(Queue::Doubtful), None);
    }

    #[test]
    fn schedule_retries_lost_name_in_all_search_domains() {
        let now = Instant::now();
        let mut schedule = Schedule::new(&dns(1, 300));
        let name = name("a");
        schedule.keep_only(std::slice::from_ref(&name), now);
        schedule.take_due(Queue::Regular, now).unwrap();
        schedule.answered(&name, found(some(&["10.0.0.1"]), failed(), 1), now, NOW).unwrap();
        let later = now + Duration::from_secs(1);
        schedule.take_due(Queue::Doubtful, later).unwrap();
        let news = schedule.answered(&name, only(Kind::V6, failed()), later, NOW).unwrap();
        assert_eq!(texts(&news), ["10.0.0.1"]);
        let news = schedule.answered(&name, only(Kind::V4, Family::Absent), later, NOW).unwrap();
        assert_eq!(
            (texts(&news), news.is_confirmed, news.is_change),
            (vec!["10.0.0.1".to_owned()], false, false)
        );
        let asked = schedule.take_due(Queue::Regular, later + Duration::from_secs(2)).unwrap();
        assert_eq!((asked.asked, asked.at), (Asked::Both, None));
    }

    #[test]
    fn retries_back_off_with_jitter() {
        let seconds = |failures, jitter| retry_after(failures, jitter).as_secs_f64();
        assert_eq!([1, 2, 3, 5, 6, 99].map(|n| seconds(n, 0.5)), [1.0, 2.0, 4.0, 16.0, 30.0, 30.0]);
        assert_eq!((seconds(1, 0.0), seconds(1, 1.0)), (0.75, 1.25));
    }
}
