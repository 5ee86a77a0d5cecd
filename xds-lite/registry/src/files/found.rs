//! Hands changes of a file registry over in parts, so that no reader holds a lock for as long as a large
//! registry takes.

use std::collections::HashMap;
use std::sync::Arc;

use isthmus_model::host::HostPattern;
use isthmus_model::services::Service;

/// Hosts in one part.
const HOSTS: usize = 2_048;

/// The changes that a scan found.
#[derive(Debug)]
pub struct Change {
    pub(super) hosts: Vec<(HostPattern, Vec<Arc<Service>>)>,
    pub(super) summary: Summary,
}

/// The state of the files as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// What was ignored, where, and why; for the log and for status.
    pub problems: Vec<String>,
    /// Whether the content is complete: the directory exists, and no file is being written.
    pub is_whole: bool,
}

/// Some hosts of a change; the last part has the summary.
#[derive(Debug)]
pub struct Part {
    /// The current services of each host; empty: the host is gone.
    pub hosts: Vec<(HostPattern, Vec<Arc<Service>>)>,
    /// Set in the last part only.
    pub summary: Option<Summary>,
}

impl Change {
    /// Splits the change, in the order of hosts.
    pub fn parts(self) -> impl Iterator<Item = Part> {
        let Change { hosts, summary } = self;
        let count = hosts.len().div_ceil(HOSTS).max(1);
        let (mut hosts, mut summary) = (hosts.into_iter(), Some(summary));
        (1..=count).map(move |part| Part {
            hosts: hosts.by_ref().take(HOSTS).collect(),
            summary: if part == count { summary.take() } else { None },
        })
    }
}

/// The sum of all parts so far.
#[derive(Debug)]
pub struct Found {
    services: HashMap<HostPattern, Vec<Arc<Service>>>,
    summary: Summary,
}

impl Default for Found {
    /// The state before the first scan.
    fn default() -> Found {
        let summary = Summary { problems: Vec::new(), is_whole: false };
        Found { services: HashMap::new(), summary }
    }
}

impl Found {
    /// Applies a part, and returns its hosts.
    pub fn remove_part(&mut self, part: Part) -> Vec<HostPattern> {
        if let Some(summary) = part.summary {
            self.summary = summary;
        }
        let taken = part.hosts.into_iter().map(|(host, services)| {
            match services.is_empty() {
                true => _ = self.services.remove(&host),
                false => _ = self.services.insert(host.clone(), services),
            }
            host
        });
        taken.collect()
    }

    /// The services of a host.
    #[must_use]
    pub fn services_for(&self, host: &HostPattern) -> &[Arc<Service>] {
        self.services.get(host).map(Vec::as_slice).unwrap_or_default()
    }

    /// All services.
    pub fn iter(&self) -> impl Iterator<Item = &Service> + Clone {
        self.services.values().flatten().map(|service| &**service)
    }

    /// The state of the files as a whole.
    #[must_use]
    pub fn summary(&self) -> &Summary {
        &self.summary
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use isthmus_model::registry_file;

    #[test]
    fn large_change_is_handed_over_in_parts_with_the_summary_last() {
        let service = Arc::new(registry_file("services: [{ host: a }]", Path::new("r")).unwrap().remove(0));
        let host = |index: usize| HostPattern::parse(&format!("h{index}.example")).unwrap();
        let hosts: Vec<_> =
            (0..2 * HOSTS + 1).map(|index| (host(index), vec![Arc::clone(&service)])).collect();
        let summary = Summary { problems: vec!["odd".to_owned()], is_whole: true };
        let change = Change { hosts, summary: summary.clone() };
        let mut found = Found::default();
        let mut lengths = Vec::new();
        for part in change.parts() {
            assert!(!found.summary().is_whole, "not before the last part");
            lengths.push(found.remove_part(part).len());
        }
        assert_eq!((lengths, found.summary()), (vec![HOSTS, HOSTS, 1], &summary));
        assert_eq!((found.iter().count(), found.services_for(&host(0)).len()), (2 * HOSTS + 1, 1));
        let gone = Change { hosts: vec![(host(0), Vec::new())], summary };
        gone.parts().for_each(|part| _ = found.remove_part(part));
        assert_eq!((found.iter().count(), found.services_for(&host(0)).len()), (2 * HOSTS, 0));
    }
}
