//! What the whole gateway knows of its endpoints' health: which services are to be probed, whom a client's connection has
//! put under suspicion, and which endpoints are unhealthy and why. `prober` asks the endpoints.

mod rate;
mod schedule;
mod suspects;
mod unhealthy;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::endpoint::{EndpointState, ServiceState};
use crate::snapshot::{Endpoint, Service};
use crate::socket::{self, Millis};

pub(crate) use rate::Rate;
pub(crate) use schedule::{Due, Owner, Schedule, TICK_MS};
pub(crate) use suspects::{Suspect, Suspects};
use unhealthy::UnhealthyEndpoints;
pub use unhealthy::{Unhealthy, Why};

/// The health of all endpoints.
#[derive(Debug, Default)]
pub struct Health {
    /// Endpoints queued for the gateway's own hello.
    pub suspects: Suspects,
    unhealthy: UnhealthyEndpoints,
    /// For the prober: services that are new or were rebuilt.
    probed: Mutex<Vec<Arc<Service>>>,
    /// For the prober: endpoints whose open connections are to be closed.
    lost: Mutex<Vec<Lost>>,
    /// Notified of both, and when an endpoint turned unhealthy.
    pub(crate) wake: Notify,
    /// Probes of all kinds in the last moment.
    pub(crate) rate: Rate,
    /// Endpoints that are probed.
    pub(crate) endpoints: AtomicUsize,
    /// Per cent of the configured interval that the slowest recent probe has waited.
    pub(crate) stretch: AtomicU32,
}

impl Health {
    /// Returns the unhealthy endpoints, in the order of services and addresses.
    #[must_use]
    pub fn unhealthy(&self) -> Vec<Unhealthy> {
        self.unhealthy.list()
    }

    /// Returns how many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.unhealthy.count()
    }

    /// Tells of changes of the list: the number of changes so far.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.unhealthy.subscribe()
    }

    /// Probes the endpoints of these services from now on, in place of those of their predecessors.
    pub(crate) fn probe(&self, services: Vec<Arc<Service>>) {
        if !services.is_empty() {
            locked(&self.probed).extend(services);
            self.wake.notify_one();
        }
    }

    pub(crate) fn take_probed(&self) -> Vec<Arc<Service>> {
        std::mem::take(&mut *locked(&self.probed))
    }

    /// Records that an endpoint turned unhealthy.
    pub(crate) fn lost(&self, service: &Service, endpoint: &Endpoint, why: Why) {
        self.unhealthy.insert(service, endpoint, why);
        if let Some(window) = service.rules.health.close_on_unhealthy {
            let lost = Lost {
                service: Arc::clone(&service.state),
                address: endpoint.address,
                endpoint: Arc::clone(&endpoint.state),
                window,
            };
            locked(&self.lost).push(lost);
        }
        self.wake.notify_one();
    }

    /// Records that an endpoint may have become healthy.
    pub(crate) fn regained(&self, service: &Service, endpoint: &Endpoint) {
        self.unhealthy.remove_if_healthy(service, endpoint, socket::now());
    }

    pub(crate) fn take_lost(&self) -> Vec<Lost> {
        std::mem::take(&mut *locked(&self.lost))
    }

    /// Removes what has become healthy by the passage of time, and what is gone.
    pub(crate) fn sweep(&self, now: Millis) {
        self.unhealthy.sweep(now);
    }

    /// How much longer than configured the intervals of probes are: 1 is as configured.
    #[must_use]
    pub fn stretch(&self) -> f64 {
        f64::from(self.stretch.load(Relaxed).max(100)) / 100.0
    }

    /// Number of endpoints that are probed.
    #[must_use]
    pub fn endpoints(&self) -> usize {
        self.endpoints.load(Relaxed)
    }
}

/// An endpoint that turned unhealthy and whose open connections are to be closed.
#[derive(Debug)]
pub(crate) struct Lost {
    pub(crate) service: Arc<ServiceState>,
    pub(crate) address: SocketAddr,
    pub(crate) endpoint: Arc<EndpointState>,
    /// Over this time.
    pub(crate) window: Duration,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
