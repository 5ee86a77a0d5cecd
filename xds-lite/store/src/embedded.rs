//! A [`Store`] in one database file that several processes use at once: an agent, and the commands that run beside it.
//!
//! Each call opens the file under a lock, reads and verifies it as a whole, makes its change, and closes it. So nobody has
//! the file open while another process replaces a damaged one, no process works with a file that was replaced, and
//! every read sees what the last change of any process left. It is for hundreds of small records, not for slices.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::StoreHealth;
use crate::database::{Damage, Database, Failure, Loaded};
use crate::files;
use crate::health::Health;
use crate::record;
use crate::store::{Entry, Expect, Listing, Store, StoreError, UNNAMED, Version, Watch};

/// The most records of a file.
const MOST_RECORDS: usize = 10_000;
const LOCK: &str = ".lock";

/// A store in a file. Clones are the same store.
#[derive(Clone, Debug)]
pub struct Embedded(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    file: String,
    health: Health,
    seen: Mutex<Seen>,
}

/// What this process has seen of the file.
#[derive(Debug, Default)]
struct Seen {
    is_there: bool,
    /// Lost records, which are reported once.
    lost: BTreeSet<String>,
    /// Damage that was reported, while the file cannot be replaced.
    damage: Option<String>,
}

/// The records of a file, and the keys of lost ones.
#[derive(Debug, Default)]
struct Content {
    records: BTreeMap<String, Vec<u8>>,
    lost: BTreeSet<String>,
}

/// A file under its lock.
struct Opened {
    content: Content,
    /// Why it cannot be written, if it is damaged and cannot be replaced.
    database: Result<Database, Failure>,
    _lock: File,
}

impl Embedded {
    /// The store in this file, which is created with the first call. Logs and status call it `name`.
    #[must_use]
    pub fn new(name: &'static str, folder: &Path, file: &str) -> Embedded {
        let health = Health::new(name, &folder.join(file));
        Embedded(Arc::new(Inner {
            folder: folder.to_owned(),
            file: file.to_owned(),
            health,
            seen: Mutex::default(),
        }))
    }

    /// The health of the store.
    #[must_use]
    pub fn report(&self) -> StoreHealth {
        self.0.health.report()
    }

    /// Records that the record of a key is lost, if there is none: a file of an older version is damaged.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn set_lost(&self, key: &str) -> Result<(), StoreError> {
        let opened = self.0.open()?;
        if opened.content.records.contains_key(key) || opened.content.lost.contains(key) {
            return Ok(());
        }
        self.0.change(opened, |database| database.mark_lost([key]))
    }
}

impl Store for Embedded {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let mut content = self.0.open()?.content;
        match content.records.remove_entry(key) {
            Some((key, value)) => Ok(Some(entry(key, value))),
            None if content.lost.contains(key) => Err(StoreError::Lost(key.to_owned())),
            None => Ok(None),
        }
    }

    fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let Content { records, lost } = self.0.open()?.content;
        let is_in = |key: &str| key.starts_with(prefix);
        Ok(Listing {
            entries: records
                .into_iter()
                .filter(|(key, _)| is_in(key))
                .map(|(key, value)| entry(key, value))
                .collect(),
            lost: lost.into_iter().filter(|key| is_in(key) || key == UNNAMED).collect(),
        })
    }

    fn put(&self, key: &str, value: &[u8], expect: Expect<'_>) -> Result<Version, StoreError> {
        if !key.contains('/') || key.contains(char::is_control) || !record::fits(key, value) {
            let limits = "a key is KIND/NAME of at most 900 bytes, a value at most 512 KiB";
            return Err(StoreError::Invalid(record::escaped(key.as_bytes()), limits));
        }
        let opened = self.0.open()?;
        opened.content.check(key, expect)?;
        if opened.content.records.len() >= MOST_RECORDS && !opened.content.records.contains_key(key) {
            return Err(StoreError::Full(MOST_RECORDS));
        }
        self.0.change(opened, |database| database.write(&[(key.to_owned(), Some(value.to_vec()))]))?;
        Ok(version(key, value))
    }

    fn remove(&self, key: &str, expect: Expect<'_>) -> Result<(), StoreError> {
        let opened = self.0.open()?;
        opened.content.check(key, expect)?;
        if !opened.content.records.contains_key(key) && !opened.content.lost.contains(key) {
            return Ok(());
        }
        self.0.change(opened, |database| database.write(&[(key.to_owned(), None)]))
    }

    fn watch(&self, prefix: &str) -> Box<dyn Watch> {
        Box::new(Changes { store: self.clone(), prefix: prefix.to_owned(), last: None })
    }
}

impl Content {
    fn check(&self, key: &str, expect: Expect<'_>) -> Result<(), StoreError> {
        let (value, is_lost) = (self.records.get(key), self.lost.contains(key));
        let is_so = match expect {
            Expect::Anything => true,
            Expect::Absent => value.is_none() && !is_lost,
            Expect::Lost => is_lost,
            Expect::Version(expected) => value.is_some_and(|value| version(key, value) == *expected),
        };
        if is_so { Ok(()) } else { Err(StoreError::Conflict(record::escaped(key.as_bytes()))) }
    }
}

fn entry(key: String, value: Vec<u8>) -> Entry {
    let version = version(&key, &value);
    Entry { key, value, version }
}

fn version(key: &str, value: &[u8]) -> Version {
    Version::new(&record::checksum(key, value))
}

impl Inner {
    fn open(&self) -> Result<Opened, StoreError> {
        let opened = self.try_open();
        match &opened {
            Ok(Opened { database: Ok(_), .. }) => self.health.is_usable(),
            Ok(Opened { database: Err(failure), .. }) | Err(failure) => {
                self.health.is_unusable(&failure.to_string());
            }
        }
        opened.map_err(|failure| self.unusable(&failure))
    }

    fn try_open(&self) -> Result<Opened, Failure> {
        let folder = files::private_folder(&self.folder)?;
        let path = folder.join(&self.file);
        let lock = files::lock(&files::beside(&path, LOCK))?;
        self.create(&path)?;
        let (database, Loaded { records, lost, damage, aside }) = Database::open(&path)?;
        let mut content = Content { records: records.into_iter().collect(), lost };
        if !aside.is_empty() {
            self.set_aside("the place of its journal was taken by something that is not a file", &aside);
        }
        let database = match (database, damage) {
            (Some(database), _) => Ok(database),
            (None, damage) => {
                let damage = damage.unwrap_or_default();
                content.lost.extend(damage.lost);
                if damage.is_unnamed {
                    content.lost.insert(UNNAMED.to_owned());
                }
                self.replace(&path, &content, &damage.why)
            }
        };
        self.report_lost(&content);
        Ok(Opened { content, database, _lock: lock })
    }

    /// Creates a missing file, at once with what is known of it.
    fn create(&self, path: &Path) -> Result<(), Failure> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let why = match files::facts(path)? {
            Some(facts) if facts.is_file() => None,
            Some(_) => Some("its place was taken by something that is not a file"),
            None if seen.is_there => Some("the file was removed; writing it again"),
            None => {
                Database::replace(path, |_| Ok(()))?;
                None
            }
        };
        if let Some(why) = why {
            let aside = Database::replace(path, |database| database.mark_lost([UNNAMED]))?.aside;
            self.set_aside(why, &aside);
        }
        seen.is_there = true;
        Ok(())
    }

    /// Replaces a damaged file by one with what could be read of it.
    fn replace(&self, path: &Path, content: &Content, why: &str) -> Result<Database, Failure> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.damage.as_deref() != Some(why) {
            self.health.is_damaged(&Damage::of_file(why.to_owned()), content.records.len());
            seen.damage = Some(why.to_owned());
        }
        let changes: Vec<_> =
            content.records.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
        let replaced = Database::replace(path, |database| {
            database.write(&changes)?;
            database.mark_lost(content.lost.iter().map(String::as_str))
        })?;
        replaced.aside.iter().for_each(|aside| self.health.is_aside(aside));
        seen.damage = None;
        Ok(replaced.database)
    }

    fn set_aside(&self, why: &str, aside: &[PathBuf]) {
        self.health.is_damaged(&Damage::of_file(why.to_owned()), 0);
        aside.iter().for_each(|aside| self.health.is_aside(aside));
    }

    /// Names each lost record once, whichever process has found the damage.
    fn report_lost(&self, content: &Content) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.lost.retain(|key| content.lost.contains(key));
        let news: BTreeSet<_> = content.lost.difference(&seen.lost).cloned().collect();
        if !news.is_empty() {
            self.health.are_lost(&news);
            seen.lost.extend(news);
        }
    }

    fn change(
        &self,
        opened: Opened,
        work: impl FnOnce(&mut Database) -> Result<(), Failure>,
    ) -> Result<(), StoreError> {
        let changed = opened.database.and_then(|mut database| work(&mut database));
        changed.map_err(|failure| {
            self.health.is_unusable(&failure.to_string());
            self.unusable(&failure)
        })
    }

    fn unusable(&self, failure: &Failure) -> StoreError {
        StoreError::Unusable(format!("{}: {failure}", self.folder.join(&self.file).display()))
    }
}

/// Compares each reading with the last one.
#[derive(Debug)]
struct Changes {
    store: Embedded,
    prefix: String,
    last: Option<Listing>,
}

impl Watch for Changes {
    fn poll(&mut self) -> Result<Option<Listing>, StoreError> {
        let now = self.store.list(&self.prefix)?;
        if self.last.as_ref() == Some(&now) {
            return Ok(None);
        }
        self.last = Some(now.clone());
        Ok(Some(now))
    }
}
