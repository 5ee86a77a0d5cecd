//! Lists the unhealthy endpoints, with why and since when; says each change once, in the log and to who listens.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use isthmus_model::HostPattern;
use tokio::sync::watch;

use crate::demotion::Outcome;
use crate::endpoint::{EndpointState, ServiceState};
use crate::reason::Reason;
use crate::snapshot::{Endpoint, Service};
use crate::socket::Millis;

/// An unhealthy endpoint of a service.
#[derive(Clone, Debug)]
pub struct Unhealthy {
    /// The host of the service.
    pub host: HostPattern,
    /// Its port.
    pub port: u16,
    /// The address of the endpoint.
    pub endpoint: SocketAddr,
    /// Its cluster, if it is another cluster's gateway.
    pub cluster: Option<Box<str>>,
    /// When it turned unhealthy.
    pub since: SystemTime,
    /// Why.
    pub why: Why,
}

/// Why an endpoint is unhealthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its connects failed.
    Connects(Reason),
    /// It failed this kind of probes; the last one with this result.
    Probes(&'static str, Outcome),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Connects(reason) => f.write_str(reason.word()),
            Why::Probes(probe, outcome) => write!(f, "{probe} probe: {}", outcome.word()),
        }
    }
}

/// One of several services of a name, and an address.
type Key = (usize, SocketAddr);

fn key(service: &Service, endpoint: &Endpoint) -> Key {
    (Arc::as_ptr(&service.state).addr(), endpoint.address)
}

#[derive(Debug)]
struct Entry {
    told: Unhealthy,
    /// Weak: both may leave the tables. While these exist, no other service gets the key.
    _service: Weak<ServiceState>,
    state: Weak<EndpointState>,
}

/// The list: at most the endpoints of the tables.
#[derive(Debug)]
pub(super) struct UnhealthyEndpoints {
    known: Mutex<HashMap<Key, Entry>>,
    changes: watch::Sender<u64>,
}

impl Default for UnhealthyEndpoints {
    fn default() -> UnhealthyEndpoints {
        UnhealthyEndpoints { known: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl UnhealthyEndpoints {
    pub(super) fn insert(&self, service: &Service, endpoint: &Endpoint, why: Why) {
        let told = Unhealthy {
            host: service.host.clone(),
            port: service.port,
            endpoint: endpoint.address,
            cluster: endpoint.cluster().map(Into::into),
            since: SystemTime::now(),
            why,
        };
        let entry = || Entry {
            told,
            _service: Arc::downgrade(&service.state),
            state: Arc::downgrade(&endpoint.state),
        };
        let mut known = self.known();
        let before = known.len();
        // An endpoint may be unhealthy for a second reason: it turned so at the first.
        known.entry(key(service, endpoint)).or_insert_with(entry);
        let is_news = known.len() > before;
        drop(known);
        if is_news {
            let cluster = endpoint.cluster();
            tracing::warn!(service = %service.name(), endpoint = %endpoint.address, cluster, %why, "endpoint unhealthy; it gets no new connections while others are healthy");
            self.changed();
        }
    }

    pub(super) fn remove_if_healthy(&self, service: &Service, endpoint: &Endpoint, now: Millis) {
        if endpoint.state.healthy(now)
            && let Some(entry) = self.known().remove(&key(service, endpoint))
        {
            returned(&entry.told);
            self.changed();
        }
    }

    pub(super) fn sweep(&self, now: Millis) {
        let mut gone = Vec::new();
        self.known().retain(|_, entry| {
            let state = entry.state.upgrade();
            let stays = state.as_ref().is_some_and(|state| !state.healthy(now));
            if !stays {
                gone.push((entry.told.clone(), state.is_some()));
            }
            stays
        });
        for (told, _) in gone.iter().filter(|(_, is_there)| *is_there) {
            returned(told);
        }
        if !gone.is_empty() {
            self.changed();
        }
    }

    pub(super) fn list(&self) -> Vec<Unhealthy> {
        let mut list: Vec<_> = self.known().values().map(|entry| entry.told.clone()).collect();
        list.sort_by(|one, other| {
            (&one.host, one.port, one.endpoint).cmp(&(&other.host, other.port, other.endpoint))
        });
        list
    }

    pub(super) fn count(&self) -> usize {
        self.known().len()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn returned(told: &Unhealthy) {
    let Unhealthy { host, port, endpoint, cluster, since, why } = told;
    let lasted = since.elapsed().unwrap_or_default();
    tracing::info!(service = %format_args!("{host}:{port}"), %endpoint, cluster, %why, ?lasted, "endpoint healthy again");
}
