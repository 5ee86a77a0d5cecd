//! Persists the agent's slices (its own and its peers') and VM registrations for a restart, in two stores of
//! `isthmus_store`. Without a usable store the agent serves all the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use isthmus_store::{Adopted, Health, Persistence, Record, Source, journal};

use isthmus_model::slice::{Cluster, Key, Slice};
use isthmus_registry::registered::records;

use super::own_services::OwnServices;
use super::peers::Peers;

/// The files in the state directory.
const SLICES: &str = "slices.db";
const REGISTRATIONS: &str = "registrations.db";
/// The files of earlier versions, which are adopted.
const OWN_JOURNAL: &str = "own.slices";
const IMPORTS: &str = "imports";
const JOURNAL_SUFFIX: &str = ".slices";
const REGISTERED: &str = "registered.json";
/// Journals of clusters that are adopted, at most.
const MOST_JOURNALS: usize = 10_000;
/// Key prefixes of records.
const OWN: &str = "own/";
const IMPORT: &str = "import/";

/// Milliseconds since 1970: higher than any before, unless a clock was set back and nothing was persisted.
pub(super) fn incarnation() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// The key of an own slice.
pub(super) fn own(key: &Key) -> String {
    format!("{OWN}{key}")
}

/// The key of a peer's slice, by its name.
pub(super) fn import(from: &Cluster, name: &str) -> String {
    format!("{IMPORT}{from}/{name}")
}

/// Persisted slices.
#[derive(Debug, Default)]
pub(super) struct Slices {
    pub(super) own: Vec<Slice>,
    /// Encoded slices by peer and name.
    pub(super) imports: BTreeMap<Cluster, BTreeMap<String, Vec<u8>>>,
}

impl Slices {
    /// Reads records; invalid ones are logged and ignored.
    pub(super) fn read(records: impl IntoIterator<Item = Record>) -> Slices {
        let mut slices = Slices::default();
        for (key, bytes) in records {
            if let Some((from, name)) = key.strip_prefix(IMPORT).and_then(of_peer) {
                slices.imports.entry(from).or_default().insert(name.to_owned(), bytes);
                continue;
            }
            match Slice::decode(&bytes) {
                Ok(slice) if own(&slice.key) == key => slices.own.push(slice),
                Ok(_) => tracing::warn!(record = ?key, "ignoring a persisted slice under another name"),
                Err(why) => tracing::warn!(record = ?key, %why, "ignoring an invalid persisted slice"),
            }
        }
        slices
    }
}

fn of_peer(key: &str) -> Option<(Cluster, &str)> {
    let (from, name) = key.split_once('/')?;
    Some((from.parse().ok()?, name))
}

/// Both stores of an agent with a state directory.
#[derive(Debug)]
pub(super) struct Stores {
    slices: Persistence,
    registrations: Persistence,
}

/// Both stores, and their content.
pub(super) struct Opened {
    pub(super) stores: Stores,
    pub(super) slices: Slices,
    pub(super) registrations: Vec<Record>,
    /// The registrations could be read.
    pub(super) has_registrations: bool,
}

impl Stores {
    /// Opens both, and adopts the files of earlier versions.
    pub(super) fn open(folder: &Path) -> Opened {
        let (mut slices, records) = Persistence::open("slices", folder, SLICES);
        let mut before = slices.adopt(&folder.join(OWN_JOURNAL), journal);
        before.iter_mut().for_each(|(name, _)| name.insert_str(0, OWN));
        for (from, file) in journals(&folder.join(IMPORTS)) {
            let imported = slices.adopt(&folder.join(IMPORTS).join(file), journal);
            before.extend(imported.into_iter().map(|(name, bytes)| (import(&from, &name), bytes)));
        }
        let (mut registrations, registered) = Persistence::open("registrations", folder, REGISTRATIONS);
        let mut all = registrations.adopt(&folder.join(REGISTERED), |bytes| {
            let (records, damage) = records::of_before(bytes);
            Adopted { records, damage }
        });
        all.extend(registered);
        let mut merged: BTreeMap<_, _> = before.into_iter().collect();
        merged.extend(records);
        let has_registrations = registrations.was_read();
        let stores = Stores { slices, registrations };
        Opened { stores, slices: Slices::read(merged), registrations: all, has_registrations }
    }

    /// Begins to persist changes, for as long as the returned sources live.
    pub(super) fn begin(&mut self, own: &Arc<OwnServices>, peers: &Arc<Peers>) -> [Arc<dyn Source>; 2] {
        let slices = Arc::new(OfSlices { own: Arc::clone(own), peers: Arc::clone(peers) });
        let registrations = Arc::new(OfRegistrations(Arc::clone(own)));
        self.slices.begin(Arc::<OfSlices>::downgrade(&slices));
        self.registrations.begin(Arc::<OfRegistrations>::downgrade(&registrations));
        [slices, registrations]
    }

    /// A slice has changed, or is gone.
    pub(super) fn slice_changed(&self, key: String) {
        self.slices.changed(key);
    }

    /// A registration has changed, or is gone.
    pub(super) fn registration_changed(&self, key: String) {
        self.registrations.changed(key);
    }

    /// The health of both.
    pub(super) fn health(&self) -> [Arc<Health>; 2] {
        [self.slices.health(), self.registrations.health()]
    }
}

/// Journals of peers' slices, as earlier versions wrote them.
fn journals(folder: &Path) -> Vec<(Cluster, String)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let names = entries.take(MOST_JOURNALS).filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let cluster = |name: &str| name.strip_suffix(JOURNAL_SUFFIX)?.parse().ok();
    names.filter_map(|name| Some((cluster(&name)?, name))).collect()
}

struct OfSlices {
    own: Arc<OwnServices>,
    peers: Arc<Peers>,
}

impl Source for OfSlices {
    fn keys(&self) -> Vec<String> {
        self.own.slice_keys().iter().map(own).chain(self.peers.slice_keys()).collect()
    }

    fn values(&self, keys: &[String]) -> Vec<Option<Vec<u8>>> {
        let value = |key: &String| {
            if let Some(name) = key.strip_prefix(OWN) {
                return Some(self.own.published(&name.parse::<Key>().ok()?.host)?.encode());
            }
            let (from, name) = key.strip_prefix(IMPORT).and_then(of_peer)?;
            self.peers.to_persist(&from, name)
        };
        keys.iter().map(value).collect()
    }

    fn restore(&self, records: Vec<Record>) {
        self.peers.lay_by(Slices::read(records).imports);
    }
}

struct OfRegistrations(Arc<OwnServices>);

impl Source for OfRegistrations {
    fn keys(&self) -> Vec<String> {
        self.0.registration_keys()
    }

    fn values(&self, keys: &[String]) -> Vec<Option<Vec<u8>>> {
        self.0.registration_records(keys)
    }

    fn restore(&self, records: Vec<Record>) {
        self.0.restore_registrations(records, Instant::now());
        self.0.set_registrations_known(Instant::now());
    }
}
