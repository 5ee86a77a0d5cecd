//! Keeps the state of services and endpoints across table swaps: open connections, health, the replay budget. Only the
//! gateway's own observations affect health: refused or timed-out connects, and its own probes. What a client sent may
//! change the order for a while (`demotion`), never health.

mod health;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use crate::config::settings::Replay;
use crate::connects::Connects;
use crate::demotion::{Demotion, Outcome};
use crate::gateways::GatewayState;
use crate::socket::Millis;

pub(crate) use health::{Cause, EndpointHealth};

/// State of a service; it outlives the snapshot that created it.
#[derive(Debug, Default)]
pub struct ServiceState {
    /// Open connections of all workers.
    active: AtomicU32,
    /// Position of round robin.
    cursor: AtomicU32,
    /// Counters with this service's label, from its first connection on.
    pub(crate) counters: OnceLock<Arc<ServiceCounters>>,
    /// Connects and retries that are under way.
    pub(crate) connects: Connects,
    /// Allocated on first use: most of 100 000 services never replay a hello.
    replays: OnceLock<Box<Mutex<Budget>>>,
    /// When a connection may try an ejected endpoint; 0 while none is ejected.
    next_trial: AtomicU64,
}

impl ServiceState {
    /// Connections at once.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    /// Returns the turn of the next connection.
    #[must_use]
    pub fn turn(&self) -> usize {
        self.cursor.load(Relaxed) as usize
    }

    pub(crate) fn next_turn(&self) -> usize {
        self.cursor.fetch_add(1, Relaxed) as usize
    }

    /// Counts a connection, unless `limit` are open already.
    pub(crate) fn admit(self: &Arc<Self>, limit: Option<u32>) -> Option<Counted<ServiceState>> {
        Counted::below(self, limit.unwrap_or(u32::MAX))
    }

    /// Whether a connection may try an ejected endpoint.
    pub(crate) fn is_trial_due(&self, now: Millis) -> bool {
        let due = self.next_trial.load(Relaxed);
        due != 0 && due <= now
    }

    /// Sets when to look for the next trial; none if no endpoint is ejected.
    pub(crate) fn set_next_trial(&self, due: Option<Millis>) {
        self.next_trial.store(due.map_or(0, |due| due.max(1)), Relaxed);
    }

    /// Takes a replay for `source` from the budget; false if there is none.
    pub(crate) fn may_replay(&self, source: IpAddr, now: Millis, limits: &Replay) -> bool {
        let budget = self.replays.get_or_init(|| Box::new(Mutex::new(Budget::new(limits, now))));
        budget.lock().unwrap_or_else(PoisonError::into_inner).spend(source, now, limits)
    }

    /// Each connection earns the service a share of a replay.
    pub(crate) fn earn_replay(&self, limits: &Replay) {
        if let Some(budget) = self.replays.get() {
            budget.lock().unwrap_or_else(PoisonError::into_inner).earn(limits.ratio, limits);
        }
    }
}

/// The counters of one service.
#[derive(Debug)]
pub struct ServiceCounters {
    /// `host:port`.
    pub name: Box<str>,
    /// The service; gone when the service is removed.
    pub of: Weak<ServiceState>,
    /// Connections that reached an endpoint.
    pub connections: AtomicU64,
    /// Bytes from clients.
    pub bytes_in: AtomicU64,
    /// Bytes from servers.
    pub bytes_out: AtomicU64,
}

impl ServiceCounters {
    pub(crate) fn new(name: Box<str>, of: Weak<ServiceState>) -> ServiceCounters {
        let zero = || AtomicU64::new(0);
        ServiceCounters { name, of, connections: zero(), bytes_in: zero(), bytes_out: zero() }
    }
}

/// State of an endpoint; it outlives the snapshot that created it.
#[derive(Debug, Default)]
pub struct EndpointState {
    active: AtomicU32,
    /// The prober is asking it.
    is_asked: AtomicBool,
    pub(crate) health: EndpointHealth,
    /// Allocated on first use: most endpoints are never demoted.
    demotion: OnceLock<Box<Demotion>>,
    /// Of an address of another cluster's gateway.
    gateway: OnceLock<Arc<GatewayState>>,
}

impl EndpointState {
    /// The state of an endpoint that joined a running service.
    pub(crate) fn joining(now: Millis, slow_start: Option<Duration>) -> EndpointState {
        EndpointState { health: EndpointHealth::joining(now, slow_start), ..EndpointState::default() }
    }

    /// Connections at once.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.active.load(Relaxed)
    }

    /// Connect failures since the last success.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.health.failures()
    }

    /// Whether it takes new connections: it is neither ejected nor has it failed its probes, nor is it, as another
    /// cluster's gateway, down by the matrix.
    #[must_use]
    pub fn healthy(&self, now: Millis) -> bool {
        self.health.is_healthy(now) && !self.is_gateway_down()
    }

    /// Whether it is an address of another cluster's gateway that does not answer probes.
    #[must_use]
    pub fn is_gateway_down(&self) -> bool {
        self.gateway.get().is_some_and(|gateway| gateway.is_down())
    }

    /// Makes it follow the state of a gateway address.
    pub(crate) fn follow_gateway(&self, gateway: impl FnOnce() -> Arc<GatewayState>) {
        self.gateway.get_or_init(gateway);
    }

    /// Returns the per cent of its share that it gets: less than 100 for a while after it has returned or joined, where
    /// the service has `slow_start`.
    #[must_use]
    pub fn ramp(&self, now: Millis) -> u8 {
        self.health.ramp(now)
    }

    /// Whether it is demoted for this source.
    #[must_use]
    pub fn is_demoted(&self, source: IpAddr, now: Millis) -> bool {
        self.demotion.get().is_some_and(|demotion| demotion.is_demoted(source, now))
    }

    /// Whether it is demoted for all sources.
    #[must_use]
    pub fn is_demoted_for_all(&self, now: Millis) -> bool {
        self.demotion.get().is_some_and(|demotion| demotion.is_demoted_for_all(now))
    }

    /// Returns the result of the gateway's last own hello.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        self.demotion.get()?.outcome()
    }

    pub(crate) fn demotion(&self) -> &Demotion {
        self.demotion.get_or_init(Box::default)
    }

    /// Begins a probe; false while another one is under way.
    pub(crate) fn begin_probe(&self) -> bool {
        !self.is_asked.swap(true, Relaxed)
    }

    pub(crate) fn end_probe(&self) {
        self.is_asked.store(false, Relaxed);
    }
}

/// Something that counts its connections. The counter is embedded, which saves an allocation for each of a hundred
/// thousand services.
pub trait Count {
    /// The counter.
    fn count(&self) -> &AtomicU32;
}

impl Count for AtomicU32 {
    fn count(&self) -> &AtomicU32 {
        self
    }
}

impl Count for ServiceState {
    fn count(&self) -> &AtomicU32 {
        &self.active
    }
}

impl Count for EndpointState {
    fn count(&self) -> &AtomicU32 {
        &self.active
    }
}

/// One counted connection, until it is dropped.
#[derive(Debug)]
pub struct Counted<T: Count = AtomicU32>(Arc<T>);

impl<T: Count> Counted<T> {
    pub(crate) fn one(place: &Arc<T>) -> Counted<T> {
        place.count().fetch_add(1, Relaxed);
        Counted(Arc::clone(place))
    }

    /// Counts one more, or returns `None` at the limit. The check and the count are one operation: of two that race
    /// for the last place, exactly one gets it.
    pub(crate) fn below(place: &Arc<T>, limit: u32) -> Option<Counted<T>> {
        let one_more = |here| (here < limit).then(|| here + 1);
        place.count().fetch_update(Relaxed, Relaxed, one_more).ok().map(|_| Counted(Arc::clone(place)))
    }
}

impl<T: Count> Drop for Counted<T> {
    fn drop(&mut self) {
        self.0.count().fetch_sub(1, Relaxed);
    }
}

/// A token bucket of replays, filled by connections, with a share for each source address.
#[derive(Debug)]
struct Budget {
    tokens: f64,
    window: Millis,
    used: HashMap<IpAddr, u32>,
}

const WINDOW_MS: Millis = 10_000;
/// Replays that each window brings, whatever the traffic and within the burst.
const LEAST_REPLAYS: f64 = 3.0;
/// Maximum sources in one window; further ones wait for the next window.
const MAX_SOURCES: usize = 1024;

impl Budget {
    fn new(limits: &Replay, now: Millis) -> Budget {
        Budget { tokens: f64::from(limits.burst), window: now, used: HashMap::new() }
    }

    fn earn(&mut self, tokens: f64, limits: &Replay) {
        self.tokens = (self.tokens + tokens).min(f64::from(limits.burst));
    }

    fn spend(&mut self, source: IpAddr, now: Millis, limits: &Replay) -> bool {
        if now.saturating_sub(self.window) >= WINDOW_MS {
            self.window = now;
            self.used.clear();
            self.earn((f64::from(limits.burst) / 2.0).max(LEAST_REPLAYS), limits);
        }
        if self.tokens < 1.0 || (self.used.len() >= MAX_SOURCES && !self.used.contains_key(&source)) {
            return false;
        }
        let used = self.used.entry(source).or_default();
        if *used > 0 && f64::from(*used) >= f64::from(limits.burst) * limits.source_share {
            return false;
        }
        *used += 1;
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replay_budget_is_shared_between_sources() {
        let service = ServiceState::default();
        let limits = Replay { ratio: 0.5, burst: 4, source_share: 0.5 };
        let (greedy, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let granted = (0..10).filter(|_| service.may_replay(greedy, 0, &limits)).count();
        assert_eq!(granted, 2);
        assert!(service.may_replay(other, 0, &limits));
        assert!(service.may_replay(other, 0, &limits));
        assert!(!service.may_replay(IpAddr::from([10, 0, 0, 3]), 0, &limits), "the bucket is empty");
        service.earn_replay(&limits);
        service.earn_replay(&limits);
        assert!(service.may_replay(IpAddr::from([10, 0, 0, 3]), 0, &limits));
    }

    #[test]
    fn replay_budget_brings_3_in_each_window_whatever_the_traffic() {
        let service = ServiceState::default();
        let limits = Replay { ratio: 0.0, burst: 4, source_share: 1.0 };
        let source = IpAddr::from([10, 0, 0, 1]);
        let granted = |now| (0..10).filter(|_| service.may_replay(source, now, &limits)).count();
        assert_eq!([0, WINDOW_MS, 2 * WINDOW_MS].map(granted), [4, 3, 3]);
    }

    #[test]
    fn service_count_stops_at_limit_and_decreases_on_drop() {
        let service = Arc::new(ServiceState::default());
        let first = service.admit(Some(1)).unwrap();
        assert!(service.admit(Some(1)).is_none());
        assert_eq!(service.active(), 1);
        drop(first);
        assert!(service.admit(Some(1)).is_some());
    }
}
