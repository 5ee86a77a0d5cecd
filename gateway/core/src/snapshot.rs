//! The tables that connections read: services, their endpoints and the names that lead to them, in one immutable
//! value; what a change leaves alone is shared with the tables before. Not the look-up itself (that is `route`) and
//! not what changes while connections live (that is `endpoint`).

mod builder;
mod group;
mod list;
mod name;
mod names;
mod service;
mod shared;

use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_model::HostPattern;

use crate::config::settings::Live;

pub(crate) use builder::{CompilerState, SnapshotBuilder};
pub(crate) use group::Group;
use list::List;
pub use name::Name;
pub(crate) use names::Claim;
use names::Names;
pub use service::{Endpoint, EndpointMeta, Resolved, Rules, Service};

/// All tables of one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Counts the snapshots of this process, from 1.
    pub epoch: u64,
    /// The file's part, as it is written.
    pub live: Arc<Live>,
    /// Those of the file, index-aligned with its services.
    file: Arc<[Arc<Service>]>,
    /// Those that came from elsewhere.
    learned: List,
    pub(crate) names: Names,
}

impl Snapshot {
    /// The tables of a file. Services that come out as they were in `before` are the very same; for the others,
    /// state is taken over by service and address. What was learned stays.
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
            live: Arc::clone(&live),
            file: [].into(),
            learned: List::default(),
            names: Names::default(),
        };
        let mut beside = CompilerState::default();
        let mut next = SnapshotBuilder::after(before.unwrap_or(&nothing), &mut beside, (resolved, is_own));
        next.read(live);
        next.done()
    }

    /// The services, first the file's in its order, then what was learned by host and port.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.file.iter().chain(self.learned.iter())
    }

    /// How many services there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.file.len() + self.learned.len()
    }

    /// Whether there is no service.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The file's service of an index.
    pub(crate) fn in_file(&self, index: usize) -> Option<&Arc<Service>> {
        self.file.get(index)
    }

    fn claim(&self, host: &HostPattern, port: u16) -> Option<&Claim> {
        let is_it = |claim: &&Claim| claim.service.port == port && claim.service.host == *host;
        self.names.pattern(host).iter().find(is_it)
    }
}

#[cfg(test)]
mod tests;
