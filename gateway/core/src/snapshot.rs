//! Holds the tables that connections read: services, endpoints and names, in one immutable value that shares unchanged
//! parts with its predecessor. `route` does the look-up; `endpoint` holds mutable state.

mod bindings;
mod builder;
mod candidate;
mod endpoint;
mod group;
mod health;
mod list;
mod loads;
mod name;
mod names;
mod reach;
mod ready_counts;
mod service;
mod shared;
mod spill;
mod split;

use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_model::HostPattern;

use crate::config::settings::Live;
use crate::ends::Ends;

pub(crate) use bindings::{Bindings, LearnedBindings};
pub(crate) use builder::{CompilerState, SnapshotBuilder};
pub use endpoint::{Endpoint, EndpointMeta};
pub(crate) use group::Group;
use list::List;
pub use name::Name;
pub(crate) use names::Claim;
use names::Names;
pub use service::{Resolved, Rules, Service};
pub(crate) use spill::Load;
#[cfg(test)]
pub(crate) use spill::{Count, loads};
pub(crate) use split::{Part, Split};

/// All tables at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Number of the snapshot in this process, from 1.
    pub epoch: u64,
    /// Number of changes so far that may refuse live connections: of rules for callers, or of settings.
    pub(crate) access_changes: u64,
    /// Settings of the file.
    pub live: Arc<Live>,
    /// Services of the file, index-aligned with its settings.
    file: Arc<[Arc<Service>]>,
    /// Learned services.
    learned: List,
    /// Number of endpoints of all services.
    endpoints: usize,
    pub(crate) names: Names,
    /// What leads to hosts from applications without TLS, and the agent's callers.
    pub(crate) bindings: Arc<Bindings>,
    /// Certificates of callers and of services whose TLS ends here.
    pub(crate) ends: Arc<Ends>,
}

impl Snapshot {
    /// Compiles the tables of a file. Services that are unchanged since `before` are shared with it; the others take
    /// over state by service and address. Learned services stay.
    #[must_use]
    pub fn compile(
        live: impl Into<Arc<Live>>,
        resolved: &Resolved,
        before: Option<&Snapshot>,
        is_own: &dyn Fn(SocketAddr) -> bool,
    ) -> Snapshot {
        let live = live.into();
        let nothing = Snapshot {
            epoch: 0,
            access_changes: 0,
            live: Arc::clone(&live),
            file: [].into(),
            learned: List::default(),
            endpoints: 0,
            names: Names::default(),
            bindings: Arc::default(),
            ends: Arc::default(),
        };
        let mut state = CompilerState::default();
        let mut next = SnapshotBuilder::after(before.unwrap_or(&nothing), &mut state, (resolved, is_own));
        next.read(live);
        next.done()
    }

    /// Returns the services: first the file's in its order, then learned ones by host and port.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.file.iter().chain(self.learned.iter())
    }

    /// Number of services.
    #[must_use]
    pub fn len(&self) -> usize {
        self.file.len() + self.learned.len()
    }

    /// Number of endpoints, with host names resolved.
    #[must_use]
    pub fn endpoints(&self) -> usize {
        self.endpoints
    }

    /// Whether there are no services.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the file's service at an index.
    pub(crate) fn in_file(&self, index: usize) -> Option<&Arc<Service>> {
        self.file.get(index)
    }

    /// Returns the service with this host and port.
    pub(crate) fn service(&self, host: &HostPattern, port: u16) -> Option<&Arc<Service>> {
        self.claim(host, port).map(|claim| &claim.service)
    }

    /// Returns the services of the file.
    pub(crate) fn of_file(&self) -> impl Iterator<Item = &Service> {
        self.file.iter().map(|service| &**service)
    }

    fn claim(&self, host: &HostPattern, port: u16) -> Option<&Claim> {
        let is_it = |claim: &&Claim| claim.service.port == port && claim.service.host == *host;
        self.names.pattern(host).iter().find(is_it)
    }
}

#[cfg(test)]
mod tests;
