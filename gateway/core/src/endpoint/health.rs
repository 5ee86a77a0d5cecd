//! Whether an endpoint takes new connections, by what the gateway has seen itself: refused and timed-out connects eject it
//! for a while, failed probes exclude it until it answers. What returns and fails again soon has to answer more often.
//! Pure: time is an argument.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::config::settings::Ejection;
use crate::socket::Millis;

/// An ejected endpoint gets one connection each time, as a trial.
pub(crate) const TRIAL_MS: Millis = 5_000;
/// An endpoint that was healthy for this long is stable.
const STABLE_MS: Millis = 30_000;
/// Each return that did not last doubles the trial's interval and the probes that must be answered, so many times at most.
const MAX_FLAPS: u8 = 3;
/// The share of an endpoint when it returns, in per cent.
const LEAST_SHARE: u64 = 10;

/// What connects and probes have shown of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct EndpointHealth {
    /// Connect failures since the last success.
    failures: AtomicU32,
    /// Ejections in a row.
    ejections: AtomicU32,
    ejected_until: AtomicU64,
    /// The next connection that may try it while it is ejected.
    trial: AtomicU64,
    /// When it returned, or when an ejection ends; 0 for endpoints that were there from the start.
    returned: AtomicU64,
    /// The time in which its share grows from then on.
    ramp_ms: AtomicU32,
    /// It has failed its probes.
    is_down: AtomicBool,
    /// Probes in a row that speak for a change.
    streak: AtomicU8,
    /// Returns in a row that did not last.
    flaps: AtomicU8,
    /// Its ejection ends with an answer to the gateway's own hello, not with a connect.
    awaits_answer: AtomicBool,
}

/// What ejects an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Refused or timed-out connects.
    Connects,
    /// The gateway's own hellos.
    Hellos,
}

impl EndpointHealth {
    /// The health of an endpoint that joined a running service.
    pub(crate) fn joining(now: Millis, slow_start: Option<Duration>) -> EndpointHealth {
        let health = EndpointHealth::default();
        health.begin_ramp(now, slow_start);
        health
    }

    pub(crate) fn failures(&self) -> u32 {
        self.failures.load(Relaxed)
    }

    pub(crate) fn is_healthy(&self, now: Millis) -> bool {
        self.ejected_until.load(Relaxed) <= now && !self.is_down.load(Relaxed)
    }

    /// Whether it failed its probes.
    pub(crate) fn is_down(&self) -> bool {
        self.is_down.load(Relaxed)
    }

    pub(crate) fn is_ejected(&self, now: Millis) -> bool {
        self.ejected_until.load(Relaxed) > now
    }

    /// Returns the per cent of its share that it gets.
    pub(crate) fn ramp(&self, now: Millis) -> u8 {
        let (length, since) = (u64::from(self.ramp_ms.load(Relaxed)), self.returned.load(Relaxed));
        let elapsed = now.saturating_sub(since);
        if elapsed >= length {
            return 100;
        }
        u8::try_from((elapsed * 100 / length).max(LEAST_SHARE)).unwrap_or(100)
    }

    /// Records a connect; true if that ends an ejection.
    pub(crate) fn connected(&self, now: Millis) -> bool {
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
        self.is_ejected(now) && !self.awaits_answer.load(Relaxed) && self.readmit(now)
    }

    /// Records a refused or timed-out connect; true if that ejects it. An ejection whose trial failed lasts until the
    /// next trials.
    pub(crate) fn failed(
        &self,
        now: Millis,
        rule: &Ejection,
        slow_start: Option<Duration>,
        may_eject: impl FnOnce() -> bool,
    ) -> bool {
        if self.is_ejected(now) {
            let next_trials = (2 * self.trial_interval()).min(millis(rule.base));
            self.ejected_until.fetch_max(now.saturating_add(next_trials), Relaxed);
            return false;
        }
        let failures = self.failures.fetch_add(1, Relaxed).saturating_add(1);
        failures >= rule.failures && may_eject() && self.eject(now, rule, slow_start, Cause::Connects)
    }

    /// Ejects it for a while; false if it is ejected already.
    pub(crate) fn eject(
        &self,
        now: Millis,
        rule: &Ejection,
        slow_start: Option<Duration>,
        cause: Cause,
    ) -> bool {
        if rule.failures == 0 || self.is_ejected(now) {
            return false;
        }
        if now.saturating_sub(self.ejected_until.load(Relaxed)) > millis(rule.max) {
            self.ejections.store(0, Relaxed);
        }
        let times = self.ejections.fetch_add(1, Relaxed).saturating_add(1);
        let until = now.saturating_add(millis(rule.base.saturating_mul(times).min(rule.max)));
        self.went_down(now);
        self.failures.store(0, Relaxed);
        self.awaits_answer.store(cause == Cause::Hellos, Relaxed);
        self.trial.store(now.saturating_add(self.trial_interval()), Relaxed);
        self.begin_ramp(until, slow_start);
        self.ejected_until.store(until, Relaxed);
        true
    }

    /// Ends an ejection; false if there is none.
    pub(crate) fn readmit(&self, now: Millis) -> bool {
        self.failures.store(0, Relaxed);
        let was_ejected = self.ejected_until.fetch_min(now, Relaxed) > now;
        if was_ejected {
            self.returned.store(now, Relaxed);
        }
        was_ejected
    }

    /// Returns when a connection may try it; none while it is not ejected, or if a connect would not make it healthy.
    pub(crate) fn next_trial(&self, now: Millis) -> Option<Millis> {
        let by_connect = !self.awaits_answer.load(Relaxed) && !self.is_down();
        (self.is_ejected(now) && by_connect).then(|| self.trial.load(Relaxed))
    }

    /// Takes the trial that is due; false if another connection has it.
    pub(crate) fn begin_trial(&self, now: Millis) -> bool {
        let next = now.saturating_add(self.trial_interval());
        self.trial.fetch_update(Relaxed, Relaxed, |due| (due <= now).then_some(next)).is_ok()
    }

    /// Records an answered probe; true if that makes it healthy again.
    pub(crate) fn answered(&self, now: Millis, up_after: u8, slow_start: Option<Duration>) -> bool {
        if !self.is_down() {
            self.streak.store(0, Relaxed);
            return false;
        }
        let needed = u32::from(up_after) << self.flaps.load(Relaxed).min(MAX_FLAPS);
        if u32::from(self.one_more()) < needed {
            return false;
        }
        self.streak.store(0, Relaxed);
        self.begin_ramp(now, slow_start);
        self.is_down.store(false, Relaxed);
        true
    }

    /// Records a failed probe; true if that makes it unhealthy.
    pub(crate) fn unanswered(&self, now: Millis, down_after: u8) -> bool {
        if self.is_down() {
            self.streak.store(0, Relaxed);
            return false;
        }
        if self.one_more() < down_after {
            return false;
        }
        self.streak.store(0, Relaxed);
        self.went_down(now);
        self.is_down.store(true, Relaxed);
        true
    }

    /// Forgets probes, because it is not probed any more.
    pub(crate) fn forget_probes(&self) {
        if self.is_down() {
            self.is_down.store(false, Relaxed);
        }
        self.streak.store(0, Relaxed);
    }

    fn one_more(&self) -> u8 {
        self.streak.fetch_add(1, Relaxed).saturating_add(1)
    }

    fn went_down(&self, now: Millis) {
        let returned = self.returned.load(Relaxed);
        let lasted = returned == 0 || now.saturating_sub(returned) >= STABLE_MS;
        let flaps = if lasted { 0 } else { self.flaps.load(Relaxed).saturating_add(1).min(MAX_FLAPS) };
        self.flaps.store(flaps, Relaxed);
    }

    fn begin_ramp(&self, from: Millis, slow_start: Option<Duration>) {
        let length = slow_start.map_or(0, |length| u32::try_from(length.as_millis()).unwrap_or(u32::MAX));
        self.ramp_ms.store(length, Relaxed);
        self.returned.store(from.max(1), Relaxed);
    }

    fn trial_interval(&self) -> Millis {
        TRIAL_MS << self.flaps.load(Relaxed).min(MAX_FLAPS)
    }
}

fn millis(time: Duration) -> Millis {
    time.as_millis().try_into().unwrap_or(Millis::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Ejection = Ejection {
        failures: 2,
        base: Duration::from_secs(30),
        max: Duration::from_secs(50),
        max_percent: 10,
    };

    fn failed(health: &EndpointHealth, now: Millis) -> bool {
        health.failed(now, &RULE, None, || true)
    }

    fn eject(health: &EndpointHealth, now: Millis) {
        assert!(!failed(health, now) && failed(health, now) && !health.is_healthy(now));
    }

    #[test]
    fn ejection_lengthens_with_each_series_of_failures() {
        let health = EndpointHealth::default();
        assert!(!failed(&health, 0));
        health.connected(0);
        eject(&health, 0);
        assert!(!health.is_healthy(29_999) && health.is_healthy(30_000));
        eject(&health, 30_000);
        assert!(!health.is_healthy(79_999) && health.is_healthy(80_000));
        assert!(!health.failed(80_000, &RULE, None, || false));
        assert!(!health.failed(80_000, &RULE, None, || false));
        assert!(health.is_healthy(80_000));
        health.connected(80_000);
        eject(&health, 80_000 + 50_001);
        assert!(health.is_healthy(80_000 + 50_001 + 30_000), "after a long good time it begins anew");
    }

    #[test]
    fn ejection_ends_with_a_connect_and_lasts_while_trials_fail() {
        let health = EndpointHealth::default();
        eject(&health, 1_000);
        assert_eq!(health.next_trial(1_000), Some(6_000));
        assert!(!health.begin_trial(5_999));
        assert!(health.begin_trial(6_000) && !health.begin_trial(6_000), "one connection at a time");
        for trial in 6..30 {
            assert!(!failed(&health, trial * 1_000));
        }
        assert!(!health.is_healthy(38_999), "the last trial has failed at 29 s");
        assert!(health.connected(30_000) && health.is_healthy(30_000));
        assert!(!health.connected(30_000) && health.next_trial(30_000).is_none());
    }

    #[test]
    fn ejection_by_hellos_is_not_ended_by_a_connect() {
        let health = EndpointHealth::default();
        assert!(health.eject(0, &RULE, None, Cause::Hellos));
        assert!(!health.connected(1) && !health.is_healthy(1) && health.next_trial(1).is_none());
        assert!(health.readmit(2) && health.is_healthy(2));
    }

    #[test]
    fn trials_of_a_flapping_endpoint_are_rarer() {
        let health = EndpointHealth::default();
        let mut now = 1;
        for interval in [5_000, 10_000, 20_000, 40_000, 40_000] {
            eject(&health, now);
            assert_eq!(health.next_trial(now), Some(now + interval));
            now += 1_000;
            assert!(health.connected(now));
        }
        now += STABLE_MS;
        eject(&health, now);
        assert_eq!(health.next_trial(now), Some(now + TRIAL_MS), "it was stable");
    }

    #[test]
    fn probes_change_health_at_their_thresholds() {
        let health = EndpointHealth::default();
        assert!(!health.unanswered(0, 3) && !health.unanswered(0, 3));
        assert!(!health.answered(0, 2, None), "an answer ends the series");
        assert!(!health.unanswered(0, 3) && !health.unanswered(0, 3) && health.is_healthy(0));
        assert!(health.unanswered(0, 3) && !health.is_healthy(0) && health.is_down());
        assert!(!health.unanswered(0, 3), "it is down already");
        assert!(!health.answered(0, 2, None) && !health.unanswered(0, 3) && !health.answered(0, 2, None));
        assert!(health.answered(0, 2, None) && health.is_healthy(0));
    }

    #[test]
    fn flapping_endpoint_must_answer_more_probes() {
        let health = EndpointHealth::default();
        let mut now = 1;
        for needed in [1, 2, 4, 8, 8] {
            assert!(health.unanswered(now, 1));
            let answers = (1..).find(|_| health.answered(now, 1, None)).unwrap();
            assert_eq!(answers, needed);
            now += STABLE_MS - 1;
        }
        now += 1;
        assert!(health.unanswered(now, 1) && health.answered(now, 1, None), "it was stable");
    }

    #[test]
    fn share_of_a_returning_endpoint_grows_to_its_whole() {
        let slow = Some(Duration::from_secs(10));
        let health = EndpointHealth::default();
        assert_eq!(health.ramp(0), 100, "it was there from the start");
        assert!(health.unanswered(0, 1) && health.answered(1_000, 1, slow));
        let shares = [1_000, 2_500, 6_000, 10_999, 11_000].map(|now| health.ramp(now));
        assert_eq!(shares, [10, 15, 50, 99, 100]);
        let joining = EndpointHealth::joining(5_000, slow);
        assert_eq!([5_000, 10_000, 15_000].map(|now| joining.ramp(now)), [10, 50, 100]);
        let ejected = EndpointHealth::default();
        assert!(ejected.eject(0, &RULE, slow, Cause::Connects));
        assert_eq!([30_000, 35_000, 40_000].map(|now| ejected.ramp(now)), [10, 50, 100]);
        let early = EndpointHealth::default();
        assert!(early.eject(0, &RULE, slow, Cause::Connects) && early.connected(6_000));
        assert_eq!([6_000, 11_000, 16_000].map(|now| early.ramp(now)), [10, 50, 100]);
    }
}
