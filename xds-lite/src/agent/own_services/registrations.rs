//! Registrations of VMs among the own services: made and renewed through the admin port, persisted, and restored.

use std::time::Instant;

use isthmus_registry::registered::lease::LeaseId;
use isthmus_registry::registered::registrar::Registrar;
use isthmus_registry::registered::registration::Registration;
use isthmus_registry::registered::{Identity, Lease, Refused};
use isthmus_store::Record;

use super::{OwnServices, State};

/// Unusable persisted registrations that are logged one by one.
const NAMED: usize = 100;

impl OwnServices {
    /// Registers a VM for an authenticated registrar.
    pub(in crate::agent) fn register(
        &self,
        registration: Registration,
        by: &Registrar,
        id: LeaseId,
        now: Instant,
    ) -> Result<Lease, Refused> {
        self.registering(|state| {
            let State { registered, files, .. } = state;
            registered.register(registration, by, files.iter(), id, now)
        })
    }

    /// Renews a VM's registration.
    pub(in crate::agent) fn heartbeat(&self, id: &LeaseId, now: Instant) -> Result<Lease, Refused> {
        self.registering(|state| state.registered.heartbeat(id, now))
    }

    /// Ends a VM's registration.
    pub(in crate::agent) fn deregister(&self, id: &LeaseId) -> Result<Identity, Refused> {
        self.registering(|state| state.registered.deregister(id))
    }

    fn registering<T>(&self, change: impl FnOnce(&mut State) -> Result<T, Refused>) -> Result<T, Refused> {
        let mut state = self.state.lock();
        let done = change(&mut state);
        self.summary.lock().count_registered(&state.registered);
        self.news.notify_one();
        done
    }

    /// Restores persisted registrations, except of VMs that have registered again meanwhile.
    pub(in crate::agent) fn restore_registrations(&self, records: Vec<Record>, now: Instant) {
        let mut wrong = Vec::new();
        for (key, record) in records {
            let Err(why) = self.state.lock().registered.restore(&key, &record, now) else { continue };
            if wrong.len() < NAMED {
                tracing::error!(record = ?key, %why, "ignoring a persisted registration; the VM registers again");
            }
            wrong.push(key);
        }
        if wrong.len() > NAMED {
            tracing::error!(ignored = wrong.len(), "ignored more persisted registrations than are logged");
        }
        self.directory.registrations_changed(wrong);
        self.news.notify_one();
    }

    /// The keys of all registrations.
    pub(in crate::agent) fn registration_keys(&self) -> Vec<String> {
        self.state.lock().registered.keys()
    }

    /// Registrations as they are persisted.
    pub(in crate::agent) fn registration_records(&self, keys: &[String]) -> Vec<Option<Vec<u8>>> {
        let state = self.state.lock();
        keys.iter().map(|key| state.registered.record(key)).collect()
    }

    /// Applies changed registrations, and has them persisted.
    pub(in crate::agent) fn poll_registrations(&self, now: Instant) {
        let _order = self.changing.lock();
        let (hosts, changed) = {
            let mut state = self.state.lock();
            let hosts = state.registered.poll(now);
            self.summary.lock().count_registered(&state.registered);
            (hosts, state.registered.changed())
        };
        self.directory.registrations_changed(changed);
        if let Some(hosts) = hosts {
            self.update(hosts, now);
            self.log_problems();
        }
    }

    /// The registrations from before a restart are known: what neither they nor the files have is gone.
    pub(in crate::agent) fn set_registrations_known(&self, now: Instant) {
        let _order = self.changing.lock();
        self.views.set_own_known();
        let hosts = {
            let mut state = self.state.lock();
            state.has_registrations = true;
            state.disproved()
        };
        self.update(hosts, now);
    }

    /// When [`OwnServices::poll_registrations`] is due without news.
    pub(in crate::agent) fn next_due(&self) -> Option<Instant> {
        self.state.lock().registered.next_due()
    }
}
