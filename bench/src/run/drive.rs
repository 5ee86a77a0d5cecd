//! Runs operations on many connections: as an open loop with a rate, as a closed loop without one. Knows when
//! operations begin and end, not what they do.
//!
//! With a rate, a separate thread adds a permit to a semaphore when an operation is due, because tokio's
//! timers are only exact to a millisecond. The permits are the queue: an operation without a free connection
//! waits there, in order and without memory of its own.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use rustix::thread::set_current_timer_slack;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::client::{Client, OpenConnection, Progress};
use super::failure::{Failure, Kind};
use super::plan::Plan;
use super::tally::{Outcome, Tally};

/// A run: its plan and its progress.
#[derive(Debug)]
pub(crate) struct Drive {
    plan: Plan,
    client: Client,
    connections: usize,
    /// Start of the first operation.
    start: OnceLock<Instant>,
    tally: Mutex<Tally>,
    gate: Semaphore,
    claimed: AtomicU64,
    started: AtomicU64,
}

/// Operations of a run without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Undone {
    /// Due at the rate but never started.
    pub(crate) unstarted: u64,
    /// Started, without an outcome yet.
    pub(crate) under_way: u64,
}

impl Drive {
    pub(crate) fn new(plan: Plan, client: Client, connections: usize) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            plan,
            client,
            connections,
            start: OnceLock::new(),
            tally: Mutex::new(Tally::new()?),
            gate: Semaphore::new(0),
            claimed: AtomicU64::new(0),
            started: AtomicU64::new(0),
        }))
    }

    pub(crate) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open(&self) -> usize {
        self.client.open.load(Ordering::Relaxed)
    }

    /// Time since the start; zero while the connections are being opened.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.get().map_or(Duration::ZERO, Instant::elapsed)
    }

    pub(crate) fn undone(&self) -> Undone {
        let due = self.start.get().map_or(0, |start| self.plan.due_by(start.elapsed()));
        // Read first: the other two only grow, so that the differences cannot be too large.
        let ended = self.tally().queued.len();
        let started = self.started.load(Ordering::Relaxed);
        Undone { unstarted: due.saturating_sub(started), under_way: started.saturating_sub(ended) }
    }

    /// Runs until every operation of the plan has ended or is too late to start. Dropping the future cancels
    /// them.
    ///
    /// # Errors
    /// If the pacing thread cannot be started.
    pub(crate) async fn run(self: &Arc<Self>) -> io::Result<()> {
        let kept = self.open_all().await;
        let start = *self.start.get_or_init(Instant::now);
        let _pacer = match self.plan.rate {
            Some(_) => Some(self.pacer(start)?),
            None => None,
        };
        let mut slots = JoinSet::new();
        for connection in kept {
            let drive = Arc::clone(self);
            slots.spawn(async move { drive.slot(start, connection).await });
        }
        slots.join_all().await;
        Ok(())
    }

    /// Opens the kept connections before the clock starts, as their handshakes belong to no operation. A
    /// failure is counted, and the operation that needs the connection tries again.
    async fn open_all(self: &Arc<Self>) -> Vec<Option<OpenConnection>> {
        if !self.client.keeps() {
            return (0..self.connections).map(|_| None).collect();
        }
        let mut opening = JoinSet::new();
        for _ in 0..self.connections {
            let drive = Arc::clone(self);
            opening.spawn(async move { drive.open_one().await });
        }
        opening.join_all().await
    }

    async fn open_one(&self) -> Option<OpenConnection> {
        let mut progress = Progress::default();
        let opened = timeout(self.client.timeout, self.client.connect(&mut progress)).await;
        let mut tally = self.tally();
        tally.record_connection(&progress);
        match opened.unwrap_or_else(|_| Err(self.too_long())) {
            Ok(kept) => Some(kept),
            Err(failure) => {
                tally.record_failure(failure, progress.step);
                None
            }
        }
    }

    /// Runs the operations of one connection, one after the other.
    async fn slot(&self, start: Instant, mut kept: Option<OpenConnection>) {
        while let Some(due) = self.next(start).await {
            let begun = Instant::now();
            self.started.fetch_add(1, Ordering::Relaxed);
            let mut progress = Progress::default();
            let operation = self.client.operate(&mut kept, &mut progress);
            let result = timeout(self.client.timeout, operation).await;
            let (queued, service) = (begun.saturating_duration_since(due), begun.elapsed());
            let result = result.unwrap_or_else(|_| Err(self.too_long()));
            self.tally().record(Outcome { progress, queued, service, result });
        }
    }

    /// Waits for the next operation and returns when it was due.
    async fn next(&self, start: Instant) -> Option<Instant> {
        if self.plan.rate.is_none() {
            let now = Instant::now();
            let operation = self.claimed.fetch_add(1, Ordering::Relaxed);
            return self.plan.wants(operation, now - start).then_some(now);
        }
        self.gate.acquire().await.ok()?.forget();
        let due = start + self.plan.due(self.claimed.fetch_add(1, Ordering::Relaxed))?;
        // A late operation may start up to its timeout after the end.
        let hopeless = self.plan.duration.is_some_and(|end| start.elapsed() > end + self.client.timeout);
        (!hopeless).then_some(due)
    }

    fn too_long(&self) -> Failure {
        let limit = humantime::format_duration(self.client.timeout);
        Failure::new(Kind::TimedOut, &format!("timed out after {limit}"))
    }

    /// Starts the pacing thread, which ends when the returned sender is dropped.
    fn pacer(self: &Arc<Self>, start: Instant) -> io::Result<Sender<()>> {
        let (handle, ended) = channel();
        let drive = Arc::clone(self);
        thread::Builder::new().name("pacer".to_owned()).spawn(move || drive.pace(start, &ended))?;
        Ok(handle)
    }

    fn pace(&self, start: Instant, ended: &Receiver<()>) {
        // Avoids the kernel's default timer slack of 50 µs. Without the permission operations start that much
        // later, and the latencies include it.
        let _ = set_current_timer_slack(NonZeroU64::new(1));
        let mut released = 0;
        loop {
            let due = self.plan.due_by(start.elapsed());
            self.gate.add_permits(usize::try_from(due - released).unwrap_or_default());
            released = due;
            let Some(next) = self.plan.due(released) else { break };
            let wait = next.saturating_sub(start.elapsed());
            if ended.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
        // Lets each slot run once more and see that nothing is due.
        self.gate.add_permits(self.connections);
    }
}
