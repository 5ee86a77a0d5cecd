//! Peers' slices as they are persisted: restored after a restart, and read by the store.

use std::collections::BTreeMap;

use isthmus_model::slice::Cluster;
use isthmus_registry::imports::Stored;

use super::Peers;
use crate::agent::persistence;

impl Peers {
    /// Restores persisted slices of a peer; slices that are known already are newer.
    pub(super) fn restore(&self, from: &Cluster, slices: BTreeMap<String, Vec<u8>>) {
        let mut changed = Vec::new();
        for (name, bytes) in slices {
            match self.change(|state| state.imports.restore(from, &name, &bytes)) {
                Ok(Stored::Slice { forgets }) => {
                    changed.extend(forgets.map(|gone| persistence::import(from, &gone.to_string())));
                }
                Ok(Stored::Nothing) => changed.push(persistence::import(from, &name)),
                Err(why) => {
                    tracing::warn!(peer = %from, slice = ?name, %why, "ignoring an invalid persisted slice");
                    changed.push(persistence::import(from, &name));
                }
            }
        }
        self.pass_on();
        let usage = self.change(|state| state.imports.usage(from));
        self.summary.lock().record(from, usage, &[]);
        self.directory.slices_changed(changed);
    }

    /// Keeps slices that could only be read late for the next start: a peer that is followed already would not send
    /// tombstones for them.
    pub(in crate::agent) fn lay_by(&self, imports: BTreeMap<Cluster, BTreeMap<String, Vec<u8>>>) {
        self.state.lock().unclaimed.extend(imports);
    }

    /// The keys of all slices to persist.
    pub(in crate::agent) fn slice_keys(&self) -> Vec<String> {
        let state = self.state.lock();
        let imports = state.imports.persistent().map(|(from, name)| persistence::import(from, &name));
        let unclaimed = state
            .unclaimed
            .iter()
            .flat_map(|(from, all)| all.keys().map(|name| persistence::import(from, name)));
        imports.chain(unclaimed).collect()
    }

    /// The encoded slice to persist under a name of a cluster.
    pub(in crate::agent) fn to_persist(&self, from: &Cluster, name: &str) -> Option<Vec<u8>> {
        let state = self.state.lock();
        let imported = name.parse().ok().and_then(|key| state.imports.to_persist(from, &key));
        imported.map(<[u8]>::to_vec).or_else(|| state.unclaimed.get(from)?.get(name).cloned())
    }
}
