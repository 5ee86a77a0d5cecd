//! The agent's state directory: the stores of slices, of registrations, and of tokens, joined clusters and
//! acknowledgements, and the health of all of them. Owners name what has changed and go on; nobody waits for the disk here.
//!
//! Each lock guards one list and is held for a moment; no other lock is taken under it.

use std::sync::Arc;

use isthmus_model::slice::Cluster;
use isthmus_store::{Embedded, Record, Source, StoreHealth};
use isthmus_trust::join::Joined;
use parking_lot::Mutex;

use super::config::Settings;
use super::own_services::OwnServices;
use super::peers::Peers;
use super::persistence::{Opened, Slices, Stores};

/// What of the agent's state is on disk.
pub(super) struct StateDirectory {
    stores: Option<Mutex<Stores>>,
    /// Tokens, joined clusters and acknowledgements.
    trust_store: Option<Embedded>,
    /// Records of joined clusters that are lost or invalid.
    problems: Mutex<Vec<String>>,
}

/// The content of the stores at the start.
pub(super) struct Restored {
    pub(super) slices: Slices,
    pub(super) registrations: Vec<Record>,
    /// The registrations could be read, or there are none.
    pub(super) has_registrations: bool,
}

impl StateDirectory {
    /// Opens the directory of the settings, if they name one, and reads it.
    pub(super) fn open(settings: &Settings, trust_store: Option<Embedded>) -> (StateDirectory, Restored) {
        let (stores, restored) = match settings.state.as_deref().map(Stores::open) {
            Some(Opened { stores, slices, registrations, has_registrations }) => {
                (Some(Mutex::new(stores)), Restored { slices, registrations, has_registrations })
            }
            None => {
                let (slices, registrations) = Default::default();
                (None, Restored { slices, registrations, has_registrations: true })
            }
        };
        (StateDirectory { stores, trust_store, problems: Mutex::default() }, restored)
    }

    /// Begins to persist changes, for as long as the returned sources live.
    pub(super) fn begin(&self, own: &Arc<OwnServices>, peers: &Arc<Peers>) -> Option<[Arc<dyn Source>; 2]> {
        Some(self.stores.as_ref()?.lock().begin(own, peers))
    }

    /// Tokens, joined clusters and acknowledgements, if there is a directory.
    pub(super) fn trust_store(&self) -> Option<&Embedded> {
        self.trust_store.as_ref()
    }

    /// Slices have changed, or are gone.
    pub(super) fn slices_changed(&self, keys: impl IntoIterator<Item = String>) {
        if let Some(stores) = &self.stores {
            let stores = stores.lock();
            keys.into_iter().for_each(|key| stores.slice_changed(key));
        }
    }

    /// Registrations have changed, or are gone.
    pub(super) fn registrations_changed(&self, keys: impl IntoIterator<Item = String>) {
        if let Some(stores) = &self.stores {
            let stores = stores.lock();
            keys.into_iter().for_each(|key| stores.registration_changed(key));
        }
    }

    /// The health of stores and files.
    pub(super) fn reports(&self) -> Vec<StoreHealth> {
        let stores = self.stores.iter().flat_map(|stores| stores.lock().health());
        let stores = stores.map(|health| health.report());
        stores.chain(self.trust_store.iter().map(Embedded::report)).collect()
    }

    /// Records of joined clusters that are lost or invalid now.
    pub(super) fn problems(&self) -> Vec<String> {
        self.problems.lock().clone()
    }

    /// Reports records of joined clusters that are lost; logs each once.
    pub(super) fn name_problems(&self, joined: &Joined) {
        let problem = |(cluster, why): &(Option<Cluster>, String)| match cluster {
            Some(cluster) => format!("cluster {cluster}: {why}"),
            None => why.clone(),
        };
        let problems: Vec<_> = joined.lost.iter().map(problem).collect();
        let mut known = self.problems.lock();
        for problem in problems.iter().filter(|problem| !known.contains(problem)) {
            tracing::error!("state: {problem}");
        }
        *known = problems;
    }
}
