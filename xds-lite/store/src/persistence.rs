//! The interface of a store: a program reads it once, and reports the key of each change without waiting. `writer` does
//! the writing.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;

use crate::database::Damage;
use crate::files;
use crate::health::Health;
use crate::writer::{Old, Writer};

/// The most changed keys that wait; beyond that, everything is written.
const MOST_WAITING: usize = 1 << 16;
/// No file of an older version is larger.
const LARGEST_ADOPTED: u64 = 512 << 20;
/// A key with its value.
pub type Record = (String, Vec<u8>);

/// The content of a file of an older version.
#[derive(Debug, Default)]
pub struct Adopted {
    /// The readable records.
    pub records: Vec<Record>,
    /// What is damaged, if anything.
    pub damage: Option<String>,
}

/// The current state of a program, read by the writer thread.
pub trait Source: Send + Sync + 'static {
    /// All keys with a value. A key is a kind and a name, separated by a slash.
    fn keys(&self) -> Vec<String>;

    /// The values of keys, in their order; `None` for a key without value.
    fn values(&self, keys: &[String]) -> Vec<Option<Vec<u8>>>;

    /// Receives the records of a store that was not readable when the program started. The state of the program is
    /// newer.
    fn restore(&self, records: Vec<Record>);
}

/// A store, which may not be usable yet.
#[derive(Debug)]
pub struct Persistence {
    shared: Arc<Shared>,
    writer: Option<Writer>,
}

/// State shared by the program and the writer thread.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) health: Arc<Health>,
    waiting: Mutex<Waiting>,
    pub(crate) news: Condvar,
}

/// The changes to write.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    pub(crate) keys: BTreeSet<String>,
    /// Write everything.
    pub(crate) whole: bool,
    /// Changes are being written, or cannot be written yet.
    pub(crate) is_busy: bool,
    pub(crate) stopped: bool,
}

impl Waiting {
    /// Takes the waiting keys, and whether everything is to be written.
    pub(crate) fn take(&mut self) -> (BTreeSet<String>, bool) {
        (std::mem::take(&mut self.keys), std::mem::take(&mut self.whole))
    }
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Persistence {
    /// Opens a file in a directory, creating both if missing, and returns its records. Logs call the store `name`.
    /// Never fails: an unusable store is empty until it becomes usable.
    #[must_use]
    pub fn open(name: &'static str, folder: &Path, file: &str) -> (Persistence, Vec<Record>) {
        let health = Arc::new(Health::new(name, &folder.join(file)));
        let shared = Arc::new(Shared { health, waiting: Mutex::default(), news: Condvar::new() });
        let mut writer = Writer::new(Arc::clone(&shared), folder, file);
        let records = writer.begin();
        (Persistence { shared, writer: Some(writer) }, records)
    }

    /// Imports a file of an older version, and removes it once its records are written to the store.
    #[must_use]
    pub fn adopt(&mut self, path: &Path, read: impl FnOnce(&[u8]) -> Adopted) -> Vec<Record> {
        let Some(writer) = &mut self.writer else { return Vec::new() };
        let Adopted { records, damage } = match files::read(path, LARGEST_ADOPTED) {
            Ok(bytes) => read(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => Adopted { records: Vec::new(), damage: Some(error.to_string()) },
        };
        let is_damaged = damage.is_some();
        if let Some(why) = damage {
            let why = format!("{}: {why}", path.display());
            self.shared.health.is_damaged(&Damage::of_file(why), records.len());
        }
        writer.adopt(Old { path: path.to_owned(), is_damaged });
        records
    }

    /// Whether the records from before the start have been read. Otherwise the source receives them later.
    #[must_use]
    pub fn was_read(&self) -> bool {
        self.writer.as_ref().is_none_or(Writer::was_read)
    }

    /// Starts the writer thread, which writes changes of the source from now on.
    pub fn begin(&mut self, source: Weak<dyn Source>) {
        let Some(writer) = self.writer.take() else { return };
        let health = Arc::clone(&self.shared.health);
        let begun = thread::Builder::new().name("state".to_owned()).spawn(move || writer.run(&source));
        if let Err(error) = begun {
            health.is_unusable(&format!("cannot start the writer thread: {error}"));
        }
    }

    /// Reports that the value of a key has changed or is gone.
    pub fn changed(&self, key: String) {
        let mut waiting = self.shared.lock();
        if !waiting.whole {
            waiting.keys.insert(key);
        }
        if waiting.keys.len() > MOST_WAITING {
            waiting.keys.clear();
            waiting.whole = true;
        }
        self.shared.health.is_behind(true);
        self.shared.news.notify_one();
    }

    /// Whether everything is written.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        let waiting = self.shared.lock();
        waiting.keys.is_empty() && !waiting.whole && !waiting.is_busy
    }

    /// Stops the writer thread and waits for it.
    #[cfg(test)]
    pub(crate) fn stop(self) {
        let health = self.health();
        let shared = Arc::downgrade(&self.shared);
        drop(self);
        while shared.strong_count() > 0 {
            thread::yield_now();
        }
        drop(health);
    }

    /// The health of the store.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.shared.health)
    }
}

impl Drop for Persistence {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.news.notify_one();
    }
}
