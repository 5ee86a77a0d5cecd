//! The slices of one cluster that expire while it is unreachable, in the order in which they do.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use isthmus_model::host::HostPattern;

/// Slices with `stale: DURATION`.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    due: BTreeSet<(Duration, HostPattern)>,
    expired: HashMap<HostPattern, Duration>,
}

impl Expiry {
    /// Replaces the time of a host.
    pub(super) fn replace(&mut self, host: &HostPattern, before: Option<Duration>, after: Option<Duration>) {
        self.expired.remove(host);
        if let Some(before) = before {
            self.due.remove(&(before, host.clone()));
        }
        self.due.extend(after.map(|after| (after, host.clone())));
    }

    /// The hosts that expire now, after this time without contact.
    pub(super) fn expire(&mut self, silence: Duration) -> Vec<HostPattern> {
        let mut hosts = Vec::new();
        while let Some((after, host)) = self.due.pop_first() {
            if after > silence {
                self.due.insert((after, host));
                break;
            }
            self.expired.insert(host.clone(), after);
            hosts.push(host);
        }
        hosts
    }

    /// The hosts that had expired: their cluster is reachable again.
    pub(super) fn revive(&mut self) -> Vec<HostPattern> {
        let revived: Vec<_> = self.expired.drain().collect();
        self.due.extend(revived.iter().map(|(host, after)| (*after, host.clone())));
        revived.into_iter().map(|(host, _)| host).collect()
    }

    pub(super) fn has_expired(&self, host: &HostPattern) -> bool {
        self.expired.contains_key(host)
    }
}
