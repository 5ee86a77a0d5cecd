//! Demotes endpoints for a while: those that rejected a client's hello, could not be reached, or do not answer the
//! gateway's own hello. Demotion changes the order and never excludes, so that no client can take an endpoint from
//! others. Ejection is in `endpoint`; the gateway's own hello is in `prober`.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::socket::Millis;
use crate::source::source_of;

/// After an answer to the gateway's own hello, clients' hellos do not demote an endpoint for this long.
const TRUSTED_MS: Millis = 10_000;
/// Minimum pause between two series of the gateway's own hellos.
const REST_MS: Millis = 1_000;

/// The result of one probe: of a hello of the gateway itself, a request, or a connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// It answered.
    Answered,
    /// It answered with a TLS alert, which says nothing about its health.
    Alerted,
    /// It closed.
    Closed,
    /// It reset.
    Reset,
    /// It did not answer in time.
    Silent,
    /// It could not be connected to.
    Unreached,
    /// The gateway of another cluster has no endpoint of this service, or does not know it.
    NotServed,
    /// It answered a request with a status that is not from 200 to 399, or not in HTTP.
    BadStatus,
    /// This machine could not ask it.
    Unasked,
}

impl Outcome {
    /// Every outcome, in the order of their discriminants.
    pub const ALL: [Outcome; 9] = [
        Outcome::Answered,
        Outcome::Alerted,
        Outcome::Closed,
        Outcome::Reset,
        Outcome::Silent,
        Outcome::Unreached,
        Outcome::NotServed,
        Outcome::BadStatus,
        Outcome::Unasked,
    ];

    /// The word in logs, labels and pages.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::Alerted => "alert",
            Outcome::Closed => "closed",
            Outcome::Reset => "reset",
            Outcome::Silent => "silent",
            Outcome::Unreached => "unreached",
            Outcome::NotServed => "not_served",
            Outcome::BadStatus => "bad_status",
            Outcome::Unasked => "not_asked",
        }
    }

    /// Whether it counts against the endpoint.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        !matches!(self, Outcome::Answered | Outcome::Alerted | Outcome::Unasked)
    }
}

const NO_OUTCOME: u8 = u8::MAX;

/// The state of an endpoint that was demoted at least once.
#[derive(Debug)]
pub(crate) struct Demotion {
    /// The last source whose hello was rejected; `for_source`: until when the endpoint is tried last for it.
    source: AtomicU64,
    for_source: AtomicU64,
    /// Until when it is tried last for all sources.
    for_all: AtomicU64,
    /// Until when clients' hellos do not demote it, because it answered the gateway's own.
    trusted: AtomicU64,
    /// No new series of own hellos before this.
    rests: AtomicU64,
    /// A series of own hellos is under way.
    checked: AtomicBool,
    /// Consecutive failed own hellos.
    failures: AtomicU32,
    outcome: AtomicU8,
}

impl Default for Demotion {
    fn default() -> Self {
        let never = || AtomicU64::new(0);
        Demotion {
            source: never(),
            for_source: never(),
            for_all: never(),
            trusted: never(),
            rests: never(),
            checked: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            outcome: AtomicU8::new(NO_OUTCOME),
        }
    }
}

impl Demotion {
    pub(crate) fn is_demoted(&self, source: IpAddr, now: Millis) -> bool {
        self.is_demoted_for_all(now)
            || (self.for_source.load(Relaxed) > now && self.source.load(Relaxed) == source_of(source))
    }

    pub(crate) fn is_demoted_for_all(&self, now: Millis) -> bool {
        self.failures.load(Relaxed) > 0 || self.for_all.load(Relaxed) > now
    }

    /// Records a rejected client hello: demoted for that source, and for all once it happened to two sources. True if
    /// the order changes.
    pub(crate) fn turned_away(&self, source: IpAddr, now: Millis, length: Millis) -> bool {
        if self.trusted.load(Relaxed) > now || self.is_demoted_for_all(now) {
            return false;
        }
        let (client, until) = (source_of(source), now.saturating_add(length));
        let is_running = self.for_source.load(Relaxed) > now;
        if is_running && self.source.load(Relaxed) != client {
            self.for_all.store(until, Relaxed);
            return true;
        }
        self.source.store(client, Relaxed);
        self.for_source.store(until, Relaxed);
        !is_running
    }

    /// Records a failed connect, for all sources. True if the order changes.
    pub(crate) fn unreached(&self, now: Millis, length: Millis) -> bool {
        let was_demoted = self.is_demoted_for_all(now);
        self.for_all.store(now.saturating_add(length), Relaxed);
        !was_demoted
    }

    /// Starts a series of own hellos if one may begin; false otherwise.
    pub(crate) fn begin_check(&self, now: Millis) -> bool {
        self.rests.load(Relaxed) <= now && !self.checked.swap(true, Relaxed)
    }

    pub(crate) fn end_check(&self, now: Millis) {
        self.rests.store(now.saturating_add(REST_MS), Relaxed);
        self.failures.store(0, Relaxed);
        self.checked.store(false, Relaxed);
    }

    /// Records a result and returns the number of consecutive failures.
    pub(crate) fn checked(&self, outcome: Outcome, now: Millis) -> u32 {
        self.outcome.store(outcome as u8, Relaxed);
        match outcome {
            Outcome::Answered => {
                for until in [&self.for_source, &self.for_all] {
                    until.store(0, Relaxed);
                }
                self.trusted.store(now.saturating_add(TRUSTED_MS), Relaxed);
                self.failures.store(0, Relaxed);
                0
            }
            Outcome::Alerted | Outcome::Unasked => self.failures.load(Relaxed),
            Outcome::Closed
            | Outcome::Reset
            | Outcome::Silent
            | Outcome::Unreached
            | Outcome::NotServed
            | Outcome::BadStatus => self.failures.fetch_add(1, Relaxed).saturating_add(1),
        }
    }

    /// Returns the result of the last own hello.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        Outcome::ALL.get(usize::from(self.outcome.load(Relaxed))).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn demotion_by_one_source_affects_that_source_until_it_ends() {
        let demotion = Demotion::default();
        assert!(demotion.turned_away(ONE, 5, 100));
        assert!(!demotion.turned_away(ONE, 6, 100), "order unchanged");
        assert!(demotion.is_demoted(ONE, 105) && !demotion.is_demoted(OTHER, 105));
        assert!(!demotion.is_demoted(ONE, 106));
        assert!(demotion.turned_away(ONE, 200, 100) && demotion.turned_away(OTHER, 210, 100));
        assert!(demotion.is_demoted(IpAddr::from([10, 0, 0, 1]), 309), "two sources demote it for all");
        assert!(!demotion.is_demoted(ONE, 310));
    }

    #[test]
    fn demotion_by_clients_ends_with_answered_check() {
        let demotion = Demotion::default();
        assert!(demotion.begin_check(1) && !demotion.begin_check(1), "one series at a time");
        for source in [ONE, OTHER] {
            assert!(demotion.turned_away(source, 1, 100));
        }
        assert_eq!(demotion.checked(Outcome::Answered, 2), 0);
        demotion.end_check(2);
        assert!(!demotion.is_demoted(ONE, 3) && !demotion.is_demoted(OTHER, 3));
        assert!(!demotion.turned_away(ONE, TRUSTED_MS, 100), "clients cannot demote it for a while");
        assert!(demotion.turned_away(ONE, TRUSTED_MS + 2, 100));
        assert!(!demotion.begin_check(REST_MS) && demotion.begin_check(REST_MS + 2));
    }

    #[test]
    fn demotion_lasts_while_checks_fail_and_ignores_alerts() {
        let demotion = Demotion::default();
        assert_eq!(demotion.checked(Outcome::Alerted, 0), 0);
        assert!(!demotion.is_demoted_for_all(0));
        let failures = [Outcome::Closed, Outcome::Reset, Outcome::Silent, Outcome::Unreached];
        let counted = failures.map(|outcome| demotion.checked(outcome, 1));
        assert_eq!(counted, [1, 2, 3, 4]);
        assert!(demotion.is_demoted(OTHER, Millis::MAX - 1));
        assert_eq!(demotion.checked(Outcome::Unasked, 2), 4, "not_asked does not count");
        assert_eq!(demotion.checked(Outcome::Answered, 3), 0);
        assert!(!demotion.is_demoted_for_all(4));
        assert_eq!(demotion.outcome(), Some(Outcome::Answered));
    }

    #[test]
    fn outcomes_are_indexed_by_their_discriminants() {
        for (index, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, index);
        }
    }
}
