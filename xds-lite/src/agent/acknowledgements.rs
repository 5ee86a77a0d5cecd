//! Stores which bundle each peer has acknowledged, and renders it as `acknowledged.json` for `isthmus-certs rotate`, which
//! does not read the store.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isthmus_certs::acknowledged::{Acknowledged, PeerWord};
use isthmus_store::{Embedded, Expect, Health, Store as _, StoreError, StoreHealth};
use isthmus_trust::join::Party;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

const FILE: &str = "acknowledged.json";
/// The kind of record in the store.
const KIND: &str = "acknowledged/";

/// The record of one peer's acknowledgement.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Whose bundle is acknowledged.
    of: Party,
    #[serde(flatten)]
    by: PeerWord,
}

/// Acknowledgements in a store and a file.
#[derive(Clone, Debug)]
pub(super) struct Acknowledgements {
    store: Embedded,
    file: PathBuf,
    own: Party,
    /// The health of the file.
    health: Arc<Health>,
}

impl Acknowledgements {
    /// Reads what is stored in a state directory, by cluster. Without it, peers acknowledge again when they connect.
    /// Blocks on the disk.
    pub(super) fn open(
        store: Embedded,
        state: &Path,
        own: &Party,
    ) -> (Acknowledgements, BTreeMap<String, PeerWord>) {
        let file = state.join(FILE);
        let health = Arc::new(Health::for_files("acknowledged", &file));
        let stored = Acknowledgements { store, file, own: own.clone(), health };
        let before = match stored.read() {
            Ok(before) if !before.is_empty() => before,
            // The store is new, or was lost.
            Ok(_) => stored.read_file(),
            Err(error) => {
                tracing::error!(%error, "cannot read peers' acknowledgements of bundles; they acknowledge again when they connect");
                stored.read_file()
            }
        };
        (stored, before)
    }

    /// The health of the file.
    pub(super) fn report(&self) -> StoreHealth {
        self.health.report()
    }

    fn read(&self) -> Result<BTreeMap<String, PeerWord>, StoreError> {
        let entries = self.store.list(KIND)?.entries.into_iter();
        let records = entries.filter_map(|entry| {
            let record: Record = serde_json::from_slice(&entry.value).ok()?;
            Some((entry.key.strip_prefix(KIND)?.to_owned(), record))
        });
        Ok(records
            .filter(|(_, record)| record.of == self.own)
            .map(|(key, record)| (key, record.by))
            .collect())
    }

    fn read_file(&self) -> BTreeMap<String, PeerWord> {
        let own = &self.own;
        match Acknowledged::read(&self.file) {
            Ok(saved) if saved.trust_domain == own.trust_domain && saved.cluster == own.cluster.as_str() => {
                saved.peers
            }
            Ok(_) => BTreeMap::new(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                tracing::error!(file = %self.file.display(), %error, "cannot read peers' acknowledgements of bundles; they acknowledge again when they connect");
                self.health.file_is_damaged(FILE, &error.to_string(), self.set_aside().as_deref());
                BTreeMap::new()
            }
        }
    }

    /// Sets aside a damaged file. Returns its new path.
    fn set_aside(&self) -> Option<PathBuf> {
        match isthmus_store::set_aside(&self.file) {
            Ok(aside) => {
                tracing::warn!(aside = %aside.display(), "set aside the damaged file; inspect or remove it");
                Some(aside)
            }
            Err(error) => {
                tracing::warn!(file = %self.file.display(), %error, "cannot set aside the damaged file");
                None
            }
        }
    }

    /// Writes the store and the file; reports whether both are written.
    pub(super) async fn save(&self, acks: Acknowledged) -> bool {
        self.health.is_behind(true);
        let writer = self.clone();
        let written = spawn_blocking(move || {
            // The file is written in any case: a roll-over waits for it.
            let stored = writer.write(&acks).map_err(io::Error::other);
            writer.write_file(&acks).and(stored)
        });
        match written.await.map_err(io::Error::other).flatten() {
            Ok(()) => {
                self.health.is_behind(false);
                self.health.is_usable();
                true
            }
            Err(error) => {
                let why = format!("{error}; a root roll-over waits for peers' acknowledgements");
                self.health.is_unusable(&why);
                false
            }
        }
    }

    fn write(&self, acks: &Acknowledged) -> Result<(), StoreError> {
        let listing = self.store.list(KIND)?;
        let mut stale: BTreeMap<_, _> =
            listing.entries.iter().map(|entry| (entry.key.as_str(), Some(&entry.value))).collect();
        stale.extend(listing.lost.iter().filter(|key| key.starts_with(KIND)).map(|key| (key.as_str(), None)));
        for (cluster, by) in &acks.peers {
            let (key, record) = (format!("{KIND}{cluster}"), Record { of: self.own.clone(), by: by.clone() });
            let value =
                serde_json::to_vec(&record).map_err(|error| StoreError::Unusable(error.to_string()))?;
            if stale.remove(key.as_str()).flatten() != Some(&value) {
                self.store.put(&key, &value, Expect::Anything)?;
            }
        }
        stale.into_keys().try_for_each(|key| self.store.remove(key, Expect::Anything))
    }

    fn write_file(&self, acks: &Acknowledged) -> io::Result<()> {
        if let Some(folder) = self.file.parent() {
            isthmus_store::private_folder(folder)?;
        }
        if self.file.symlink_metadata().is_ok_and(|facts| !facts.is_file()) {
            self.set_aside();
        }
        acks.write(&self.file).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use isthmus_certs::TrustDomain;

    use super::*;

    fn party(cluster: &str, domain: &str) -> Party {
        Party { cluster: cluster.parse().unwrap(), trust_domain: TrustDomain::new(domain).unwrap() }
    }

    fn acks(peers: &[&str]) -> Acknowledged {
        let word = |cluster: &&str| {
            let trust_domain = TrustDomain::new(&format!("{cluster}.example")).unwrap();
            ((*cluster).to_owned(), PeerWord { trust_domain, acknowledged: None })
        };
        Acknowledged {
            cluster: "east".to_owned(),
            trust_domain: TrustDomain::new("east.example").unwrap(),
            offered: None,
            peers: peers.iter().map(word).collect(),
        }
    }

    #[tokio::test]
    async fn acknowledgements_are_those_of_the_store_and_rendered_as_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let (state, east) = (dir.path(), party("east", "east.example"));
        // As an older version left it.
        acks(&["old"]).write(&state.join(FILE)).unwrap();
        let open = |own: &Party| Acknowledgements::open(isthmus_trust::join::store(state), state, own);
        let (stored, before) = open(&east);
        assert!(before.keys().eq(["old"]));
        for peers in [&["west", "south"][..], &["west", "north"]] {
            assert!(stored.save(acks(peers)).await);
            assert_eq!(Acknowledged::read(&state.join(FILE)).unwrap(), acks(peers));
        }
        std::fs::write(state.join(FILE), "{").unwrap();
        assert!(open(&east).1.keys().eq(["north", "west"]), "the store counts");
        assert!(open(&party("east", "other.example")).1.is_empty(), "of another trust domain");
        std::fs::write(state.join("trust.db"), "noise").unwrap();
        acks(&["west"]).write(&state.join(FILE)).unwrap();
        let (stored, before) = open(&east);
        assert!(before.keys().eq(["west"]), "the file counts where the store is lost");
        assert!(stored.save(acks(&["west"])).await);
        assert!(open(&east).1.keys().eq(["west"]));
        std::fs::remove_file(state.join(FILE)).unwrap();
        std::fs::create_dir(state.join(FILE)).unwrap();
        assert!(stored.save(acks(&["west"])).await, "what is in the place of the file is set aside");
        assert_eq!(Acknowledged::read(&state.join(FILE)).unwrap(), acks(&["west"]));
    }
}
