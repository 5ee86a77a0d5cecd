//! What pages and metrics show of other clusters, kept up to date by each change.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Instant, SystemTime};

use isthmus_ads::client::Refused;
use isthmus_health::schedule::{Down, Probes};
use isthmus_model::host::HostPattern;
use isthmus_model::slice::{Cluster, Key};
use isthmus_registry::imports::{ImportStatus, PeerUsage, Verdict};

use crate::agent::peer::Contact;

/// Contacts, verdicts and probes.
#[derive(Debug, Default)]
pub(in crate::agent) struct Summary {
    pub(super) contacts: BTreeMap<Cluster, Contact>,
    usage: BTreeMap<Cluster, PeerUsage>,
    imported: BTreeSet<(HostPattern, Cluster)>,
    quarantined: BTreeMap<(HostPattern, Cluster), String>,
    probed: usize,
    down: Vec<Down>,
}

/// A copy of the summary, its lists cut.
#[derive(Debug)]
pub(in crate::agent) struct Listed {
    pub(in crate::agent) contacts: BTreeMap<Cluster, Contact>,
    /// What each has of this agent's memory and disk.
    pub(in crate::agent) usage: BTreeMap<Cluster, PeerUsage>,
    pub(in crate::agent) imported_count: usize,
    pub(in crate::agent) imported: Vec<ImportStatus>,
    pub(in crate::agent) quarantined_count: usize,
    pub(in crate::agent) quarantined: Vec<ImportStatus>,
    /// The number of probed addresses of unreachable clusters.
    pub(in crate::agent) probed: usize,
    pub(in crate::agent) down_count: usize,
    pub(in crate::agent) down: Vec<Down>,
}

impl Summary {
    /// Records what an update has led to.
    pub(super) fn record(&mut self, from: &Cluster, usage: Option<PeerUsage>, refused: &[Refused]) {
        self.usage.extend(usage.map(|usage| (from.clone(), usage)));
        if let (Some(contact), Some(last)) = (self.contacts.get_mut(from), refused.last()) {
            contact.refusals += refused.len() as u64;
            contact.refusal = Some(format!("{:?}: {}", last.name, last.why));
        }
    }

    /// Records verdicts.
    pub(super) fn judged(&mut self, verdicts: Vec<(Key, Verdict)>) {
        for (Key { cluster, host }, verdict) in verdicts {
            let key = (host, cluster);
            if !matches!(verdict, Verdict::Imported(_)) {
                self.imported.remove(&key);
            }
            if !matches!(verdict, Verdict::Quarantined(_)) {
                self.quarantined.remove(&key);
            }
            match verdict {
                Verdict::Imported(_) => _ = self.imported.insert(key),
                Verdict::Quarantined(why) => _ = self.quarantined.insert(key, why),
                Verdict::Withdrawn => {}
            }
        }
    }

    pub(super) fn set_probes(&mut self, probes: &Probes) {
        self.probed = probes.asked();
        self.down = probes.down(Instant::now(), SystemTime::now());
    }

    pub(super) fn list(&self, most: usize) -> Listed {
        let status = |(host, cluster): &(HostPattern, Cluster), quarantined: Option<&String>| ImportStatus {
            cluster: cluster.clone(),
            host: host.clone(),
            quarantined: quarantined.cloned(),
        };
        Listed {
            contacts: self.contacts.clone(),
            usage: self.usage.clone(),
            imported_count: self.imported.len(),
            imported: self.imported.iter().take(most).map(|key| status(key, None)).collect(),
            quarantined_count: self.quarantined.len(),
            quarantined: self
                .quarantined
                .iter()
                .take(most)
                .map(|(key, why)| status(key, Some(why)))
                .collect(),
            probed: self.probed,
            down_count: self.down.len(),
            down: self.down.iter().take(most).cloned().collect(),
        }
    }
}
