//! Builds the next tables from the previous ones at a cost in proportion to the change, except for an edit of the
//! file, which rebuilds all names.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_model::{HostName, HostPattern};

use super::Snapshot;
use super::bindings::{Bindings, LearnedBindings};
use super::list::List;
use super::names::{Names, Place};
use super::service::{Resolved, Service, ServiceBuilder};
use super::shared::Shared;
use crate::config::settings::{self, Live};
use crate::ends::Ends;
use crate::gateways::Gateways;

/// State kept beside the tables for building the next ones.
#[derive(Debug, Default)]
pub(crate) struct CompilerState {
    /// Learned services that a file service with the same host and port hides.
    hidden: List,
    /// Learned services whose result may change without an update, because their names resolve differently.
    changing: List,
    /// Learned services in the tables with a certificate of the agent, by host and port.
    doors: BTreeMap<(HostPattern, u16), Arc<Service>>,
    /// These, callers, or the file's services may have changed.
    has_new_doors: bool,
    /// Host names used as endpoint addresses, with their use counts.
    targets: BTreeMap<HostName, usize>,
    /// The set of these names may have changed.
    has_new_targets: bool,
    shared: Shared,
    /// The bindings and callers of the agent.
    bindings: LearnedBindings,
}

impl CompilerState {
    /// Returns the state for the tables of a file.
    pub(crate) fn of_file(tables: &Snapshot) -> CompilerState {
        let mut state = CompilerState::default();
        tables.file.iter().for_each(|service| state.add_targets(service));
        state
    }

    /// Returns the gateway addresses of other clusters that endpoints have.
    pub(crate) fn gateways(&self) -> Arc<Gateways> {
        Arc::clone(&self.shared.gateways)
    }

    /// Returns the host names used as endpoint addresses, in order.
    pub(crate) fn targets(&self) -> Vec<HostName> {
        self.targets.keys().cloned().collect()
    }

    /// Returns these names if they may have changed since the last call: most changes leave them as they are.
    pub(crate) fn take_new_targets(&mut self) -> Option<Vec<HostName>> {
        std::mem::take(&mut self.has_new_targets).then(|| self.targets())
    }

    /// Whether callers or services with a certificate of the agent may have changed since the last call.
    pub(crate) fn take_new_doors(&mut self) -> bool {
        std::mem::take(&mut self.has_new_doors)
    }

    /// Returns the learned services in the tables with a certificate of the agent.
    pub(crate) fn doors(&self) -> impl Iterator<Item = &Service> {
        self.doors.values().map(|service| &**service)
    }

    fn add_door(&mut self, service: &Arc<Service>) {
        if service.issued_identity().is_some() {
            self.doors.insert((service.host.clone(), service.port), Arc::clone(service));
            self.has_new_doors = true;
        }
    }

    fn remove_door(&mut self, service: &Service) {
        if service.issued_identity().is_some() {
            self.doors.remove(&(service.host.clone(), service.port));
            self.has_new_doors = true;
        }
    }

    fn add_targets(&mut self, service: &Service) {
        for name in service.targets() {
            let count = self.targets.entry(name.clone()).or_default();
            self.has_new_targets |= *count == 0;
            *count += 1;
        }
    }

    fn remove_targets(&mut self, service: &Service) {
        for name in service.targets() {
            if let Some(count) = self.targets.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    self.has_new_targets = true;
                    self.targets.remove(name);
                }
            }
        }
    }
}

/// The next tables.
pub(crate) struct SnapshotBuilder<'a> {
    tables: Snapshot,
    state: &'a mut CompilerState,
    resolved: &'a Resolved,
    is_own: &'a dyn Fn(SocketAddr) -> bool,
    rebuilt: usize,
    /// Services that were built or entered anew and whose endpoints are probed.
    probed: Vec<Arc<Service>>,
}

impl<'a> SnapshotBuilder<'a> {
    /// Starts from the previous tables. Names without an answer in `resolved` have no endpoint yet; addresses for
    /// which `is_own` holds are ignored, because a route to the gateway itself is a loop.
    pub(crate) fn after(
        before: &Snapshot,
        state: &'a mut CompilerState,
        (resolved, is_own): (&'a Resolved, &'a dyn Fn(SocketAddr) -> bool),
    ) -> SnapshotBuilder<'a> {
        let tables = Snapshot { epoch: before.epoch + 1, ..before.clone() };
        SnapshotBuilder { tables, state, resolved, is_own, rebuilt: 0, probed: Vec::new() }
    }

    /// Whether something differs from the previous tables.
    pub(crate) fn is_news(&self) -> bool {
        self.rebuilt > 0
    }

    /// Number of services built, removed or entered anew, the work and the garbage of this change; new settings of the
    /// file count as one more.
    pub(crate) fn rebuilt(&self) -> usize {
        self.rebuilt
    }

    /// Takes the services that were built or entered anew and whose endpoints are probed.
    pub(crate) fn take_probed(&mut self) -> Vec<Arc<Service>> {
        std::mem::take(&mut self.probed)
    }

    /// Returns the tables.
    pub(crate) fn done(self) -> Snapshot {
        self.tables
    }

    /// Applies new settings of the file.
    pub(crate) fn read(&mut self, live: Arc<Live>) {
        self.tables.access_changes += 1;
        let before = std::mem::replace(&mut self.tables.file, [].into());
        let made = live.services.iter().map(|settings| self.build_of_file(settings));
        let file: Arc<[Arc<Service>]> = made.collect();
        // In this order a name that stays is not a new one.
        file.iter().for_each(|service| self.state.add_targets(service));
        before.iter().for_each(|service| self.state.remove_targets(service));
        let mut names = Names::default();
        for (index, service) in file.iter().enumerate() {
            names.add(service, Place::in_file(index));
        }
        self.tables.endpoints = file.iter().map(|service| service.endpoints.len()).sum();
        (self.tables.live, self.tables.file, self.tables.names) = (live, file, names);
        self.index_bindings();
        self.state.doors.clear();
        self.state.has_new_doors = true;
        let learned = std::mem::take(&mut self.tables.learned);
        let hidden = std::mem::take(&mut self.state.hidden);
        learned.iter().chain(hidden.iter()).for_each(|service| self.add_learned(service));
        self.rebuilt += 1 + self.tables.file.len() + learned.len() + hidden.len();
    }

    /// Changes what the agent has told of bindings and callers.
    pub(crate) fn bind(&mut self, change: impl FnOnce(&mut LearnedBindings)) {
        let callers = Arc::clone(&self.state.bindings.callers);
        change(&mut self.state.bindings);
        if !Arc::ptr_eq(&callers, &self.state.bindings.callers) {
            self.state.has_new_doors = true;
            self.tables.access_changes += 1;
        }
        self.index_bindings();
        self.rebuilt += 1;
    }

    fn index_bindings(&mut self) {
        let bindings = Bindings::new(&self.tables.live.bindings, &self.state.bindings);
        if bindings.conflicts() != self.tables.bindings.conflicts() {
            tracing::warn!(conflicts = ?bindings.conflicts(), "several hosts claim a virtual address or a listener's port; it leads to none of them");
        }
        self.tables.bindings = Arc::new(bindings);
    }

    /// Replaces the certificates, together with the settings that name them.
    pub(crate) fn equip(&mut self, ends: Arc<Ends>) {
        self.tables.ends = ends;
    }

    fn build_of_file(&mut self, settings: &settings::Service) -> Arc<Service> {
        let known = self.tables.claim(&settings.host, settings.port).cloned();
        let made = self.builder().build(settings, known.as_ref().map(|claim| &*claim.service));
        match known.filter(|claim| !claim.is_learned() && claim.service.is_as(&made)) {
            Some(same) => same.service,
            None => {
                let made = Arc::new(made);
                self.note_probed(&made);
                made
            }
        }
    }

    fn note_probed(&mut self, service: &Arc<Service>) {
        if service.rules.health.probes() {
            self.probed.push(Arc::clone(service));
        }
    }

    /// Replaces the learned services of a host; their ports differ. A file service with the same host and port takes
    /// precedence. An unchanged service is kept as it is.
    pub(crate) fn learn(&mut self, host: &HostPattern, services: Vec<settings::Service>) {
        let mut before = self.tables.learned.of_host(host);
        before.extend(self.state.hidden.of_host(host));
        for settings in services {
            let at = before.iter().position(|service| service.port == settings.port);
            let known = at.map(|at| before.swap_remove(at));
            let made = match &known {
                Some(known) => self.builder().build(&settings, Some(known)),
                None => {
                    let other =
                        self.tables.claim(host, settings.port).map(|claim| Arc::clone(&claim.service));
                    self.builder().build(&settings, other.as_deref())
                }
            };
            self.replace(known.as_ref(), made);
        }
        for gone in before {
            self.remove(&gone);
        }
    }

    /// Replaces all learned services. No two have the same host and port.
    pub(crate) fn learn_all(&mut self, services: &[Arc<settings::Service>]) {
        let hosts: HashSet<_> = services.iter().map(|service| &service.host).collect();
        let before: Vec<_> = self.tables.learned.iter().chain(self.state.hidden.iter()).cloned().collect();
        for gone in before.iter().filter(|service| !hosts.contains(&service.host)) {
            self.remove(gone);
        }
        for alike in services.chunk_by(|one, other| one.host == other.host) {
            let Some(first) = alike.first() else { continue };
            self.learn(&first.host, alike.iter().map(|service| (**service).clone()).collect());
        }
    }

    /// Applies changed addresses of names.
    pub(crate) fn resolve(&mut self) {
        let changing: Vec<_> = self.state.changing.iter().cloned().collect();
        for service in changing {
            let made = self.builder().rebuild(&service);
            self.replace(Some(&service), made);
        }
        let mut file = self.tables.file.to_vec();
        for (index, service) in file.iter_mut().enumerate().filter(|(_, service)| service.may_change()) {
            let made = self.builder().rebuild(service);
            if !service.is_as(&made) {
                self.tables.names.remove(service);
                self.tables.endpoints =
                    self.tables.endpoints - service.endpoints.len() + made.endpoints.len();
                *service = Arc::new(made);
                self.note_probed(service);
                self.tables.names.add(service, Place::in_file(index));
                self.rebuilt += 1;
            }
        }
        self.tables.file = file.into();
    }

    fn builder(&mut self) -> ServiceBuilder<'_> {
        ServiceBuilder { resolved: self.resolved, is_own: self.is_own, shared: &mut self.state.shared }
    }

    fn replace(&mut self, known: Option<&Arc<Service>>, made: Service) {
        if known.is_some_and(|known| known.is_as(&made)) {
            return;
        }
        if made.has_rules() || known.is_some_and(|known| known.has_rules()) {
            self.tables.access_changes += 1;
        }
        let made = Arc::new(made);
        // In this order a name that stays is not a new one.
        self.state.add_targets(&made);
        if let Some(known) = known {
            self.remove(known);
        }
        if made.may_change() {
            self.state.changing.insert(Arc::clone(&made));
        }
        self.add_learned(&made);
        self.rebuilt += 1;
    }

    fn remove(&mut self, service: &Arc<Service>) {
        self.state.remove_targets(service);
        if service.may_change() {
            self.state.changing.remove(service);
        }
        if self.tables.learned.remove(service) {
            self.state.remove_door(service);
            self.tables.names.remove(service);
            self.tables.endpoints -= service.endpoints.len();
        } else {
            self.state.hidden.remove(service);
        }
        self.rebuilt += 1;
    }

    /// Adds a service to the tables, unless a file service hides it.
    fn add_learned(&mut self, service: &Arc<Service>) {
        let claim = self.tables.claim(&service.host, service.port);
        if claim.is_some_and(|claim| !claim.is_learned()) {
            self.state.hidden.insert(Arc::clone(service));
        } else {
            self.tables.learned.insert(Arc::clone(service));
            self.note_probed(service);
            self.state.add_door(service);
            self.tables.names.add(service, Place::LEARNED);
            self.tables.endpoints += service.endpoints.len();
        }
    }
}
