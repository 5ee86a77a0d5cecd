//! A store as a program uses it: what changes is written by a thread of its own, in batches, and a program never waits
//! for it. State is a help and never a condition: where the disk does not do its part the program runs on, it is said
//! once, and everything is written once the disk is back.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::database::{Damage, Database, Failure, Loaded};
use crate::files;
use crate::health::Health;
use crate::record;

/// What failed is tried again after this, and later each time up to the longest.
const SOONEST: Duration = Duration::from_millis(250);
const LATEST: Duration = Duration::from_secs(5);
/// Changed keys that wait; with more of them, everything is written.
const MOST_WAITING: usize = 1 << 16;
/// Larger is no file of before.
const LARGEST_ADOPTED: u64 = 512 << 20;
/// Keys of one transaction.
const BATCH_KEYS: usize = 512;

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

#[derive(Debug)]
struct Shared {
    health: Arc<Health>,
    waiting: Mutex<Waiting>,
    news: Condvar,
}

/// What is to be written.
#[derive(Debug, Default)]
struct Waiting {
    keys: BTreeSet<String>,
    /// Everything.
    whole: bool,
    /// Some of it is being written, or has to be and cannot.
    is_busy: bool,
    stopped: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
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
        let mut writer = Writer {
            shared: Arc::clone(&shared),
            folder: folder.to_owned(),
            file: file.to_owned(),
            stage: Stage::Closed,
            was_read: false,
            adopted: Vec::new(),
        };
        let records = match writer.open() {
            Ok(records) => records,
            Err(failure) => {
                writer.fail(&failure);
                Vec::new()
            }
        };
        shared.lock().is_busy = !matches!(writer.stage, Stage::Open(_));
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
        writer.adopted.push(Old { path: path.to_owned(), is_damaged });
        self.shared.lock().whole = true;
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

/// The thread that writes.
#[derive(Debug)]
struct Writer {
    shared: Arc<Shared>,
    folder: PathBuf,
    file: String,
    stage: Stage,
    /// What stood there when the program began is known to it.
    was_read: bool,
    adopted: Vec<Old>,
}

#[derive(Debug)]
enum Stage {
    Closed,
    /// What is there is not what was written; another file is to be put in its place.
    Damaged,
    Open(Database),
}

/// A file of before, which goes once all is written.
#[derive(Debug)]
struct Old {
    path: PathBuf,
    is_damaged: bool,
}

impl Writer {
    fn run(mut self, source: &Weak<dyn Source>) {
        let mut pause = SOONEST;
        let mut failed = self.shared.health.report().problem.map(|_| Instant::now());
        while self.wait(failed.map(|at| at + pause)) {
            let Some(source) = source.upgrade() else { return };
            match self.step(&*source) {
                Ok(()) => {
                    let mut waiting = self.shared.lock();
                    waiting.is_busy = false;
                    self.shared.health.is_behind(waiting.whole || !waiting.keys.is_empty());
                    (failed, pause) = (None, SOONEST);
                }
                Err(failure) => {
                    pause = if failed.is_some() { (pause * 2).min(LATEST) } else { SOONEST };
                    failed = Some(Instant::now());
                    self.fail(&failure);
                }
            }
        }
    }

    /// Waits for something to do; after a failure until it may be tried again. Says whether to go on.
    fn wait(&self, until: Option<Instant>) -> bool {
        let mut waiting = self.shared.lock();
        loop {
            waiting.is_busy |= until.is_some() || matches!(self.stage, Stage::Damaged);
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let is_idle = waiting.keys.is_empty() && !waiting.whole && !matches!(self.stage, Stage::Damaged);
            waiting = match left {
                _ if waiting.stopped => return false,
                Some(Duration::ZERO) => {
                    waiting.is_busy = true;
                    return true;
                }
                Some(left) => {
                    self.shared.news.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None if is_idle => self.shared.news.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                None => {
                    waiting.is_busy = true;
                    return true;
                }
            };
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(&self.file)
    }

    /// Opens the file, and gives what stands in it.
    fn open(&mut self) -> Result<Vec<Record>, Failure> {
        let folder = files::private_folder(&self.folder);
        self.folder = folder.map_err(|error| Failure::Unusable(error.to_string()))?;
        let (database, Loaded { records, damage, aside }) = Database::open(&self.path())?;
        for path in &aside {
            let why = "something else than a file was in its place".to_owned();
            self.shared.health.is_damaged(&Damage { why, lost: BTreeSet::new() }, 0);
            self.shared.health.is_aside(path);
        }
        if let Some(damage) = damage {
            self.shared.health.is_damaged(&damage, records.len());
        }
        self.stage = database.map_or(Stage::Damaged, Stage::Open);
        if matches!(self.stage, Stage::Open(_)) {
            self.shared.health.is_usable();
        }
        self.was_read = true;
        Ok(records)
    }

    fn step(&mut self, source: &dyn Source) -> Result<(), Failure> {
        if matches!(self.stage, Stage::Closed) {
            let was_read = self.was_read;
            let records = self.open()?;
            if !was_read {
                source.restore(records);
            }
            self.shared.lock().whole = true;
        }
        if let Stage::Open(database) = &self.stage
            && !database.is_in_place()
        {
            let why = "the file was removed or replaced; writing it anew".to_owned();
            self.shared.health.is_damaged(&Damage { why, lost: BTreeSet::new() }, 0);
            self.stage = Stage::Damaged;
        }
        if matches!(self.stage, Stage::Damaged) {
            self.replace(source)?;
        }
        self.write(source)?;
        self.shared.health.is_usable();
        Ok(())
    }

    /// Puts another file in the place of a damaged one, with everything that there is.
    fn replace(&mut self, source: &dyn Source) -> Result<(), Failure> {
        // What changes from here on is written later.
        {
            let mut waiting = self.shared.lock();
            waiting.keys.clear();
            waiting.whole = false;
        }
        let health = Arc::clone(&self.shared.health);
        let replaced =
            Database::replace(&self.path(), |database| write_all(database, source.keys(), source, &health));
        match replaced {
            Ok(replaced) => {
                replaced.aside.iter().for_each(|path| self.shared.health.is_aside(path));
                self.stage = Stage::Open(replaced.database);
                self.forget_adopted();
                Ok(())
            }
            Err(failure) => {
                self.shared.lock().whole = true;
                Err(failure)
            }
        }
    }

    /// Writes what waits.
    fn write(&mut self, source: &dyn Source) -> Result<(), Failure> {
        let Stage::Open(database) = &mut self.stage else { return Ok(()) };
        let (keys, whole) = {
            let mut waiting = self.shared.lock();
            (std::mem::take(&mut waiting.keys), std::mem::take(&mut waiting.whole))
        };
        let written = if whole {
            let known = database.keys();
            known.and_then(|mut keys| {
                keys.extend(source.keys());
                write_all(database, keys.into_iter().collect(), source, &self.shared.health)
            })
        } else {
            write_all(database, keys.iter().cloned().collect(), source, &self.shared.health)
        };
        if written.is_err() {
            let mut waiting = self.shared.lock();
            waiting.whole |= whole;
            waiting.keys.extend(keys);
        } else if whole {
            self.forget_adopted();
        }
        written
    }

    /// What was taken over stands here now.
    fn forget_adopted(&mut self) {
        for Old { path, is_damaged } in self.adopted.drain(..) {
            let gone = if is_damaged {
                files::set_aside(&path).map(|aside| self.shared.health.is_aside(&aside))
            } else {
                fs::remove_file(&path)
            };
            if let Err(error) = gone {
                tracing::warn!(file = %path.display(), %error, "cannot remove a state file that was taken over");
            }
        }
    }

    fn fail(&mut self, failure: &Failure) {
        match failure {
            Failure::Damaged(why) => {
                self.shared.health.is_damaged(&Damage { why: why.clone(), lost: BTreeSet::new() }, 0);
                self.stage = Stage::Damaged;
            }
            Failure::Unusable(why) => {
                self.shared.health.is_unusable(why);
                if matches!(self.stage, Stage::Open(_)) {
                    self.stage = Stage::Closed;
                }
            }
        }
    }
}

/// Writes what the source has under these keys, in transactions of bounded size.
fn write_all(
    database: &mut Database,
    keys: Vec<String>,
    source: &dyn Source,
    health: &Health,
) -> Result<(), Failure> {
    for keys in keys.chunks(BATCH_KEYS) {
        let values = source.values(keys);
        let fitting = |(key, value): (&String, Option<Vec<u8>>)| {
            let value = value.filter(|value| {
                let fits = record::fits(key, value);
                if !fits {
                    health.is_too_large(key);
                }
                fits
            });
            (key.clone(), value)
        };
        let changes: Vec<_> = keys.iter().zip(values).map(fitting).collect();
        database.write(&changes)?;
    }
    Ok(())
}
