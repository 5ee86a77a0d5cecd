//! Follows the records of joined clusters for a running agent, which knows them: a record that is lost while it runs is
//! written again. A record that was forgotten is not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use isthmus_store::{Embedded, Expect, Store as _, StoreError, UNNAMED, Watch};

use super::peer::{self, Joined, Peer};
use super::takeover;
use isthmus_model::slice::Cluster;

/// The joined clusters, followed in a store.
#[derive(Debug)]
pub struct JoinedClusters {
    store: Embedded,
    state: PathBuf,
    watch: Box<dyn Watch>,
    /// The records that have been read.
    known: BTreeMap<Cluster, Peer>,
    was_whole: bool,
    is_taken_over: bool,
    is_swept: bool,
}

impl JoinedClusters {
    /// Follows the records in the store of a state directory.
    #[must_use]
    pub fn new(store: Embedded, state: &Path) -> JoinedClusters {
        let watch = store.watch(peer::KIND);
        JoinedClusters {
            store,
            state: state.to_owned(),
            watch,
            known: BTreeMap::new(),
            was_whole: false,
            is_taken_over: false,
            is_swept: false,
        }
    }

    /// The joined clusters, if any record has changed since the last call. Blocks on the disk.
    ///
    /// # Errors
    /// The store cannot be used; call again later.
    pub fn poll(&mut self) -> Result<Option<Joined>, StoreError> {
        // A full disk keeps nobody from reading: what cannot be written now is left for later, or for the next start.
        self.is_taken_over = self.is_taken_over || takeover::take_over(&self.store, &self.state).is_ok();
        if !std::mem::replace(&mut self.is_swept, true) {
            let _ = peer::sweep_forgotten(&self.store);
        }
        let Some(listing) = self.watch.poll()? else { return Ok(None) };
        let joined = Joined::from_listing(&listing);
        let heals = self.heal(&joined);
        self.was_whole |= joined.is_whole();
        self.known
            .extend(joined.peers.iter().map(|peer| (peer.introduction.party.cluster.clone(), peer.clone())));
        match heals {
            Ok(()) => {}
            // Another process was first; its change is read next time.
            Err(StoreError::Conflict(_)) => {}
            Err(error) => {
                self.watch = self.store.watch(peer::KIND);
                return Err(error);
            }
        }
        Ok(Some(joined))
    }

    /// Writes known records that are lost.
    fn heal(&mut self, joined: &Joined) -> Result<(), StoreError> {
        joined.forgotten.iter().for_each(|cluster| _ = self.known.remove(cluster));
        let is_there =
            |cluster: &Cluster| joined.peers.iter().any(|peer| peer.introduction.party.cluster == *cluster);
        for (cluster, known) in self.known.iter().filter(|(cluster, _)| !is_there(cluster)) {
            tracing::warn!(peer = %cluster, "the record of a joined cluster was lost; writing it again");
            let (standing, _) = peer::read(&self.store, cluster)?;
            peer::write(&self.store, known, standing.expect())?;
        }
        // All records were known before some were lost without a name: they are written again now.
        if self.was_whole && joined.lost.iter().any(|(cluster, _)| cluster.is_none()) {
            self.store.remove(UNNAMED, Expect::Lost)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn clusters(joined: &Joined) -> Vec<&str> {
        joined.peers.iter().map(|peer| peer.introduction.party.cluster.as_str()).collect()
    }

    fn peer(cluster: &str) -> Peer {
        let text = format!(
            r#"{{ "cluster": "{cluster}", "trust_domain": "{cluster}.example", "network": "",
                "address": "192.0.2.7:15012", "gateways": [], "joined_at": "2026-11-21T13:00:00Z" }}"#
        );
        peer::parse(&cluster.parse().unwrap(), text.as_bytes()).unwrap()
    }

    #[test]
    fn joined_cluster_record_lost_at_run_time_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = super::super::store(dir.path());
        let mut joined = JoinedClusters::new(store.clone(), dir.path());
        assert_eq!(joined.poll().unwrap(), Some(Joined::default()));
        assert_eq!(joined.poll().unwrap(), None);
        for cluster in ["west", "north"] {
            peer::write(&store, &peer(cluster), Expect::Absent).unwrap();
        }
        assert_eq!(clusters(&joined.poll().unwrap().unwrap()), ["north", "west"]);
        assert!(peer::forget(&store, &"north".parse().unwrap()).unwrap());
        assert_eq!(clusters(&joined.poll().unwrap().unwrap()), ["west"]);
        fs::write(dir.path().join("trust.db"), "noise").unwrap();
        let found = joined.poll().unwrap().unwrap();
        assert!(found.peers.is_empty() && !found.is_whole(), "{found:?}");
        let healed = joined.poll().unwrap().unwrap();
        assert!(clusters(&healed) == ["west"] && healed.is_whole(), "{healed:?}");
        fs::remove_file(dir.path().join("trust.db")).unwrap();
        joined.poll().unwrap();
        assert_eq!(clusters(&peer::peers(&store).unwrap()), ["west"], "what was forgotten stays so");
    }

    #[test]
    fn joined_clusters_that_were_never_read_are_reported_as_lost() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("trust.db"), "noise").unwrap();
        let store = super::super::store(dir.path());
        let mut joined = JoinedClusters::new(store.clone(), dir.path());
        let found = joined.poll().unwrap().unwrap();
        assert!(matches!(&found.lost[..], [(None, why)] if why.contains("peers forget --lost")), "{found:?}");
        assert_eq!(joined.poll().unwrap(), None);
        let again = JoinedClusters::new(store.clone(), dir.path()).poll().unwrap().unwrap();
        assert!(!again.is_whole(), "after a restart, too");
        peer::forget_lost(&store).unwrap();
        assert!(joined.poll().unwrap().unwrap().is_whole());
    }
}
