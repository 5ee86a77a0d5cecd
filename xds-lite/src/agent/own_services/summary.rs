//! What pages and metrics show of the own services, kept up to date by each change.

use std::collections::BTreeMap;

use isthmus_model::host::HostPattern;
use isthmus_registry::registered::Registered;
use isthmus_registry::registered::registrar::Registrar;

/// Counts and lists.
#[derive(Debug, Default)]
pub(in crate::agent) struct Summary {
    pub(super) hosts: usize,
    pub(super) exported: usize,
    pub(super) problems: Vec<String>,
    registered: usize,
    registrars: BTreeMap<Registrar, usize>,
    /// Hosts that an export rule selects and that are not exported, and why.
    held: BTreeMap<HostPattern, String>,
}

/// A copy of the summary, its lists cut.
#[derive(Debug)]
pub(in crate::agent) struct Listed {
    pub(in crate::agent) hosts: usize,
    pub(in crate::agent) exported: usize,
    pub(in crate::agent) registered: usize,
    /// The number of registrations of each user and token.
    pub(in crate::agent) registrars: BTreeMap<Registrar, usize>,
    pub(in crate::agent) problem_count: usize,
    pub(in crate::agent) problems: Vec<String>,
    pub(in crate::agent) held_count: usize,
    pub(in crate::agent) held: Vec<(HostPattern, String)>,
}

impl Summary {
    /// Of slices of before a restart: the registry has not been read.
    pub(super) fn new(exported: usize) -> Summary {
        Summary { exported, ..Summary::default() }
    }

    pub(super) fn set_held(&mut self, host: &HostPattern, why: Option<String>) {
        match why {
            Some(why) => _ = self.held.insert(host.clone(), why),
            None => _ = self.held.remove(host),
        }
    }

    pub(super) fn count_registered(&mut self, registered: &Registered) {
        self.registered = registered.count();
        self.registrars.clone_from(registered.registrars());
    }

    pub(super) fn list(&self, most: usize) -> Listed {
        Listed {
            hosts: self.hosts,
            exported: self.exported,
            registered: self.registered,
            registrars: self.registrars.clone(),
            problem_count: self.problems.len(),
            problems: self.problems.iter().take(most).cloned().collect(),
            held_count: self.held.len(),
            held: self.held.iter().take(most).map(|(host, why)| (host.clone(), why.clone())).collect(),
        }
    }
}
