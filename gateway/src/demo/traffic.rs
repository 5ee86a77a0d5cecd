//! Calls a service continuously, and keeps what became of every call by phase. Every started call counts.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::Broken;
use super::call::{Answer, Client};

pub(super) const CLIENTS: usize = 4;
/// Failures after which the clients stop.
const ENOUGH_FAILURES: u64 = 10;

/// Clients that call a service, until they are ended.
#[derive(Debug)]
pub(super) struct Traffic {
    shared: Arc<Shared>,
    clients: JoinSet<BTreeMap<usize, Phase>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The phase to which new calls belong.
    phase: AtomicUsize,
    /// Calls of this phase that have ended.
    ended: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
    progress: Notify,
}

/// The calls that were started in one phase.
#[derive(Debug, Default)]
pub(super) struct Phase {
    /// Answers by endpoint, as `CLUSTER/INSTANCE`.
    pub(super) answers: BTreeMap<String, u64>,
    pub(super) failures: Vec<String>,
    slowest: Duration,
}

impl Traffic {
    /// Starts the clients.
    pub(super) fn start(client: &Client, host: &str) -> Traffic {
        let shared = Arc::new(Shared::default());
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            clients.spawn(Arc::clone(&shared).call_on(client.clone(), host.to_owned()));
        }
        Traffic { shared, clients }
    }

    /// Waits until so many calls of this phase have ended, or too many have failed.
    pub(super) async fn calls(&self, count: u64) {
        while self.shared.ended.load(Relaxed) < count && !self.shared.is_hopeless() {
            self.shared.progress.notified().await;
        }
    }

    /// Counts calls that begin from now on as another phase.
    pub(super) fn next_phase(&self) {
        self.shared.phase.fetch_add(1, Relaxed);
        self.shared.ended.store(0, Relaxed);
    }

    /// Ends the clients; returns the calls of each phase.
    pub(super) async fn end(mut self) -> Result<Vec<Phase>, Broken> {
        self.shared.stop.store(true, Relaxed);
        let now = self.shared.phase.load(Relaxed);
        let mut phases: BTreeMap<usize, Phase> = (0..=now).map(|place| (place, Phase::default())).collect();
        while let Some(ended) = self.clients.join_next().await {
            for (place, phase) in ended.map_err(Broken::cannot("run a client"))? {
                phases.entry(place).or_default().add(phase);
            }
        }
        Ok(phases.into_values().collect())
    }
}

impl Shared {
    /// Runs one client: one call after another.
    async fn call_on(self: Arc<Self>, client: Client, host: String) -> BTreeMap<usize, Phase> {
        let mut phases = BTreeMap::<usize, Phase>::new();
        while !self.stop.load(Relaxed) && !self.is_hopeless() {
            let now = self.phase.load(Relaxed);
            let phase = phases.entry(now).or_default();
            match client.call(&host).await {
                Ok(answer) => {
                    *phase.answers.entry(place(&answer)).or_default() += 1;
                    phase.slowest = phase.slowest.max(answer.took);
                }
                Err(error) => {
                    self.failed.fetch_add(1, Relaxed);
                    phase.failures.push(error.to_string());
                }
            }
            if self.phase.load(Relaxed) == now {
                self.ended.fetch_add(1, Relaxed);
            }
            self.progress.notify_one();
        }
        phases
    }

    fn is_hopeless(&self) -> bool {
        self.failed.load(Relaxed) >= ENOUGH_FAILURES
    }
}

/// Returns who answered, as `CLUSTER/INSTANCE`.
fn place(answer: &Answer) -> String {
    let domain = answer.server.trust_domain().as_str();
    format!("{}/{}", domain.split('.').next().unwrap_or_default(), answer.said.endpoint)
}

impl Phase {
    fn add(&mut self, other: Phase) {
        for (endpoint, count) in other.answers {
            *self.answers.entry(endpoint).or_default() += count;
        }
        self.failures.extend(other.failures);
        self.slowest = self.slowest.max(other.slowest);
    }

    pub(super) fn calls(&self) -> u64 {
        self.answers.values().sum::<u64>() + self.failures.len() as u64
    }

    /// Whether each call was answered by this endpoint.
    pub(super) fn is_answered_by(&self, endpoint: &str) -> bool {
        self.answers.get(endpoint) == Some(&self.calls())
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shares: Vec<_> =
            self.answers.iter().map(|(endpoint, count)| format!("{count} by {endpoint}")).collect();
        write!(
            f,
            "{:>4} calls, {} failed; answered {}; slowest {:.1} ms",
            self.calls(),
            self.failures.len(),
            if shares.is_empty() { "by none".to_owned() } else { shares.join(", ") },
            self.slowest.as_secs_f64() * 1000.0
        )
    }
}
