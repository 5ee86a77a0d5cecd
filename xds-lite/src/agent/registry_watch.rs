//! Polls the registry (files, in parts, and VM registrations) and applies changes to the state. Files are read before
//! the state is locked: nothing waits for a disk under the lock.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use isthmus_model::address::Target;
use isthmus_model::host::HostPattern;
use isthmus_model::services::Service;
use isthmus_registry::exports::Export;
use isthmus_registry::files::{Files, Part};
use isthmus_registry::registered::lease::LeaseId;
use isthmus_registry::registered::registrar::Registrar;
use isthmus_registry::registered::registration::Registration;
use isthmus_registry::registered::{Lease, Refused};
use isthmus_registry::registry::export_of;
use isthmus_registry::source::{Snapshot, Source, merge, registered_of};

use super::state::State;
use super::{Error, PACE, locked};

/// Pause between two parts of a large change, so that others get the lock.
const COURTESY: Duration = Duration::from_millis(1);

/// Polls the registry until dropped, and reads all of it whenever `again` is notified. Notifies `waiting` when endpoints
/// await their mTLS check.
pub(super) async fn keep_looking(
    mut files: Files,
    state: &Arc<Mutex<State>>,
    waiting: &Arc<Notify>,
    again: &Notify,
) -> Result<(), Error> {
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = pace.tick() => {}
            () = again.notified() => files.expect_changes(),
        }
        files = look(files, state, waiting).await?;
    }
}

/// Polls once, on a thread that may wait for a disk, locking the state for a moment at a time only.
pub(super) async fn look(
    mut files: Files,
    state: &Arc<Mutex<State>>,
    waiting: &Arc<Notify>,
) -> Result<Files, Error> {
    let (state, waiting) = (Arc::clone(state), Arc::clone(waiting));
    let polling = tokio::task::spawn_blocking(move || {
        let mut waits = locked(&state).poll_registrations(Instant::now());
        if let Some(change) = files.changed_paths(Instant::now()) {
            for part in change.parts() {
                waits |= locked(&state).apply_part(part, Instant::now());
                std::thread::sleep(COURTESY);
            }
        }
        if waits {
            waiting.notify_one();
        }
        files
    });
    polling.await.map_err(Error::Broken)
}

impl State {
    /// Applies changed registrations. Returns whether an endpoint awaits its mTLS check.
    fn poll_registrations(&mut self, now: Instant) -> bool {
        let Some(hosts) = self.registered.look(now) else { return false };
        let waits = self.change(hosts, now);
        self.log_problems();
        waits
    }

    /// Applies a part of the registry's files. Returns whether an endpoint awaits its mTLS check.
    fn apply_part(&mut self, part: Part, now: Instant) -> bool {
        let is_last = part.summary.is_some();
        let mut hosts: BTreeSet<HostPattern> = self.files.take(part).into_iter().collect();
        // While the directory is missing, hosts offered before may still exist.
        if self.files.summary().is_whole {
            hosts.extend(std::mem::take(&mut self.unconfirmed));
        }
        let waits = self.change(hosts, now);
        if is_last {
            self.log_problems();
        }
        waits
    }

    /// Replaces the services of these hosts with what the sources have now, and publishes changes at once. The cost is
    /// proportional to the change.
    fn change(&mut self, mut hosts: BTreeSet<HostPattern>, now: Instant) -> bool {
        let under = hosts.iter().flat_map(|host| self.registered.under(host));
        hosts.extend(under.cloned().collect::<Vec<_>>());
        let mut waits = false;
        for host in &hosts {
            self.unconfirmed.remove(host);
            self.gather(host);
            let wanted = self.candidates(host);
            waits |= self.mtls_checks.want(host, wanted, now);
        }
        self.update_own_slices(hosts);
        waits
    }

    /// Merges what the sources have for a host.
    fn gather(&mut self, host: &HostPattern) {
        let files = Snapshot { services: Source::of(&self.files, host), problems: Vec::new() };
        let registered = registered_of(host, &self.registered, &self.files);
        let Snapshot { services, problems } = merge([files, registered]);
        if services.is_empty() {
            self.services.remove(host);
        } else {
            self.services.insert(host.clone(), services);
        }
        if problems.is_empty() {
            self.left_out.remove(host);
        } else {
            self.left_out.insert(host.clone(), problems);
        }
    }

    fn log_problems(&mut self) {
        let sources: [&dyn Source; 2] = [&self.files, &self.registered];
        let of_sources = sources.into_iter().flat_map(Source::problems);
        let problems: Vec<_> = of_sources.chain(self.left_out.values().flatten().cloned()).collect();
        let known: HashSet<&String> = self.problems.iter().collect();
        for problem in problems.iter().filter(|problem| !known.contains(problem)) {
            tracing::error!("{problem}");
        }
        self.problems = problems;
    }

    /// Registers a VM for an authenticated registrar.
    pub(super) fn register(
        &mut self,
        registration: Registration,
        by: &Registrar,
        id: LeaseId,
        now: Instant,
    ) -> Result<Lease, Refused> {
        self.registered.register(registration, by, self.files.iter(), id, now)
    }

    /// Endpoints of a host to be exported that need an mTLS check.
    fn candidates(&self, host: &HostPattern) -> Vec<Target> {
        let ports = self.services.get(host).map(Vec::as_slice).unwrap_or_default();
        if self.export_of(host, ports).is_none() {
            return Vec::new();
        }
        let unseen = ports.iter().filter(|port| !port.skips_mtls_check());
        unseen.flat_map(|port| &port.endpoints).map(|endpoint| endpoint.address.clone()).collect()
    }

    /// How a host is exported, if it is.
    pub(super) fn export_of(&self, host: &HostPattern, ports: &[Service]) -> Option<Export> {
        export_of(&self.settings.exports, &self.settings.cluster, host, ports)
    }
}
