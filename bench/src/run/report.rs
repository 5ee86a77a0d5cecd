//! The result of a run as data, for `--json` and the tables.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::drive::Undone;
use super::tally::Tally;
use crate::sample::number;

/// Schema name; changes with every incompatible change.
const SCHEMA: &str = "isthmus-bench/run/1";

/// The options of the run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Asked {
    pub(crate) addresses: Vec<String>,
    pub(crate) sni: String,
    pub(crate) operation: String,
    /// Whether each operation opened its own connection.
    pub(crate) new_connections: bool,
    pub(crate) server_verified: bool,
    pub(crate) connections: usize,
    pub(crate) rate_per_s: Option<f64>,
    pub(crate) duration_s: Option<f64>,
    pub(crate) count: Option<u64>,
}

/// The result of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    schema: &'static str,
    pub(crate) asked: Asked,
    pub(crate) elapsed_s: f64,
    /// Ended by Ctrl-C.
    pub(crate) interrupted: bool,
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    /// Due at the rate but never started.
    pub(crate) unstarted: u64,
    /// In flight when the run was interrupted.
    pub(crate) cut_off: u64,
    /// Successful operations per second.
    pub(crate) per_s: f64,
    pub(crate) latency_us: Latency,
    pub(crate) failures: Vec<FailureReport>,
}

/// Latencies in microseconds; `None` without measurements.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) connect: Option<Quantiles>,
    pub(crate) handshake: Option<Quantiles>,
    pub(crate) first_byte: Option<Quantiles>,
    /// With a rate only: from the due time to the start of an operation.
    pub(crate) queued: Option<Quantiles>,
    /// With a rate only: successful operations, from their start.
    pub(crate) service: Option<Quantiles>,
    /// Successful operations, from their due time (with a rate) or their start.
    pub(crate) operation: Option<Quantiles>,
}

/// Quantiles of a distribution.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Quantiles {
    pub(crate) count: u64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p99_9: f64,
    pub(crate) max: f64,
}

/// Failures of one kind at one step.
#[derive(Debug, Serialize)]
pub(crate) struct FailureReport {
    pub(crate) kind: &'static str,
    pub(crate) detail: Option<String>,
    pub(crate) step: &'static str,
    pub(crate) count: u64,
    pub(crate) example: String,
    pub(crate) meaning: Option<&'static str>,
}

impl Report {
    pub(crate) fn new(
        asked: Asked,
        tally: &Tally,
        undone: Undone,
        elapsed: Duration,
        interrupted: bool,
    ) -> Self {
        let at_a_rate =
            |times| if asked.rate_per_s.is_some() { Quantiles::from_histogram(times) } else { None };
        let failures = tally.failures.iter().map(|((kind, step), failed)| FailureReport {
            kind: kind.name(),
            detail: kind.detail(),
            step: step.name(),
            count: failed.count,
            example: failed.example.clone(),
            meaning: kind.meaning(),
        });
        Self {
            schema: SCHEMA,
            elapsed_s: elapsed.as_secs_f64(),
            interrupted,
            succeeded: tally.succeeded,
            failed: tally.failed,
            unstarted: undone.unstarted,
            cut_off: undone.under_way,
            per_s: per_second(tally.succeeded, elapsed),
            latency_us: Latency {
                connect: Quantiles::from_histogram(&tally.connect),
                handshake: Quantiles::from_histogram(&tally.handshake),
                first_byte: Quantiles::from_histogram(&tally.first_byte),
                queued: at_a_rate(&tally.queued),
                service: at_a_rate(&tally.service),
                operation: Quantiles::from_histogram(&tally.operation),
            },
            failures: failures.collect(),
            asked,
        }
    }

    /// Whether all requested operations succeeded. Operations cut off by Ctrl-C do not count as failures.
    pub(crate) fn is_good(&self) -> bool {
        self.failed == 0 && (self.interrupted || self.unstarted == 0)
    }
}

impl Quantiles {
    /// Converts nanoseconds to microseconds; `None` without values.
    pub(crate) fn from_histogram(times: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| number(times.value_at_quantile(quantile)) / 1e3;
        let max = number(times.max()) / 1e3;
        let count = times.len();
        (count > 0).then(|| Self { count, p50: at(0.5), p90: at(0.9), p99: at(0.99), p99_9: at(0.999), max })
    }
}

/// A rate; zero over no time.
pub(crate) fn per_second(count: u64, over: Duration) -> f64 {
    if over.is_zero() { 0.0 } else { number(count) / over.as_secs_f64() }
}
