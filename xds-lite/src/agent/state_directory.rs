//! The agent's state directory: the stores of slices and registrations, the files of tokens and joined clusters, and the
//! health of all of them. Owners name what has changed and go on; nobody waits for the disk here.
//!
//! Each lock guards one list and is held for a moment; no other lock is taken under it.

use std::sync::Arc;

use isthmus_store::{Health, Record, Report, Source};
use isthmus_trust::join::{Folder, Joined, ReadError, peers_folder};
use parking_lot::Mutex;

use super::config::Settings;
use super::own_services::OwnServices;
use super::peers::Peers;
use super::persistence::{Opened, Slices, Stores};

/// What of the agent's state is on disk.
pub(super) struct StateDirectory {
    stores: Option<Mutex<Stores>>,
    /// Tokens that this agent has made.
    tokens: Option<Arc<Folder>>,
    /// The health of the records of joined clusters.
    peer_files: Option<Health>,
    /// Records of joined clusters that are ignored, and files that do not belong there.
    problems: Mutex<Vec<String>>,
}

/// The content of the stores at the start.
#[derive(Default)]
pub(super) struct Restored {
    pub(super) slices: Slices,
    pub(super) registrations: Vec<Record>,
}

impl StateDirectory {
    /// Opens the directory of the settings, if they name one, and reads it.
    pub(super) fn open(settings: &Settings, tokens: Option<Arc<Folder>>) -> (StateDirectory, Restored) {
        let folder = settings.state.as_deref();
        let (stores, restored) = match folder.map(Stores::open) {
            Some(Opened { stores, slices, registrations }) => {
                (Some(Mutex::new(stores)), Restored { slices, registrations })
            }
            None => (None, Restored::default()),
        };
        let peer_files = folder.map(|state| Health::for_files("peers", &peers_folder(state)));
        (StateDirectory { stores, tokens, peer_files, problems: Mutex::default() }, restored)
    }

    /// Begins to persist changes, for as long as the returned sources live.
    pub(super) fn begin(&self, own: &Arc<OwnServices>, peers: &Arc<Peers>) -> Option<[Arc<dyn Source>; 2]> {
        Some(self.stores.as_ref()?.lock().begin(own, peers))
    }

    /// The tokens, if there is a directory.
    pub(super) fn tokens(&self) -> Option<&Arc<Folder>> {
        self.tokens.as_ref()
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
    pub(super) fn reports(&self) -> Vec<Report> {
        let stores = self.stores.iter().flat_map(|stores| stores.lock().health());
        let stores = stores.map(|health| health.report());
        let tokens = self.tokens.iter().map(|tokens| tokens.report());
        let peers = self.peer_files.iter().map(Health::report);
        stores.chain(tokens).chain(peers).collect()
    }

    /// Records of joined clusters that are ignored now.
    pub(super) fn problems(&self) -> Vec<String> {
        self.problems.lock().clone()
    }

    /// Reports records of joined clusters that are ignored; logs each once.
    pub(super) fn name_problems(&self, joined: &Joined) {
        let is_record = |error: &&ReadError| error.path.extension().is_some();
        if let Some(health) = &self.peer_files {
            match joined.unread.iter().find(|error| !is_record(error)) {
                Some(folder) => health.is_unusable(&folder.to_string()),
                None => health.is_usable(),
            }
            for ReadError { path, cause } in joined.unread.iter().filter(is_record) {
                let name = path.file_name().unwrap_or_default();
                health.file_is_damaged(&name.to_string_lossy(), cause, None);
            }
        }
        let problems: Vec<_> = joined.unread.iter().chain(&joined.strays).map(ToString::to_string).collect();
        let mut known = self.problems.lock();
        for problem in problems.iter().filter(|problem| !known.contains(problem)) {
            tracing::error!("state: {problem}");
        }
        *known = problems;
    }
}
