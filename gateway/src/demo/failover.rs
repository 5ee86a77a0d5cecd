//! Kills an endpoint in east while clients in west keep calling. Every started call counts: a single failure breaks
//! the promise.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Broken;
use super::call::Client;
use super::screen::Screen;
use super::service::LAST_CALLERS;
use super::world::World;
use isthmus_core::control::Control;
use isthmus_core::metrics::WorkerCounters;
use isthmus_core::reason::Reason;

const CLIENTS: usize = 4;
/// Minimum number of calls.
const CALLS: u64 = 400;
/// Calls started before the endpoint is killed.
const BEFORE: u64 = 150;
/// Minimum number of calls started after its port was closed.
const AFTER: u64 = 200;
/// Failures after which the clients stop.
const ENOUGH_FAILURES: u64 = 10;
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Kills an endpoint of productpage while clients call it.
pub(super) async fn kill_under_traffic(screen: &mut Screen, world: &mut World) -> Result<(), Broken> {
    screen.step(format_args!(
        "{CLIENTS} clients in west call productpage continuously while one of its endpoints dies"
    ));
    let before = Retries::so_far(&world.east.gateway.control);
    let traffic = Arc::new(Traffic::default());
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(Arc::clone(&traffic).call_on(world.client.clone(), world.productpage.host()));
    }
    traffic.warm.notified().await;
    let Some(victim) = world.productpage.endpoints.last_mut() else { return Ok(()) };
    let dead = victim.instance.clone();
    let died = timeout(KILL_PATIENCE, victim.kill()).await.is_ok();
    traffic.dead.store(true, Relaxed);
    let mut log = Log::default();
    while let Some(ended) = clients.join_next().await {
        log.add(ended.map_err(Broken::cannot("run a client"))?);
    }
    let retries = Retries::so_far(&world.east.gateway.control).since(&before);
    show(screen, &log, &dead, &retries);
    screen.promise(format_args!("{dead} died under traffic, with calls in progress"), died);
    judge(screen, &log, &dead, &retries);
    Ok(())
}

fn show(screen: &Screen, log: &Log, dead: &str, retries: &Retries) {
    for (when, span) in [("before", &log.before), ("after", &log.after)] {
        let shares: Vec<_> =
            span.answers.iter().map(|(endpoint, count)| format!("{count} by {endpoint}")).collect();
        screen.say(format_args!(
            "   {when:<6}  {:>4} calls, {} failed; answered {}; slowest {:.1} ms",
            span.calls(),
            span.failures.len(),
            if shares.is_empty() { "by none".to_owned() } else { shares.join(", ") },
            span.slowest.as_secs_f64() * 1000.0
        ));
    }
    screen.dim(format_args!(
        "{dead} reset its last {LAST_CALLERS} callers and closed its port; it finished the answers it had begun."
    ));
    screen.say(format_args!(
        "   east's gateway: {} attempts refused by the closed port, {} ended before an answer, {} ClientHellos replayed, {} ejections",
        retries.refused, retries.rejected, retries.replays, retries.ejections
    ));
    for failure in log.before.failures.iter().chain(&log.after.failures).take(3) {
        screen.say(format_args!("   failed: {failure}"));
    }
}

fn judge(screen: &mut Screen, log: &Log, dead: &str, retries: &Retries) {
    let failed = log.before.failures.len() + log.after.failures.len();
    screen.promise(
        format_args!("no call failed: {} started, {failed} failed", log.before.calls() + log.after.calls()),
        failed == 0,
    );
    screen.promise(
        format_args!(
            "at least {AFTER} calls started after the death, and the other endpoint answered all of them"
        ),
        log.after.calls() >= AFTER && !log.after.answers.contains_key(dead),
    );
    screen.promise(
        "callers whose endpoint died before its answer were moved to the other endpoint without noticing",
        retries.replays >= 1,
    );
}

/// Counters shared by the clients.
#[derive(Debug, Default)]
struct Traffic {
    started: AtomicU64,
    after: AtomicU64,
    failed: AtomicU64,
    warm: Notify,
    dead: AtomicBool,
}

impl Traffic {
    /// Runs one client: one call after another until enough were made.
    async fn call_on(self: Arc<Self>, client: Client, host: String) -> Log {
        let mut log = Log::default();
        loop {
            let dead = self.dead.load(Relaxed);
            let span = if dead { &mut log.after } else { &mut log.before };
            if self.is_enough(dead) {
                self.warm.notify_one();
                return log;
            }
            if self.started.fetch_add(1, Relaxed) + 1 == BEFORE {
                self.warm.notify_one();
            }
            self.after.fetch_add(u64::from(dead), Relaxed);
            match client.call(&host).await {
                Ok(answer) => {
                    *span.answers.entry(answer.said.endpoint).or_default() += 1;
                    span.slowest = span.slowest.max(answer.took);
                }
                Err(error) => {
                    self.failed.fetch_add(1, Relaxed);
                    span.failures.push(error.to_string());
                }
            }
        }
    }

    /// Before the endpoint is dead, only too many failures stop a client.
    fn is_enough(&self, dead: bool) -> bool {
        let all = dead && self.started.load(Relaxed) >= CALLS && self.after.load(Relaxed) >= AFTER;
        all || self.failed.load(Relaxed) >= ENOUGH_FAILURES
    }
}

/// The results of a client's calls.
#[derive(Debug, Default)]
struct Log {
    before: Span,
    /// Calls started after the endpoint died.
    after: Span,
}

#[derive(Debug, Default)]
struct Span {
    /// Answers by endpoint.
    answers: BTreeMap<String, u64>,
    failures: Vec<String>,
    slowest: Duration,
}

impl Log {
    fn add(&mut self, other: Log) {
        self.before.add(other.before);
        self.after.add(other.after);
    }
}

impl Span {
    fn add(&mut self, other: Span) {
        for (endpoint, count) in other.answers {
            *self.answers.entry(endpoint).or_default() += count;
        }
        self.failures.extend(other.failures);
        self.slowest = self.slowest.max(other.slowest);
    }

    fn calls(&self) -> u64 {
        self.answers.values().sum::<u64>() + self.failures.len() as u64
    }
}

/// The retries that east's gateway counted.
#[derive(Debug)]
struct Retries {
    refused: u64,
    rejected: u64,
    replays: u64,
    ejections: u64,
}

impl Retries {
    fn so_far(control: &Control) -> Retries {
        let workers = &control.process.metrics.workers;
        let sum = |count: &dyn Fn(&WorkerCounters) -> u64| workers.iter().map(|worker| count(worker)).sum();
        let failures = |reason: Reason| {
            sum(&|worker| worker.failures.get(reason as usize).map_or(0, |count| count.load(Relaxed)))
        };
        Retries {
            refused: failures(Reason::ConnectRefused),
            rejected: failures(Reason::UpstreamRejected),
            replays: sum(&|worker| worker.replays.load(Relaxed)),
            ejections: sum(&|worker| worker.ejections.load(Relaxed)),
        }
    }

    fn since(&self, before: &Retries) -> Retries {
        Retries {
            refused: self.refused.saturating_sub(before.refused),
            rejected: self.rejected.saturating_sub(before.rejected),
            replays: self.replays.saturating_sub(before.replays),
            ejections: self.ejections.saturating_sub(before.ejections),
        }
    }
}
