//! A store as a program uses it: it is read once, and who changes something names its key and goes on. The writing is
//! `writer`'s.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;

use crate::database::Damage;
use crate::files;
use crate::health::Health;
use crate::writer::{Old, Writer};

/// Changed keys that wait; with more of them, everything is written.
const MOST_WAITING: usize = 1 << 16;
/// Larger is no file of before.
const LARGEST_ADOPTED: u64 = 512 << 20;
/// A key with its value.
pub type Record = (String, Vec<u8>);

/// What a file of before there was a store held.
#[derive(Debug, Default)]
pub struct Adopted {
    /// What can be read of it.
    pub records: Vec<Record>,
    /// What is wrong with it, if anything is.
    pub damage: Option<String>,
}

/// What a program has to persist, as it is now. Asked by the thread that writes.
pub trait Source: Send + Sync + 'static {
    /// The keys that have a value. Each is a kind and a name, with a slash between.
    fn keys(&self) -> Vec<String>;

    /// The values under keys, in their order; none where there is none.
    fn values(&self, keys: &[String]) -> Vec<Option<Vec<u8>>>;

    /// Takes what a store held that could not be read when the program began. What the program has is newer.
    fn restore(&self, records: Vec<Record>);
}

/// A store, open or not.
#[derive(Debug)]
pub struct Persistence {
    shared: Arc<Shared>,
    beginning: Option<Writer>,
}

/// What the program and the thread that writes both know.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) health: Arc<Health>,
    waiting: Mutex<Waiting>,
    pub(crate) news: Condvar,
}

/// What is to be written.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    pub(crate) keys: BTreeSet<String>,
    /// Everything.
    pub(crate) whole: bool,
    /// Some of it is being written, or has to be and cannot.
    pub(crate) is_busy: bool,
    pub(crate) stopped: bool,
}

impl Waiting {
    /// The keys, and whether it is everything; nothing waits then.
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
    /// Opens a file of a directory, both made if they are not there, and gives what stands in it. `name` is what logs
    /// call it. Never fails: a store that cannot be used is empty until it can.
    #[must_use]
    pub fn open(name: &'static str, folder: &Path, file: &str) -> (Persistence, Vec<Record>) {
        let health = Arc::new(Health::new(name, &folder.join(file)));
        let shared = Arc::new(Shared { health, waiting: Mutex::default(), news: Condvar::new() });
        let mut writer = Writer::new(Arc::clone(&shared), folder, file);
        let records = writer.begin();
        (Persistence { shared, beginning: Some(writer) }, records)
    }

    /// Reads a file of before there was a store, and removes it once what it held is written here.
    #[must_use]
    pub fn adopt(&mut self, path: &Path, read: impl FnOnce(&[u8]) -> Adopted) -> Vec<Record> {
        let Some(writer) = &mut self.beginning else { return Vec::new() };
        let Adopted { records, damage } = match files::read(path, LARGEST_ADOPTED) {
            Ok(bytes) => read(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => Adopted { records: Vec::new(), damage: Some(error.to_string()) },
        };
        let is_damaged = damage.is_some();
        if let Some(why) = damage {
            let why = format!("{}: {why}", path.display());
            self.shared.health.is_damaged(&Damage { why, lost: BTreeSet::new() }, records.len());
        }
        writer.adopt(Old { path: path.to_owned(), is_damaged });
        records
    }

    /// Writes from now on what the source says has changed.
    pub fn begin(&mut self, source: Weak<dyn Source>) {
        let Some(writer) = self.beginning.take() else { return };
        let health = Arc::clone(&self.shared.health);
        let begun = thread::Builder::new().name("state".to_owned()).spawn(move || writer.run(&source));
        if let Err(error) = begun {
            health.is_unusable(&format!("no thread can be started: {error}"));
        }
    }

    /// The value of a key has changed, or there is none any more.
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

    /// Ends the thread, and waits for it.
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

    /// How it stands with it.
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
