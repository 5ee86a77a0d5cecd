//! Counts events. Hot counters belong to one worker each and are summed on collection; untrusted text never becomes a
//! label. [`collect`] renders them.

pub mod collect;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use isthmus_model::services::Probe;

use crate::demotion::Outcome;
use crate::endpoint::ServiceCounters;
use crate::reason::Reason;
use crate::snapshot::Service;

/// The kinds of probes, as labels.
pub const PROBES: [&str; 3] = ["tls", "http", "tcp"];

/// The counters of the process.
#[derive(Debug)]
pub struct Metrics {
    /// Counters of each worker.
    pub workers: Vec<Arc<WorkerCounters>>,
    /// Services with their own counters.
    pub services: ServiceTable,
    /// Configuration edits applied.
    pub reloads: AtomicU64,
    /// Configuration edits refused.
    pub reloads_refused: AtomicU64,
    /// Access log lines dropped.
    pub log_dropped: Arc<AtomicU64>,
    /// Audit log lines dropped.
    pub audit_dropped: Arc<AtomicU64>,
    /// The gateway's own ClientHellos, by result.
    pub checks: [AtomicU64; Outcome::ALL.len()],
    /// Probes of services with `health.probe`, by kind and result.
    pub probes: [[AtomicU64; Outcome::ALL.len()]; PROBES.len()],
    /// Endpoints ejected because they did not answer the gateway's own ClientHello.
    pub own_ejections: AtomicU64,
    /// Parts taken out of their split.
    pub split_aborts: AtomicU64,
}

impl Metrics {
    /// Creates counters at zero.
    #[must_use]
    pub fn new(workers: usize, listeners: usize, services: usize) -> Metrics {
        Metrics {
            workers: (0..workers).map(|_| Arc::new(WorkerCounters::new(listeners))).collect(),
            services: ServiceTable::new(services),
            reloads: AtomicU64::new(0),
            reloads_refused: AtomicU64::new(0),
            log_dropped: Arc::default(),
            audit_dropped: Arc::default(),
            checks: std::array::from_fn(|_| AtomicU64::new(0)),
            probes: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            own_ejections: AtomicU64::new(0),
            split_aborts: AtomicU64::new(0),
        }
    }

    pub(crate) fn probed(&self, probe: &Probe, outcome: Outcome) {
        let kind = PROBES.iter().position(|word| *word == probe.word());
        let counts = kind.and_then(|kind| self.probes.get(kind));
        if let Some(count) = counts.and_then(|counts| counts.get(outcome as usize)) {
            add(count, 1);
        }
    }

    pub(crate) fn checked(&self, outcome: Outcome) {
        if let Some(count) = self.checks.get(outcome as usize) {
            add(count, 1);
        }
    }
}

/// The counters of one worker.
#[derive(Debug)]
pub struct WorkerCounters {
    /// Counters of each listener.
    pub listeners: Vec<ListenerCounters>,
    /// Time from accept to a complete ClientHello.
    pub hello: Histogram,
    /// Time from the ClientHello to a connected endpoint.
    pub connect: Histogram,
    /// Time from the connected endpoint to the server's first byte.
    pub first_byte: Histogram,
    /// Time from accept to the end of the connection.
    pub duration: Histogram,
    /// ClientHellos replayed to another endpoint.
    pub replays: AtomicU64,
    /// Failed attempts to connect, by reason.
    pub failures: [AtomicU64; Reason::ALL.len()],
    /// Connections moved to another endpoint, by the reason of the failed attempt.
    pub moves: [AtomicU64; Reason::ALL.len()],
    /// Second connects beside a slow one that were first.
    pub hedges_won: AtomicU64,
    /// Second connects beside a slow one that were not first.
    pub hedges_lost: AtomicU64,
    /// Connections that a server failed when they could not move any more.
    pub lost: AtomicU64,
    /// Endpoints ejected.
    pub ejections: AtomicU64,
    /// Endpoints demoted.
    pub demotions: AtomicU64,
    /// Times accepting paused because descriptors had run out.
    pub accept_pauses: AtomicU64,
}

/// The counters of one listener in one worker.
#[derive(Debug)]
pub struct ListenerCounters {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections ended, by reason.
    pub ended: [AtomicU64; Reason::ALL.len()],
    /// Bytes from clients.
    pub bytes_in: AtomicU64,
    /// Bytes from servers.
    pub bytes_out: AtomicU64,
}

impl WorkerCounters {
    fn new(listeners: usize) -> WorkerCounters {
        let listener = || ListenerCounters {
            accepted: AtomicU64::new(0),
            ended: by_reason(),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
        };
        WorkerCounters {
            listeners: (0..listeners).map(|_| listener()).collect(),
            hello: Histogram::default(),
            connect: Histogram::default(),
            first_byte: Histogram::default(),
            duration: Histogram::default(),
            replays: AtomicU64::new(0),
            failures: by_reason(),
            moves: by_reason(),
            hedges_won: AtomicU64::new(0),
            hedges_lost: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            demotions: AtomicU64::new(0),
            accept_pauses: AtomicU64::new(0),
        }
    }

    pub(crate) fn failed(&self, reason: Reason) {
        self.failures.get(reason as usize).into_iter().for_each(|count| add(count, 1));
    }

    pub(crate) fn moved(&self, reason: Reason) {
        self.moves.get(reason as usize).into_iter().for_each(|count| add(count, 1));
    }
}

fn by_reason() -> [AtomicU64; Reason::ALL.len()] {
    std::array::from_fn(|_| AtomicU64::new(0))
}

/// Adds to a counter.
pub(crate) fn add(count: &AtomicU64, more: u64) {
    count.fetch_add(more, Relaxed);
}

/// Upper bounds of the buckets in seconds; one more bucket has no bound.
pub const BUCKETS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0, 60.0, 3600.0];

/// Durations, counted in fixed buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    pub(crate) fn record(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BUCKETS.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.buckets.get(bucket) {
            add(count, 1);
        }
        add(&self.micros, u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }
}

/// Services with their own counters: configured ones, from their first connection on, up to a limit. All others share
/// one set of counters.
#[derive(Debug)]
pub struct ServiceTable {
    limit: usize,
    listed: Mutex<Vec<Arc<ServiceCounters>>>,
    others: Arc<ServiceCounters>,
}

impl ServiceTable {
    fn new(limit: usize) -> ServiceTable {
        let others = ServiceCounters::new("other".into(), Weak::new());
        ServiceTable { limit, listed: Mutex::default(), others: Arc::new(others) }
    }

    pub(crate) fn for_service(&self, service: &Service) -> Arc<ServiceCounters> {
        let counters = service.state.counters.get_or_init(|| {
            let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
            if listed.len() >= self.limit {
                return Arc::clone(&self.others);
            }
            let counters =
                ServiceCounters::new(service.name().to_string().into(), Arc::downgrade(&service.state));
            let counters = Arc::new(counters);
            listed.push(Arc::clone(&counters));
            counters
        });
        Arc::clone(counters)
    }

    /// Removes the counters of removed services. Not called for a connection, which would pay for the scan.
    pub(crate) fn forget_the_gone(&self) {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        listed.retain(|counters| counters.of.strong_count() > 0);
    }

    /// Returns the counters of all listed services, and of the others once they have connections.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<ServiceCounters>> {
        let mut all = self.listed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if self.others.connections.load(Relaxed) > 0 {
            all.push(Arc::clone(&self.others));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::snapshot::{Resolved, Snapshot};

    fn tables(host: &str) -> Snapshot {
        let text = format!("listeners: [{{ address: '127.0.0.1:0' }}]\nservices: [{{ host: {host} }}]\n");
        let live = crate::config::parse(&text, Path::new("test.yaml")).unwrap().live;
        Snapshot::compile(live, &Resolved::new(), None, &|_| false)
    }

    #[test]
    fn removed_service_frees_its_metrics_slot() {
        let table = ServiceTable::new(1);
        let first = tables("a.example");
        assert_eq!(&*table.for_service(first.services().next().unwrap()).name, "a.example:443");
        table.forget_the_gone();
        assert_eq!(
            &*table.for_service(tables("b.example").services().next().unwrap()).name,
            "other",
            "the first service still exists"
        );
        drop(first);
        table.forget_the_gone();
        assert_eq!(&*table.for_service(tables("c.example").services().next().unwrap()).name, "c.example:443");
    }
}
