//! Persists slices for a restart: loads them before the first connection, and writes every change. The store is in
//! `isthmus_store`; without a usable store the gateway works from memory.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use isthmus_model::slice::Key;
use isthmus_store::{Persistence, Record, Source, journal};

use super::{Slices, locked};

/// The file in the state directory.
const FILE: &str = "slices.db";
/// The journal of earlier versions.
const JOURNAL: &str = "agent.slices";

/// The slices as a source for the store.
pub(super) struct Persisted(Arc<Mutex<Slices>>);

impl Persisted {
    /// Opens the store; slices of the state directory, if any, are in use when this returns.
    pub(super) fn begin(mut slices: Slices, state: Option<&Path>) -> Arc<Persisted> {
        let Some(folder) = state else { return Arc::new(Persisted(Arc::new(Mutex::new(slices)))) };
        let (mut persistence, records) = Persistence::open("slices", folder, FILE);
        let before = persistence.adopt(&folder.join(JOURNAL), journal);
        let _once = slices.control.state.set(persistence.health());
        slices.restore(before.into_iter().chain(records).collect(), &persistence);
        let persisted = Arc::new(Persisted(Arc::new(Mutex::new(slices))));
        let source = Arc::<Persisted>::downgrade(&persisted);
        persistence.begin(source);
        locked(&persisted.0).persistence = Some(persistence);
        persisted
    }

    pub(super) fn slices(&self) -> Arc<Mutex<Slices>> {
        Arc::clone(&self.0)
    }
}

impl Source for Persisted {
    fn keys(&self) -> Vec<String> {
        locked(&self.0).store.entries().map(|(name, _)| name).collect()
    }

    fn values(&self, keys: &[String]) -> Vec<Option<Vec<u8>>> {
        let slices = locked(&self.0);
        let value = |key: &String| Some(slices.store.bytes(&key.parse::<Key>().ok()?)?.to_vec());
        keys.iter().map(value).collect()
    }

    fn restore(&self, records: Vec<Record>) {
        let mut slices = locked(&self.0);
        // The agent was told the versions without these and would never remove them. All slices are rewritten next.
        if slices.are_versions_sent {
            return;
        }
        let mut touched = BTreeSet::new();
        for (name, bytes) in records {
            touched.extend(slices.insert(&name, &bytes).map(|key| key.host));
        }
        slices.rebuild(touched);
    }
}

impl Slices {
    fn restore(&mut self, records: Vec<Record>, persistence: &Persistence) {
        let mut touched = BTreeSet::new();
        for (name, bytes) in records {
            match self.insert(&name, &bytes) {
                Ok(key) => _ = touched.insert(key.host),
                Err(why) => {
                    tracing::warn!(slice = ?name, %why, "ignoring an invalid persisted slice");
                    persistence.changed(name);
                }
            }
        }
        if !self.store.is_empty() {
            tracing::info!(slices = self.store.len(), "started with persisted tables");
            self.rebuild(touched);
        }
    }
}
