//! Collects the outcomes of a run's operations, latencies and failures, in bounded memory.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::client::Progress;
use super::failure::{Failure, Kind, Step};

/// Longest recorded time; longer ones are clamped.
const LONGEST: Duration = Duration::from_hours(1);

/// The outcome of one operation.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) progress: Progress,
    /// From its due time to its start.
    pub(crate) queued: Duration,
    /// From its start to its end.
    pub(crate) service: Duration,
    pub(crate) result: Result<(), Failure>,
}

/// The outcomes of all finished operations.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) connect: Histogram<u64>,
    pub(crate) handshake: Histogram<u64>,
    pub(crate) first_byte: Histogram<u64>,
    pub(crate) queued: Histogram<u64>,
    /// Successful operations, from their start.
    pub(crate) service: Histogram<u64>,
    /// Successful operations, from their due time: corrected for coordinated omission.
    pub(crate) operation: Histogram<u64>,
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    /// Bounded by the number of kinds and steps.
    pub(crate) failures: BTreeMap<(Kind, Step), Failed>,
    recent: Recent,
}

/// Failures of one kind at one step.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) count: u64,
    /// Text of the first failure.
    pub(crate) example: String,
}

/// Operations finished in the last interval.
#[derive(Clone, Debug)]
pub(crate) struct Recent {
    pub(crate) operation: Histogram<u64>,
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
}

impl Tally {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let longest = u64::try_from(LONGEST.as_nanos())?;
        let empty = Histogram::new_with_bounds(1000, longest, 3)?;
        let recent = Recent { operation: empty.clone(), succeeded: 0, failed: 0 };
        Ok(Self {
            connect: empty.clone(),
            handshake: empty.clone(),
            first_byte: empty.clone(),
            queued: empty.clone(),
            service: empty.clone(),
            operation: empty,
            succeeded: 0,
            failed: 0,
            failures: BTreeMap::new(),
            recent,
        })
    }

    pub(crate) fn record(&mut self, outcome: Outcome) {
        let Outcome { progress, queued, service, result } = outcome;
        self.record_connection(&progress);
        record(&mut self.first_byte, progress.first_byte);
        record(&mut self.queued, Some(queued));
        match result {
            Ok(()) => {
                self.succeeded += 1;
                self.recent.succeeded += 1;
                record(&mut self.service, Some(service));
                record(&mut self.operation, Some(queued + service));
                record(&mut self.recent.operation, Some(queued + service));
            }
            Err(failure) => self.record_failure(failure, progress.step),
        }
    }

    /// Records the finished steps of opening a connection.
    pub(crate) fn record_connection(&mut self, progress: &Progress) {
        record(&mut self.connect, progress.connect);
        record(&mut self.handshake, progress.handshake);
    }

    pub(crate) fn record_failure(&mut self, failure: Failure, step: Step) {
        self.failed += 1;
        self.recent.failed += 1;
        let place = self.failures.entry((failure.kind, step));
        place.or_insert(Failed { count: 0, example: failure.text }).count += 1;
    }

    /// Returns and resets the last interval.
    pub(crate) fn take_recent(&mut self) -> Recent {
        let recent = self.recent.clone();
        self.recent.operation.reset();
        (self.recent.succeeded, self.recent.failed) = (0, 0);
        recent
    }
}

fn record(times: &mut Histogram<u64>, time: Option<Duration>) {
    if let Some(time) = time {
        times.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_time_counts_as_latency_but_not_as_service_time() {
        let mut tally = Tally::new().unwrap();
        let progress = Progress { connect: Some(Duration::from_millis(2)), ..Progress::default() };
        let (queued, service) = (Duration::from_millis(90), Duration::from_millis(10));
        tally.record(Outcome { progress, queued, service, result: Ok(()) });
        let of = |times: &Histogram<u64>| (times.len(), times.max() / 1_000_000);
        assert_eq!((of(&tally.operation), of(&tally.service)), ((1, 100), (1, 10)));
        assert_eq!((of(&tally.connect), of(&tally.handshake)), ((1, 2), (0, 0)));
    }

    #[test]
    fn failures_are_counted_by_kind_and_step_without_latency_samples() {
        let mut tally = Tally::new().unwrap();
        for (step, text) in [(Step::Connect, "first"), (Step::Connect, "second"), (Step::Answer, "third")] {
            let progress = Progress { step, ..Progress::default() };
            let result = Err(Failure::new(Kind::Reset, text));
            tally.record(Outcome { progress, queued: Duration::ZERO, service: Duration::ZERO, result });
        }
        let seen: Vec<_> =
            tally.failures.iter().map(|(key, failed)| (*key, failed.count, &*failed.example)).collect();
        let wanted = [((Kind::Reset, Step::Connect), 2, "first"), ((Kind::Reset, Step::Answer), 1, "third")];
        assert_eq!(seen, wanted);
        assert_eq!((tally.failed, tally.operation.len()), (3, 0));
    }

    #[test]
    fn interval_tally_resets_after_each_read() {
        let mut tally = Tally::new().unwrap();
        let done = || Outcome {
            progress: Progress::default(),
            queued: Duration::ZERO,
            service: Duration::from_hours(2),
            result: Ok(()),
        };
        tally.record(done());
        tally.record(done());
        let recent = tally.take_recent();
        assert_eq!((recent.succeeded, recent.operation.len()), (2, 2));
        assert_eq!(tally.take_recent().operation.len(), 0);
        assert_eq!(tally.operation.len(), 2, "clamped times are counted");
    }
}
