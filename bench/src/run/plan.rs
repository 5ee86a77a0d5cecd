//! Computes when operations are due and when a run is complete. Pure: time is an argument.
//!
//! With a rate, operation `k` is due `k / rate` after the start, regardless of earlier operations.

use std::str::FromStr;
use std::time::Duration;

const NANOS: u128 = 1_000_000_000;

/// Operations per second or minute, evenly spaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    count: u32,
    per: Duration,
}

/// The rate, duration and number of operations of a run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Plan {
    /// `None`: as fast as the connections allow.
    pub(crate) rate: Option<Rate>,
    /// `None`: until `count` is reached.
    pub(crate) duration: Option<Duration>,
    /// `None`: until `duration` is over.
    pub(crate) count: Option<u64>,
}

impl Plan {
    /// How long after the start an operation is due; `None` past the end and without a rate.
    pub(crate) fn due(&self, operation: u64) -> Option<Duration> {
        let due = self.rate?.due(operation);
        self.wants(operation, due).then_some(due)
    }

    /// Number of operations due by then.
    pub(crate) fn due_by(&self, elapsed: Duration) -> u64 {
        let Some(rate) = self.rate else { return 0 };
        // An operation due exactly at the end does not start.
        let last = self.duration.map(|duration| duration.saturating_sub(Duration::from_nanos(1)));
        let due = rate.due_by(last.map_or(elapsed, |last| elapsed.min(last)));
        self.count.map_or(due, |count| due.min(count))
    }

    /// Whether an operation may start at this time.
    pub(crate) fn wants(&self, operation: u64, elapsed: Duration) -> bool {
        self.count.is_none_or(|count| operation < count)
            && self.duration.is_none_or(|duration| elapsed < duration)
    }
}

impl Rate {
    fn due(self, operation: u64) -> Duration {
        let nanos = u128::from(operation) * self.per.as_nanos() / u128::from(self.count);
        let seconds = u64::try_from(nanos / NANOS).unwrap_or(u64::MAX);
        Duration::new(seconds, u32::try_from(nanos % NANOS).unwrap_or_default())
    }

    /// Number of operations due at or before this time.
    fn due_by(self, elapsed: Duration) -> u64 {
        // Due times are rounded down, so the last nanosecond counts in full.
        let periods = ((elapsed.as_nanos() + 1) * u128::from(self.count)).div_ceil(self.per.as_nanos());
        u64::try_from(periods).unwrap_or(u64::MAX)
    }

    pub(crate) fn per_second(self) -> f64 {
        f64::from(self.count) / self.per.as_secs_f64()
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, per) = match text.split_once('/') {
            None => (text, Duration::from_secs(1)),
            Some((number, "s")) => (number, Duration::from_secs(1)),
            Some((number, "m")) => (number, Duration::from_mins(1)),
            Some(_) => return Err("use a whole number per second or minute: 500, 500/s or 30/m".to_owned()),
        };
        match number.parse() {
            Ok(count @ 1..=1_000_000) => Ok(Self { count, per }),
            _ => Err("use a whole number from 1 to 1000000: 500, 500/s or 30/m".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(rate: &str) -> Plan {
        Plan { rate: Some(rate.parse().unwrap()), ..Plan::default() }
    }

    #[test]
    fn plan_operations_are_due_at_even_intervals_without_drift() {
        assert_eq!(plan("3").due(0), Some(Duration::ZERO));
        assert_eq!(plan("3").due(1), Some(Duration::from_nanos(333_333_333)));
        assert_eq!(plan("3/s").due(300), Some(Duration::from_secs(100)));
        assert_eq!(plan("30/m").due(5), Some(Duration::from_secs(10)));
        assert_eq!(plan("1000000").due(u64::from(u32::MAX)).unwrap().as_secs(), 4294);
    }

    #[test]
    fn plan_due_count_agrees_with_due_times() {
        let duration = Some(Duration::from_millis(100));
        let ends = [(None, None), (duration, None), (None, Some(20)), (duration, Some(1000))];
        for (text, (duration, count)) in
            ["1", "3", "7", "600/m", "999", "1000", "1000000"].iter().flat_map(|r| ends.map(|end| (r, end)))
        {
            let plan = Plan { duration, count, ..plan(text) };
            for operation in 0..200 {
                let Some(due) = plan.due(operation) else { continue };
                assert_eq!(plan.due_by(due), operation + 1, "{text}, {duration:?}, {count:?}");
                let before = due.saturating_sub(Duration::from_nanos(1));
                assert_eq!(plan.due_by(before), operation.max(u64::from(operation == 0)), "{text}");
            }
        }
    }

    #[test]
    fn plan_has_nothing_due_after_its_end() {
        let plan = Plan { duration: Some(Duration::from_secs(2)), ..plan("10") };
        assert_eq!(plan.due(19), Some(Duration::from_millis(1900)));
        assert_eq!(plan.due(20), None, "due at the very end");
        assert_eq!(plan.due_by(Duration::from_secs(100)), 20);
        let plan = Plan { count: Some(7), ..plan };
        assert_eq!((plan.due(6).is_some(), plan.due(7)), (true, None));
        assert_eq!(plan.due_by(Duration::from_secs(100)), 7);
    }

    #[test]
    fn plan_without_rate_is_bounded_by_count_and_duration() {
        let plan = Plan { rate: None, duration: Some(Duration::from_secs(2)), count: Some(3) };
        assert!(plan.wants(2, Duration::from_millis(1999)));
        assert!(!plan.wants(3, Duration::ZERO));
        assert!(!plan.wants(0, Duration::from_secs(2)));
    }

    #[test]
    fn rate_parse_error_shows_the_right_form() {
        for wrong in ["", "0", "-1", "1.5", "5/h", "2000000", "/s", "5/s/s"] {
            assert!(wrong.parse::<Rate>().unwrap_err().contains("500/s"), "{wrong}");
        }
        assert!((plan("30/m").rate.unwrap().per_second() - 0.5).abs() < 1e-9);
    }
}
