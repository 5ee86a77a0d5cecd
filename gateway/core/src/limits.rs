//! Limits connections per listener, in total and per source address, for all workers of the process. `memory` limits
//! the memory of ClientHellos.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::settings;
use crate::endpoint::{Counted, EndpointState, ServiceState};
use crate::memory::HelloMemory;
use crate::reason::Reason;

/// Maximum number of refused connections that linger so that their alert arrives.
const MAX_LINGERING: u32 = 1_000;

/// The limits of the process.
#[derive(Debug)]
pub struct Limits {
    /// Connections that the descriptors allow.
    descriptors: u32,
    max_lingering: u32,
    total: Arc<AtomicU32>,
    listeners: Vec<Arc<AtomicU32>>,
    lingering: Arc<AtomicU32>,
    sources: Arc<Mutex<HashMap<IpAddr, u32>>>,
    /// Bytes of hellos in flight.
    pub hellos: Arc<HelloMemory>,
}

impl Limits {
    /// `descriptors` is the limit of open files, of which 90 % are used: two for each connection and each
    /// pipe, one for each refused client that lingers, `reserve` for everything else.
    #[must_use]
    pub fn new(descriptors: u64, pipes: usize, reserve: u64, listeners: usize) -> Limits {
        let usable = (descriptors / 10 * 9).saturating_sub(reserve).saturating_sub(2 * pipes as u64);
        let max_lingering = u32::try_from(usable / 10).unwrap_or(u32::MAX).clamp(1, MAX_LINGERING);
        let connections = usable.saturating_sub(max_lingering.into()) / 2;
        Limits {
            descriptors: u32::try_from(connections).unwrap_or(u32::MAX).max(1),
            max_lingering,
            total: Arc::default(),
            listeners: (0..listeners).map(|_| Arc::default()).collect(),
            lingering: Arc::default(),
            sources: Arc::default(),
            hellos: Arc::default(),
        }
    }

    /// Returns the number of connections that the descriptors allow.
    #[must_use]
    pub fn descriptors(&self) -> u32 {
        self.descriptors
    }

    /// Number of open connections.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.total.load(Relaxed)
    }

    /// Number of open connections on one listener.
    #[must_use]
    pub fn on_listener(&self, listener: usize) -> u32 {
        self.listeners.get(listener).map_or(0, |count| count.load(Relaxed))
    }

    /// Number of refused clients that linger.
    #[must_use]
    pub fn lingering(&self) -> u32 {
        self.lingering.load(Relaxed)
    }

    pub(crate) fn admit(&self, listener: usize, live: &settings::Live) -> Result<[Counted; 2], Reason> {
        let allowed = live.limits.connections.min(self.descriptors);
        let total = Counted::below(&self.total, allowed).ok_or(Reason::LimitTotal)?;
        let (Some(count), Some(rules)) = (self.listeners.get(listener), live.listeners.get(listener)) else {
            return Err(Reason::Internal);
        };
        let on_listener = Counted::below(count, rules.max_connections).ok_or(Reason::LimitListener)?;
        Ok([total, on_listener])
    }

    pub(crate) fn admit_source(
        &self,
        source: IpAddr,
        limit: Option<u32>,
    ) -> Result<Option<FromSource>, Reason> {
        let Some(limit) = limit else { return Ok(None) };
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let count = sources.entry(source).or_default();
        if *count >= limit {
            return Err(Reason::LimitSource);
        }
        *count += 1;
        Ok(Some(FromSource { source, sources: Arc::clone(&self.sources) }))
    }

    pub(crate) fn may_linger(&self) -> Option<Counted> {
        Counted::below(&self.lingering, self.max_lingering)
    }
}

/// The limits that a connection counts against until it ends.
#[derive(Debug, Default)]
pub(crate) struct Permits {
    pub(crate) process: Option<[Counted; 2]>,
    pub(crate) source: Option<FromSource>,
    pub(crate) service: Option<Counted<ServiceState>>,
    pub(crate) endpoint: Option<Counted<EndpointState>>,
}

/// One counted connection of a source, until it is dropped.
#[derive(Debug)]
pub struct FromSource {
    source: IpAddr,
    sources: Arc<Mutex<HashMap<IpAddr, u32>>>,
}

impl Drop for FromSource {
    fn drop(&mut self) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = sources.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                sources.remove(&self.source);
            }
        }
    }
}
