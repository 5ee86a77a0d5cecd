//! What connections share: [`Process`] is one for all workers, [`Worker`] belongs to one thread. Held, not
//! run: the threads are `listen`'s and `gateway`'s.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;

use crate::config::Own;
use crate::config::settings::Fixed;
use crate::family::Families;
use crate::limits::Limits;
use crate::live::Live;
use crate::log::AccessLog;
use crate::metrics::{Metrics, WorkerCounters};
use crate::pipe::Pool;
use crate::snapshot::Snapshot;
use crate::socket;
use crate::suspects::Suspects;
use crate::turn::Turns;
use isthmus_certs::Trust;

/// One for all workers.
#[derive(Debug)]
pub struct Process {
    /// What was bound at start.
    pub fixed: Fixed,
    /// The tables of this moment.
    pub tables: ArcSwap<Snapshot>,
    /// How many connections there may be.
    pub limits: Limits,
    /// Everything counted.
    pub metrics: Arc<Metrics>,
    /// Where lines go.
    pub log: Arc<AccessLog>,
    /// Its identity and whom it believes, once it has any.
    pub trust: OnceLock<Trust>,
    /// What this process listens on, once it is bound.
    pub own: OnceLock<Vec<Bound>>,
    /// Endpoints that the gateway is to send a hello of its own.
    pub suspects: Suspects,
    /// Address families that this machine has no way to.
    pub families: Families,
    /// Connections and their farewells.
    pub(crate) tasks: Arc<AtomicU32>,
    ids: AtomicU64,
    warned: AtomicU64,
}

impl Process {
    pub(crate) fn new(
        fixed: Fixed,
        tables: Snapshot,
        limits: Limits,
        metrics: Arc<Metrics>,
        log: Arc<AccessLog>,
    ) -> Process {
        Process {
            fixed,
            tables: ArcSwap::from_pointee(tables),
            limits,
            metrics,
            log,
            trust: OnceLock::new(),
            own: OnceLock::new(),
            suspects: Suspects::default(),
            families: Families::default(),
            tasks: Arc::default(),
            ids: AtomicU64::new(1),
            warned: AtomicU64::new(0),
        }
    }

    pub(crate) fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Relaxed)
    }

    /// True once a second, for what would otherwise fill the log.
    pub(crate) fn may_warn(&self) -> bool {
        let now = socket::now();
        let before = self.warned.load(Relaxed);
        (before == 0 || now.saturating_sub(before) >= 1_000)
            && self.warned.compare_exchange(before, now.max(1), Relaxed, Relaxed).is_ok()
    }

    /// Connecting there would be connecting to ourselves.
    #[must_use]
    pub fn is_own(&self, address: SocketAddr) -> bool {
        let Some(bound) = self.own.get() else { return false };
        if !bound.iter().any(|bound| bound.address.port() == address.port()) {
            return false;
        }
        // Made anew: the machine's addresses may have changed since the last time.
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
    /// With the port that was bound.
    pub address: SocketAddr,
    /// An IPv6 socket that takes no IPv4.
    pub ipv6_only: bool,
}

/// One worker's part.
#[derive(Debug)]
pub struct Worker {
    /// From 0.
    pub index: usize,
    /// What it shares with the others.
    pub process: Arc<Process>,
    /// Its connections.
    pub live: Arc<Live>,
    /// Its counters.
    pub counters: Arc<WorkerCounters>,
    /// Its pipes.
    pub pipes: Arc<Pool>,
    /// Its bulk turn.
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
