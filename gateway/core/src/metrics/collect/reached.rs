//! Reads how attempts to reach endpoints end, and how far other clusters' gateways are.

use std::sync::atomic::AtomicU64;

use isthmus_model::matrix::Row;

use super::{Control, Sample, number, one, sum, workers};
use crate::metrics::WorkerCounters;
use crate::reason::Reason;

/// The reasons for which an attempt can fail.
const FAILED_ATTEMPTS: [Reason; 10] = [
    Reason::ConnectRefused,
    Reason::ConnectTimeout,
    Reason::ConnectFailed,
    Reason::UpstreamRejected,
    Reason::FirstByteTimeout,
    Reason::TlsFailed,
    Reason::IdentityDenied,
    Reason::LimitEndpoint,
    Reason::LocalResources,
    Reason::Loop,
];

pub(super) fn attempts(
    control: &Control,
    of: fn(&WorkerCounters) -> &[AtomicU64; Reason::ALL.len()],
) -> Vec<Sample> {
    let count = |reason: &Reason| {
        let counts = workers(control).filter_map(|counters| of(counters).get(*reason as usize));
        one([reason.word().to_owned()], sum(counts))
    };
    FAILED_ATTEMPTS.iter().map(count).collect()
}

pub(super) fn hedges(control: &Control) -> Vec<Sample> {
    [
        one(["won".to_owned()], sum(workers(control).map(|counters| &counters.hedges_won))),
        one(["lost".to_owned()], sum(workers(control).map(|counters| &counters.hedges_lost))),
    ]
    .into()
}

pub(super) fn ejections(control: &Control) -> Vec<Sample> {
    let by_connects = workers(control).map(|counters| &counters.ejections);
    vec![one([], sum(by_connects.chain([&control.process.metrics.own_ejections])))]
}

pub(super) fn matrix(control: &Control, read: fn(&Row) -> Option<f64>) -> Vec<Sample> {
    let rows = control.matrix.rows();
    let sample = |row: &Row| Some(one([row.cluster.clone(), row.address.clone()], read(row)?));
    rows.rows.iter().filter_map(sample).collect()
}

pub(super) fn seconds(micros: Option<u64>) -> Option<f64> {
    micros.map(|micros| number(micros) / 1e6)
}
