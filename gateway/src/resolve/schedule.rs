//! When each name is due, and what an answer changes. Pure: time and randomness come in as arguments.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use isthmus_xds::HostName;
use tokio::time::Instant;

use crate::config::settings::Dns;

/// A lookup that has not ended after this long is taken for lost.
const LOST: Duration = Duration::from_secs(60);
/// The first retry of a failed lookup comes after this long; each further one after twice as long.
const RETRY: Duration = Duration::from_secs(1);
/// But at most this long.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What one lookup brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// IPv4.
    pub(super) v4: Family,
    /// IPv6.
    pub(super) v6: Family,
    /// The smallest of all records.
    pub(super) ttl: Duration,
}

/// The answer for one family of addresses.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// At least one.
    Addresses(Vec<IpAddr>),
    /// The servers say that there is none.
    Absent,
    /// Nobody could say.
    Failed(String),
}

/// What an answer means.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct News {
    /// To be used from now on; sorted, each once.
    pub(super) addresses: Vec<IpAddr>,
    /// They differ from those before.
    pub(super) is_change: bool,
    /// Why they could not be confirmed.
    pub(super) problem: Option<String>,
}

/// All names and when they are due.
#[derive(Debug)]
pub(super) struct Schedule {
    names: HashMap<HostName, Entry>,
    due: BTreeSet<(Instant, HostName)>,
    min_ttl: Duration,
    max_ttl: Duration,
}

#[derive(Debug)]
struct Entry {
    due: Instant,
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
    /// Lookups in a row that could not confirm the addresses.
    failures: u32,
}

impl Schedule {
    pub(super) fn new(dns: &Dns) -> Schedule {
        Schedule {
            names: HashMap::new(),
            due: BTreeSet::new(),
            min_ttl: dns.min_ttl,
            max_ttl: dns.max_ttl.max(dns.min_ttl),
        }
    }

    /// Names that are new are due at once; those that are not among `names` (sorted) are forgotten.
    pub(super) fn keep_only(&mut self, names: &[HostName], now: Instant) {
        let Schedule { names: known, due, .. } = self;
        known.retain(|name, entry| {
            let stays = names.binary_search(name).is_ok();
            if !stays {
                due.remove(&(entry.due, name.clone()));
            }
            stays
        });
        for name in names {
            known.entry(name.clone()).or_insert_with(|| {
                due.insert((now, name.clone()));
                Entry { due: now, v4: Vec::new(), v6: Vec::new(), failures: 0 }
            });
        }
    }

    /// When the next name is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// The next name that is due, to be looked up now.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<HostName> {
        let (due, name) = self.due.first()?;
        if *due > now {
            return None;
        }
        let name = name.clone();
        self.put_off(&name, now + LOST);
        Some(name)
    }

    fn put_off(&mut self, name: &HostName, until: Instant) {
        if let Some(entry) = self.names.get_mut(name) {
            self.due.remove(&(entry.due, name.clone()));
            entry.due = until;
            self.due.insert((until, name.clone()));
        }
    }

    /// Takes what a lookup brought; none when nobody asks for this name any more. `jitter` is in 0..1.
    pub(super) fn answered(
        &mut self,
        name: &HostName,
        found: Found,
        now: Instant,
        jitter: f64,
    ) -> Option<News> {
        let entry = self.names.get_mut(name)?;
        let before = entry.all();
        let (problem, is_answer) = entry.take(found.v4, found.v6);
        let addresses = entry.all();
        if problem.is_none() {
            if entry.failures > 0 {
                tracing::info!(%name, ?addresses, "the name resolves again");
            }
            entry.failures = 0;
        } else {
            entry.failures = entry.failures.saturating_add(1);
        }
        if let Some(problem) = &problem
            && entry.failures == 1
        {
            let kept = &addresses;
            tracing::warn!(%name, %problem, ?kept, "the name does not resolve; it keeps the addresses it had");
        }
        let ttl = found.ttl.clamp(self.min_ttl, self.max_ttl);
        let wait = match entry.failures {
            0 => ttl,
            failures if is_answer => ttl.min(retry_after(failures, jitter)),
            failures => retry_after(failures, jitter),
        };
        self.put_off(name, now + wait);
        Some(News { is_change: addresses != before, addresses, problem })
    }
}

impl Entry {
    fn all(&self) -> Vec<IpAddr> {
        let mut all = [self.v4.as_slice(), self.v6.as_slice()].concat();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// A family that failed keeps what it had. When nothing would be left, everything is kept.
    fn take(&mut self, v4: Family, v6: Family) -> (Option<String>, bool) {
        let is_answer = [&v4, &v6].iter().any(|family| matches!(family, Family::Addresses(_)));
        let mut problem = None;
        let mut merge = |family, before: &Vec<IpAddr>| match family {
            Family::Addresses(addresses) => addresses,
            Family::Absent => Vec::new(),
            Family::Failed(why) => {
                problem.get_or_insert(why);
                before.clone()
            }
        };
        let (v4, v6) = (merge(v4, &self.v4), merge(v6, &self.v6));
        if is_answer || !(v4.is_empty() && v6.is_empty()) {
            (self.v4, self.v6) = (v4, v6);
        } else {
            problem.get_or_insert_with(|| "there are no addresses of this name".to_owned());
        }
        (problem, is_answer)
    }
}

/// 1 s, 2 s, 4 s … 30 s, each up to a quarter shorter or longer, so that names that failed together do not
/// come back together.
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
        Found { v4, v6, ttl: Duration::from_secs(ttl) }
    }

    fn texts(news: &News) -> Vec<String> {
        news.addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_name_is_due_at_once_then_when_its_ttl_ends() {
        let now = Instant::now();
        let mut schedule = Schedule::new(&dns(5, 60));
        schedule.keep_only(&[name("a"), name("b")], now);
        let mut due: Vec<_> = std::iter::from_fn(|| schedule.take_due(now)).collect();
        due.sort();
        assert_eq!(due, [name("a"), name("b")]);
        assert_eq!(schedule.take_due(now), None, "each is being looked up");
        for (ttl, wait) in [(30, 30), (1, 5), (3600, 60)] {
            schedule.answered(&name("a"), found(some(&["10.0.0.1"]), Family::Absent, ttl), now, NOW).unwrap();
            assert_eq!(schedule.next_due(), Some(now + Duration::from_secs(wait)), "TTL {ttl}");
        }
        schedule.keep_only(&[name("b")], now);
        assert_eq!(schedule.next_due(), Some(now + LOST), "b's lookup may yet get lost");
        let late = schedule.answered(&name("a"), found(some(&["10.0.0.1"]), Family::Absent, 1), now, NOW);
        assert_eq!(late, None);
        schedule.keep_only(&[], now);
        assert_eq!(schedule.next_due(), None);
    }

    #[test]
    fn what_cannot_be_confirmed_is_kept_and_asked_for_again() {
        let now = Instant::now();
        let mut schedule = Schedule::new(&dns(1, 300));
        let name = name("a");
        schedule.keep_only(std::slice::from_ref(&name), now);
        let mut answer = |v4, v6| {
            let news = schedule.answered(&name, found(v4, v6, 300), now, NOW).unwrap();
            (
                texts(&news),
                news.is_change,
                news.problem.is_some(),
                (schedule.next_due().unwrap() - now).as_secs(),
            )
        };
        let none: Vec<String> = Vec::new();
        let both = || vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned(), "fd00::1".to_owned()];
        assert_eq!(answer(failed(), failed()), (none, false, true, 1));
        let v4 = || some(&["10.0.0.2", "10.0.0.1", "10.0.0.2"]);
        assert_eq!(answer(v4(), some(&["fd00::1"])), (both(), true, false, 300));
        assert_eq!(answer(failed(), failed()), (both(), false, true, 1));
        assert_eq!(answer(Family::Absent, Family::Absent), (both(), false, true, 2));
        assert_eq!(answer(v4(), failed()), (both(), false, true, 4), "one family failed: it is retried");
        assert_eq!(answer(v4(), Family::Absent), (both()[..2].to_vec(), true, false, 300));
        assert_eq!(answer(Family::Absent, failed()), (both()[..2].to_vec(), false, true, 1));
        assert_eq!(answer(Family::Absent, some(&["fd00::1"])), (both()[2..].to_vec(), true, false, 300));
    }

    #[test]
    fn retries_back_off_with_jitter() {
        let seconds = |failures, jitter| retry_after(failures, jitter).as_secs_f64();
        assert_eq!([1, 2, 3, 5, 6, 99].map(|n| seconds(n, 0.5)), [1.0, 2.0, 4.0, 16.0, 30.0, 30.0]);
        assert_eq!((seconds(1, 0.0), seconds(1, 1.0)), (0.75, 1.25));
    }
}
