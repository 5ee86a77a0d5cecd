//! Runs operations on many connections at once: at a rate, as an open loop; without one, as a closed loop.
//! Knows when operations begin and end, not what they are.
//!
//! At a rate, a thread of its own opens a gate for each operation when it is due, as tokio's timers are
//! exact to a millisecond only. The gate's count is the queue: what finds no free connection waits there,
//! in order, in no memory.

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

use super::client::{Client, Kept, Progress};
use super::failure::{Failure, Kind};
use super::plan::Plan;
use super::tally::{Outcome, Tally};

/// A run: its plan, and what has become of it so far.
#[derive(Debug)]
pub(crate) struct Drive {
    plan: Plan,
    client: Client,
    connections: usize,
    /// When the first operation may begin.
    start: OnceLock<Instant>,
    tally: Mutex<Tally>,
    gate: Semaphore,
    claimed: AtomicU64,
    started: AtomicU64,
}

/// What a run left undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Undone {
    /// Due at the rate, and never begun.
    pub(crate) unstarted: u64,
    /// Begun, and neither succeeded nor failed yet.
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

    /// Since the start; zero while connections are being opened.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.get().map_or(Duration::ZERO, Instant::elapsed)
    }

    pub(crate) fn undone(&self) -> Undone {
        let due = self.start.get().map_or(0, |start| self.plan.due_by(start.elapsed()));
        // Before the other two grow, so that their differences cannot be too large.
        let ended = self.tally().queued.len();
        let started = self.started.load(Ordering::Relaxed);
        Undone { unstarted: due.saturating_sub(started), under_way: started.saturating_sub(ended) }
    }

    /// Ends when every operation of the plan has, or was too late to begin. Dropping it cuts them off.
    ///
    /// # Errors
    /// When the thread that keeps the rate cannot be had.
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

    /// Opens the connections that are kept, before the clock starts: their handshakes are no operation's.
    /// One that fails is counted as a failure, and the operation that needs it tries again.
    async fn open_all(self: &Arc<Self>) -> Vec<Option<Kept>> {
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

    async fn open_one(&self) -> Option<Kept> {
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

    /// One connection's operations, one after the other.
    async fn slot(&self, start: Instant, mut kept: Option<Kept>) {
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

    /// Waits for the next operation, and tells since when it is due.
    async fn next(&self, start: Instant) -> Option<Instant> {
        if self.plan.rate.is_none() {
            let now = Instant::now();
            let operation = self.claimed.fetch_add(1, Ordering::Relaxed);
            return self.plan.wants(operation, now - start).then_some(now);
        }
        self.gate.acquire().await.ok()?.forget();
        let due = start + self.plan.due(self.claimed.fetch_add(1, Ordering::Relaxed))?;
        // What is late may begin as long after the end as it might have taken.
        let hopeless = self.plan.duration.is_some_and(|end| start.elapsed() > end + self.client.timeout);
        (!hopeless).then_some(due)
    }

    fn too_long(&self) -> Failure {
        let limit = humantime::format_duration(self.client.timeout);
        Failure::new(Kind::TimedOut, &format!("not done within {limit}"))
    }

    /// The thread ends when what this gives is dropped.
    fn pacer(self: &Arc<Self>, start: Instant) -> io::Result<Sender<()>> {
        let (handle, ended) = channel();
        let drive = Arc::clone(self);
        thread::Builder::new().name("pacer".to_owned()).spawn(move || drive.pace(start, &ended))?;
        Ok(handle)
    }

    fn pace(&self, start: Instant, ended: &Receiver<()>) {
        // A wait for a moment must not be rounded up by the kernel's 50 µs of slack. Without the right to
        // say so the moments are that much later, and the times say so too.
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
        // Each slot passes once more, and finds that nothing is due.
        self.gate.add_permits(self.connections);
    }
}
