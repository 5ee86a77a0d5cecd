//! Stores what is allotted: the names in [`SHARDS`] records, so that a change writes a small part of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use isthmus_model::allotment::Stored;
use isthmus_model::host::HostName;
use isthmus_model::port_allotment::HostPort;
use isthmus_model::virtual_address::StoredAddresses;
use isthmus_store::{Expect, Store, StoreError, UNNAMED, Version};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const KIND: &str = "names/";
/// The number of records.
const SHARDS: u8 = 16;

/// All that is allotted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Allotted {
    pub(super) addresses: StoredAddresses,
    pub(super) ports: Vec<Stored<HostPort, u16>>,
}

/// The records of a store, as this process has seen them last.
#[derive(Debug)]
pub(super) struct Shards {
    store: Arc<dyn Store>,
    known: BTreeMap<u8, Known>,
}

#[derive(Debug)]
enum Known {
    /// It has this version, and content of this hash.
    Version(Version, [u8; 32]),
    /// It was damaged.
    Lost,
}

impl Shards {
    pub(super) fn new(store: Arc<dyn Store>) -> Shards {
        Shards { store, known: BTreeMap::new() }
    }

    /// Reads all records. Invalid ones are logged and ignored, and written again.
    pub(super) fn load(&mut self) -> Result<Allotted, StoreError> {
        let listing = self.store.list(KIND)?;
        let mut known = BTreeMap::new();
        let mut all = Allotted::default();
        for entry in listing.entries {
            let Some(shard) = shard_of_key(&entry.key) else { continue };
            known.insert(shard, Known::Version(entry.version, hash(&entry.value)));
            match serde_json::from_slice::<Allotted>(&entry.value) {
                Ok(part) => all.extend(part),
                Err(why) => {
                    tracing::error!(record = ?entry.key, %why, "ignoring an invalid record of allotted addresses");
                }
            }
        }
        for key in listing.lost.iter().filter(|key| *key != UNNAMED) {
            known.extend(shard_of_key(key).map(|shard| (shard, Known::Lost)));
        }
        self.known = known;
        Ok(all)
    }

    /// Writes the records that have changed.
    ///
    /// # Errors
    /// [`StoreError::Conflict`]: another process has written meanwhile, and all is to be loaded again.
    pub(super) fn save(&mut self, all: &Allotted) -> Result<(), StoreError> {
        let mut parts: BTreeMap<u8, Allotted> = BTreeMap::new();
        for stored in &all.addresses.v6 {
            parts.entry(shard_of(&stored.name)).or_default().addresses.v6.push(stored.clone());
        }
        for stored in &all.addresses.v4 {
            parts.entry(shard_of(&stored.name)).or_default().addresses.v4.push(stored.clone());
        }
        for stored in &all.ports {
            parts.entry(shard_of(&stored.name.host)).or_default().ports.push(stored.clone());
        }
        for shard in 0..SHARDS {
            match parts.get(&shard) {
                Some(part) => self.write(shard, part)?,
                None => self.remove(shard)?,
            }
        }
        Ok(())
    }

    fn write(&mut self, shard: u8, part: &Allotted) -> Result<(), StoreError> {
        let value = serde_json::to_vec(part).map_err(|error| StoreError::Unusable(error.to_string()))?;
        let new = hash(&value);
        if matches!(self.known.get(&shard), Some(Known::Version(_, hash)) if *hash == new) {
            return Ok(());
        }
        let version = self.store.put(&key(shard), &value, self.expect(shard))?;
        self.known.insert(shard, Known::Version(version, new));
        Ok(())
    }

    fn remove(&mut self, shard: u8) -> Result<(), StoreError> {
        if self.known.contains_key(&shard) {
            self.store.remove(&key(shard), self.expect(shard))?;
            self.known.remove(&shard);
        }
        Ok(())
    }

    fn expect(&self, shard: u8) -> Expect<'_> {
        match self.known.get(&shard) {
            None => Expect::Absent,
            Some(Known::Lost) => Expect::Lost,
            Some(Known::Version(version, _)) => Expect::Version(version),
        }
    }
}

impl Allotted {
    fn extend(&mut self, other: Allotted) {
        self.addresses.v6.extend(other.addresses.v6);
        self.addresses.v4.extend(other.addresses.v4);
        self.ports.extend(other.ports);
    }
}

fn key(shard: u8) -> String {
    format!("{KIND}{shard:02}")
}

fn shard_of_key(key: &str) -> Option<u8> {
    key.strip_prefix(KIND)?.parse().ok().filter(|shard| *shard < SHARDS)
}

fn shard_of(name: &HostName) -> u8 {
    hash(name.as_str().as_bytes()).first().map_or(0, |byte| byte % SHARDS)
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
