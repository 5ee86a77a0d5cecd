//! The result of a run as data: what `--json` writes and the tables show. Not their form.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::drive::Undone;
use super::tally::Tally;
use crate::sample::number;

/// Changes with every change that a reader of the file could stumble over.
const SCHEMA: &str = "isthmus-bench/run/1";

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Asked {
    pub(crate) addresses: Vec<String>,
    pub(crate) sni: String,
    pub(crate) operation: String,
    /// Whether each operation had a connection of its own.
    pub(crate) new_connections: bool,
    pub(crate) server_verified: bool,
    pub(crate) connections: usize,
    pub(crate) rate_per_s: Option<f64>,
    pub(crate) duration_s: Option<f64>,
    pub(crate) count: Option<u64>,
}

/// The whole result.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    schema: &'static str,
    pub(crate) asked: Asked,
    pub(crate) elapsed_s: f64,
    /// Ended by Ctrl-C.
    pub(crate) interrupted: bool,
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    /// Due at the rate, and never begun.
    pub(crate) unstarted: u64,
    /// Under way when the run was interrupted.
    pub(crate) cut_off: u64,
    /// Successful operations.
    pub(crate) per_s: f64,
    pub(crate) latency_us: Latency,
    pub(crate) failures: Vec<FailureReport>,
}

/// In microseconds; each is absent where nothing was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) connect: Option<Quantiles>,
    pub(crate) handshake: Option<Quantiles>,
    pub(crate) first_byte: Option<Quantiles>,
    /// At a rate only: from when an operation was due until it began.
    pub(crate) queued: Option<Quantiles>,
    /// At a rate only: successful operations from when they began.
    pub(crate) service: Option<Quantiles>,
    /// Successful operations from when they were due (at a rate) or began.
    pub(crate) operation: Option<Quantiles>,
}

/// A distribution in a line.
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
        let at_a_rate = |times| if asked.rate_per_s.is_some() { Quantiles::of(times) } else { None };
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
                connect: Quantiles::of(&tally.connect),
                handshake: Quantiles::of(&tally.handshake),
                first_byte: Quantiles::of(&tally.first_byte),
                queued: at_a_rate(&tally.queued),
                service: at_a_rate(&tally.service),
                operation: Quantiles::of(&tally.operation),
            },
            failures: failures.collect(),
            asked,
        }
    }

    /// Whether everything that was asked for was done, and well. What Ctrl-C left undone is nobody's fault.
    pub(crate) fn is_good(&self) -> bool {
        self.failed == 0 && (self.interrupted || self.unstarted == 0)
    }
}

impl Quantiles {
    /// Nothing for no values. Nanoseconds become microseconds.
    pub(crate) fn of(times: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| number(times.value_at_quantile(quantile)) / 1e3;
        let max = number(times.max()) / 1e3;
        let count = times.len();
        (count > 0).then(|| Self { count, p50: at(0.5), p90: at(0.9), p99: at(0.99), p99_9: at(0.999), max })
    }
}

/// Zero where no time has passed.
pub(crate) fn per_second(count: u64, over: Duration) -> f64 {
    if over.is_zero() { 0.0 } else { number(count) / over.as_secs_f64() }
}
