//! Restores the agent's state after a restart, and tells the stores what has changed.

use std::collections::BTreeMap;
use std::time::Instant;

use isthmus_store::{Embedded, Record, Report};

use crate::agent::persistence::{self, Stores};
use isthmus_model::slice::Cluster;
use isthmus_registry::imports::Stored;
use isthmus_trust::join::Joined;

use super::State;

/// Unusable persisted registrations that are logged one by one.
const NAMED: usize = 100;

impl State {
    /// Restores persisted slices of peers; slices that are known already are newer.
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
                match self.imports.restore(&from, &name, &bytes) {
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

    /// Keeps slices that could only be read late for the next start: a peer that is followed already would not send
    /// tombstones for them.
    pub(in crate::agent) fn lay_by(&mut self, imports: BTreeMap<Cluster, BTreeMap<String, Vec<u8>>>) {
        self.unclaimed.extend(imports);
    }

    /// Drops a peer's persisted slices that it did not send: its first state is complete.
    pub(super) fn clear_unclaimed(&mut self, of: &Cluster) {
        for name in self.unclaimed.remove(of).unwrap_or_default().into_keys() {
            self.persist(persistence::import(of, &name));
        }
    }

    /// Restores persisted registrations, except of VMs that have registered again meanwhile.
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
            tracing::error!(ignored = wrong, "ignored more persisted registrations than are logged");
        }
    }

    /// The health of the stores.
    pub(in crate::agent) fn health(&self) -> Vec<Report> {
        let stores = self.stores.iter().flat_map(Stores::health).map(|health| health.report());
        let trust = self.trust_store.iter().map(Embedded::report);
        stores.chain(trust).chain(self.views.bundles.report()).collect()
    }

    /// Reports records of joined clusters that are lost; logs each once.
    pub(in crate::agent) fn name_problems(&mut self, joined: &Joined) {
        let problem = |(cluster, why): &(Option<Cluster>, String)| match cluster {
            Some(cluster) => format!("cluster {cluster}: {why}"),
            None => why.clone(),
        };
        let problems: Vec<_> = joined.lost.iter().map(problem).collect();
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

    /// Persists new and ended registrations.
    pub(in crate::agent) fn persist_registrations(&mut self) {
        let changed = self.registered.changed();
        if let Some(stores) = &self.stores {
            changed.into_iter().for_each(|key| stores.registration_changed(key));
        }
    }
}
