//! Holds the state that connections share: [`Process`] for all workers, [`Worker`] for one thread. `gateway` runs the
//! threads.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;

use crate::binding_sockets::BindingSockets;
use crate::chains::Chains;
use crate::config::Own;
use crate::config::settings::Fixed;
use crate::family::Families;
use crate::health::Health;
use crate::limits::Limits;
use crate::live::Live;
use crate::log::LineLog;
use crate::metrics::{Metrics, WorkerCounters};
use crate::pipe::Pool;
use crate::snapshot::Snapshot;
use crate::socket;
use crate::turn::Turns;
use isthmus_certs::Trust;

/// State shared by all workers.
#[derive(Debug)]
pub struct Process {
    /// Settings bound at start.
    pub fixed: Fixed,
    /// The current tables.
    pub tables: ArcSwap<Snapshot>,
    /// Connection limits.
    pub limits: Limits,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Access log and, if there is one, audit log.
    pub logs: Logs,
    /// Chains of live connections' peers.
    pub(crate) chains: Chains,
    /// Identity and trusted bundles, once available.
    pub trust: OnceLock<Trust>,
    /// Bound addresses, once set.
    pub own: OnceLock<Vec<Bound>>,
    /// The health of endpoints.
    pub health: Health,
    /// Address families without a route on this machine.
    pub families: Families,
    /// Sockets that bindings call for.
    pub binding_sockets: BindingSockets,
    /// Connection tasks, including closing ones.
    pub(crate) tasks: Arc<AtomicU32>,
    ids: AtomicU64,
    warned: AtomicU64,
}

/// The logs of a process.
#[derive(Debug)]
pub struct Logs {
    /// One line for each ended connection.
    pub access: Arc<LineLog>,
    /// One line for each decision about a caller.
    pub audit: Option<Arc<LineLog>>,
}

impl Process {
    pub(crate) fn new(
        fixed: Fixed,
        tables: Snapshot,
        (limits, binding_sockets): (Limits, BindingSockets),
        metrics: Arc<Metrics>,
        logs: Logs,
    ) -> Process {
        let health = Health::default();
        health.probe(tables.services().filter(|one| one.rules.health.probes()).cloned().collect());
        Process {
            fixed,
            tables: ArcSwap::from_pointee(tables),
            limits,
            metrics,
            logs,
            chains: Chains::default(),
            trust: OnceLock::new(),
            own: OnceLock::new(),
            health,
            families: Families::default(),
            binding_sockets,
            tasks: Arc::default(),
            ids: AtomicU64::new(1),
            warned: AtomicU64::new(0),
        }
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Relaxed)
    }

    /// True at most once a second, for repeated warnings.
    pub(crate) fn may_warn(&self) -> bool {
        let now = socket::now();
        let before = self.warned.load(Relaxed);
        (before == 0 || now.saturating_sub(before) >= 1_000)
            && self.warned.compare_exchange(before, now.max(1), Relaxed, Relaxed).is_ok()
    }

    /// Whether a connection to this address would reach the gateway itself.
    #[must_use]
    pub fn is_own(&self, address: SocketAddr) -> bool {
        if self.binding_sockets.lead_to(address, &self.fixed.binds) {
            return true;
        }
        let Some(bound) = self.own.get() else { return false };
        if !bound.iter().any(|bound| bound.address.port() == address.port()) {
            return false;
        }
        // Created for each check: the machine's addresses may have changed.
        let mut own = Own::default();
        for bound in bound {
            own.add(bound.what.clone(), bound.address, bound.ipv6_only);
        }
        own.reached_by(address).is_some()
    }
}

/// An address that this process listens on.
#[derive(Clone, Debug)]
pub struct Bound {
    /// `listener east-west`, `admin`, `metrics` or `health`.
    pub what: String,
    /// Address with the bound port.
    pub address: SocketAddr,
    /// Whether an IPv6 socket accepts no IPv4.
    pub ipv6_only: bool,
}

/// State of one worker.
#[derive(Debug)]
pub struct Worker {
    /// Index, from 0.
    pub index: usize,
    /// State shared with the other workers.
    pub process: Arc<Process>,
    /// Live connections.
    pub live: Arc<Live>,
    /// Counters of this worker.
    pub counters: Arc<WorkerCounters>,
    /// Pipes of this worker.
    pub pipes: Arc<Pool>,
    /// Turn for bulk transfers.
    pub turns: Arc<Turns>,
    pub(crate) next_source: AtomicUsize,
}

impl Worker {
    pub(crate) fn new(index: usize, process: &Arc<Process>, counters: &Arc<WorkerCounters>) -> Worker {
        let rules = &process.fixed.relay;
        let share = rules.pipes.div_ceil(process.fixed.workers);
        Worker {
            index,
            process: Arc::clone(process),
            live: Arc::default(),
            counters: Arc::clone(counters),
            pipes: Arc::new(Pool::new(share, rules.pipe_size)),
            turns: Arc::default(),
            next_source: AtomicUsize::new(0),
        }
    }
}
