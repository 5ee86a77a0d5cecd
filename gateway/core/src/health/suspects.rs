//! Queues endpoints for the gateway's own hello: rejected connections add them, and the prober takes them out.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use isthmus_model::HostPattern;
use tokio::sync::mpsc;

use crate::demotion::Outcome;
use crate::endpoint::{EndpointState, ServiceState};
use crate::metrics::Metrics;
use crate::snapshot::{Endpoint, Service, Snapshot};
use crate::socket::Millis;

/// Capacity of the queue.
const WAITING: usize = 256;

/// One endpoint of one service.
#[derive(Debug)]
pub(crate) struct Suspect {
    host: HostPattern,
    service: Weak<ServiceState>,
    address: SocketAddr,
    pub(crate) endpoint: Weak<EndpointState>,
}

/// The queue of endpoints to check.
#[derive(Debug)]
pub struct Suspects {
    door: mpsc::Sender<Suspect>,
    taker: Mutex<Option<mpsc::Receiver<Suspect>>>,
    /// Endpoints that do not answer the gateway's own hello.
    pub(crate) failing: AtomicUsize,
}

impl Default for Suspects {
    fn default() -> Self {
        let (door, taker) = mpsc::channel(WAITING);
        Suspects { door, taker: Mutex::new(Some(taker)), failing: AtomicUsize::new(0) }
    }
}

impl Suspects {
    /// Queues an endpoint for the gateway's own hello, unless one is in progress or was just sent. A service without a
    /// fixed name is skipped, because the name would be chosen by a client.
    pub(crate) fn check(&self, service: &Service, endpoint: &Endpoint, now: Millis, metrics: &Metrics) {
        let demotion = endpoint.state.demotion();
        if service.own_name().is_none() || !demotion.begin_check(now) {
            return;
        }
        let suspect = Suspect {
            host: service.host.clone(),
            service: Arc::downgrade(&service.state),
            address: endpoint.address,
            endpoint: Arc::downgrade(&endpoint.state),
        };
        if self.door.try_send(suspect).is_err() {
            metrics.checked(Outcome::Unasked);
            demotion.end_check(now);
        }
    }

    /// Returns the receiving end, once.
    pub(crate) fn taker(&self) -> Option<mpsc::Receiver<Suspect>> {
        self.taker.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Returns the number of endpoints that do not answer the gateway's own hello.
    #[must_use]
    pub fn failing(&self) -> usize {
        self.failing.load(Relaxed)
    }
}

impl Suspect {
    /// Returns the service and the endpoint in these tables, if they still exist.
    pub(crate) fn find<'t>(&self, tables: &'t Snapshot) -> Option<(&'t Service, &'t Endpoint)> {
        let mut services = tables.names.pattern(&self.host).iter().map(|claim| &*claim.service);
        let service = services.find(|service| self.service.as_ptr() == Arc::as_ptr(&service.state))?;
        let is_it = |endpoint: &&Endpoint| {
            endpoint.address == self.address && self.endpoint.as_ptr() == Arc::as_ptr(&endpoint.state)
        };
        Some((service, service.endpoints.iter().find(is_it)?))
    }
}
