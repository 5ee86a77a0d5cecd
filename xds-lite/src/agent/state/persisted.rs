//! What an agent knows, over a restart: what was persisted is taken, and what has changed is named for the stores.

use std::collections::BTreeMap;
use std::time::Instant;

use isthmus_store::{Record, Report};

use crate::agent::persistence::{self, Stores};
use isthmus_model::slice::Cluster;
use isthmus_registry::imports::Stored;

use super::State;

/// Persisted registrations that cannot be used, of which the log names each.
const NAMED: usize = 100;

impl State {
    /// Takes slices of peers that were persisted; what is known already is newer.
    pub(in crate::agent) fn restore_imports(
        &mut self,
        imports: BTreeMap<Cluster, BTreeMap<String, Vec<u8>>>,
    ) {
        for (from, slices) in imports {
            if !self.peers.contains_key(&from) {
                self.unclaimed.insert(from, slices);
                continue;
            }
            for (name, bytes) in slices {
                match self.imports.take(&from, &name, &bytes) {
                    Ok(Stored::Slice { forgets: None }) => {}
                    Ok(Stored::Slice { forgets: Some(gone) }) => {
                        self.persist(persistence::import(&from, &gone.to_string()));
                    }
                    Ok(Stored::Nothing) => self.persist(persistence::import(&from, &name)),
                    Err(why) => {
                        tracing::warn!(peer = %from, slice = ?name, %why, "ignoring an invalid persisted slice");
                        self.persist(persistence::import(&from, &name));
                    }
                }
            }
        }
        self.pass_on();
    }

    /// Keeps slices that could be read late for the next start: a peer that is followed already would not say of them
    /// that they are gone.
    pub(in crate::agent) fn lay_by(&mut self, imports: BTreeMap<Cluster, BTreeMap<String, Vec<u8>>>) {
        self.unclaimed.extend(imports);
    }

    /// A peer has said what it has: what was kept of it besides is gone.
    pub(super) fn clear_unclaimed(&mut self, of: &Cluster) {
        for name in self.unclaimed.remove(of).unwrap_or_default().into_keys() {
            self.persist(persistence::import(of, &name));
        }
    }

    /// Takes registrations that were persisted, but for those who have registered again meanwhile.
    pub(in crate::agent) fn restore_registrations(&mut self, records: Vec<Record>, now: Instant) {
        let mut wrong = 0_usize;
        for (key, record) in records {
            if let Err(why) = self.registered.restore(&key, &record, now) {
                wrong += 1;
                if wrong <= NAMED {
                    tracing::error!(record = ?key, %why, "ignoring a persisted registration; the VM registers again");
                }
                if let Some(stores) = &self.stores {
                    stores.registration_changed(key);
                }
            }
        }
        if wrong > NAMED {
            tracing::error!(ignored = wrong, "more persisted registrations were ignored than are named");
        }
    }

    /// How it stands with what is persisted.
    pub(in crate::agent) fn health(&self) -> Vec<Report> {
        self.stores.iter().flat_map(Stores::health).map(|health| health.report()).collect()
    }

    /// Names files of the state that are not used, each once.
    pub(in crate::agent) fn name_problems(&mut self, problems: Vec<String>) {
        for problem in problems.iter().filter(|problem| !self.state_problems.contains(problem)) {
            tracing::error!("state: {problem}");
        }
        self.state_problems = problems;
    }

    pub(super) fn persist(&self, key: String) {
        if let Some(stores) = &self.stores {
            stores.slice_changed(key);
        }
    }

    /// Persists who has registered, or has gone.
    pub(in crate::agent) fn persist_registrations(&mut self) {
        let changed = self.registered.changed();
        if let Some(stores) = &self.stores {
            changed.into_iter().for_each(|key| stores.registration_changed(key));
        }
    }
}
