//! Indexes the names of registered hosts, aliases included, so that a lookup costs the same however many
//! there are.

use std::collections::HashMap;

use isthmus_model::host::HostPattern;
use isthmus_model::services::Service;

/// The names of all registrations; each belongs to one host.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<HostPattern, Owner>);

#[derive(Debug)]
struct Owner {
    host: HostPattern,
    /// The number of registrations with this name.
    said: usize,
}

impl Names {
    /// A name of this service that another host already has, and that host.
    pub(super) fn taken<'a>(&'a self, by: &'a Service) -> Option<(&'a HostPattern, &'a HostPattern)> {
        let owned = |name: &'a HostPattern| Some((name, &self.0.get(name)?.host));
        all(by).filter_map(owned).find(|(_, owner)| **owner != by.host)
    }

    /// Replaces the names of a registration that changed, is new, or ended.
    pub(super) fn replace(&mut self, old: Option<&Service>, new: Option<&Service>) {
        for (name, host) in old.into_iter().flat_map(|old| all(old).map(|name| (name, &old.host))) {
            let Some(owner) = self.0.get_mut(name).filter(|owner| owner.host == *host) else { continue };
            owner.said -= 1;
            if owner.said == 0 {
                self.0.remove(name);
            }
        }
        for (name, host) in new.into_iter().flat_map(|new| all(new).map(|name| (name, &new.host))) {
            let owner = || Owner { host: host.clone(), said: 0 };
            self.0.entry(name.clone()).or_insert_with(owner).said += 1;
        }
    }
}

/// All names of a service.
pub(super) fn all(service: &Service) -> impl Iterator<Item = &HostPattern> {
    service.aliases.iter().chain([&service.host])
}
