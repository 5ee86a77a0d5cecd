//! The thread that writes a store, in batches, so that a program never waits for the disk. A failure of the disk is
//! reported once, and everything is written when the disk works again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::database::{Damage, Database, Failure, Loaded};
use crate::files;
use crate::health::Health;
use crate::persistence::{Record, Shared, Source};
use crate::record;

/// The first and the longest pause before a retry; it doubles each time.
const SOONEST: Duration = Duration::from_millis(250);
const LATEST: Duration = Duration::from_secs(5);
/// The most keys of one transaction.
const BATCH_KEYS: usize = 512;

/// The writer thread of a store.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    folder: PathBuf,
    file: String,
    stage: Stage,
    /// The program has received the records that were there when it started.
    was_read: bool,
    adopted: Vec<Old>,
}

#[derive(Debug)]
pub(crate) enum Stage {
    Closed,
    /// The file is damaged and must be replaced.
    Damaged,
    Open(Database),
}

/// A file of an older version, removed once everything is written.
#[derive(Debug)]
pub(crate) struct Old {
    pub(crate) path: PathBuf,
    pub(crate) is_damaged: bool,
}

impl Writer {
    /// Makes a writer without an open file.
    pub(crate) fn new(shared: Arc<Shared>, folder: &Path, file: &str) -> Writer {
        Writer {
            shared,
            folder: folder.to_owned(),
            file: file.to_owned(),
            stage: Stage::Closed,
            was_read: false,
            adopted: Vec::new(),
        }
    }

    /// Opens the file if possible, and returns its records.
    pub(crate) fn begin(&mut self) -> Vec<Record> {
        let records = self.open().unwrap_or_else(|failure| {
            self.fail(&failure);
            Vec::new()
        });
        self.shared.lock().is_busy = !matches!(self.stage, Stage::Open(_));
        records
    }

    /// Whether the records from before the start have been read.
    pub(crate) fn was_read(&self) -> bool {
        self.was_read
    }

    /// Removes this file once everything is written.
    pub(crate) fn adopt(&mut self, old: Old) {
        self.adopted.push(old);
        self.shared.lock().whole = true;
    }

    pub(crate) fn run(mut self, source: &Weak<dyn Source>) {
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

    /// Waits for changes, or after a failure for the time of the retry. Returns whether to continue.
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

    /// Opens the file and returns its records.
    fn open(&mut self) -> Result<Vec<Record>, Failure> {
        let folder = files::private_folder(&self.folder);
        self.folder = folder.map_err(|error| Failure::Unusable(error.to_string()))?;
        let (database, Loaded { records, damage, aside, .. }) = Database::open(&self.path())?;
        for path in &aside {
            let why = "its place was taken by something that is not a file".to_owned();
            self.shared.health.is_damaged(&Damage::of_file(why), 0);
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
            let why = "the file was removed or replaced; writing it again".to_owned();
            self.shared.health.is_damaged(&Damage::of_file(why), 0);
            self.stage = Stage::Damaged;
        }
        if matches!(self.stage, Stage::Damaged) {
            self.replace(source)?;
        }
        self.write(source)?;
        self.shared.health.is_usable();
        Ok(())
    }

    /// Replaces a damaged file by one with the whole state of the program.
    fn replace(&mut self, source: &dyn Source) -> Result<(), Failure> {
        // Changes from here on are written later.
        self.shared.lock().take();
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

    /// Writes the waiting changes.
    fn write(&mut self, source: &dyn Source) -> Result<(), Failure> {
        let Stage::Open(database) = &mut self.stage else { return Ok(()) };
        let (keys, whole) = self.shared.lock().take();
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

    /// Removes imported files, whose records are now in the store.
    fn forget_adopted(&mut self) {
        for Old { path, is_damaged } in self.adopted.drain(..) {
            let gone = if is_damaged {
                files::set_aside(&path).map(|aside| self.shared.health.is_aside(&aside))
            } else {
                fs::remove_file(&path)
            };
            if let Err(error) = gone {
                tracing::warn!(file = %path.display(), %error, "cannot remove an imported state file of an older version; remove it");
            }
        }
    }

    fn fail(&mut self, failure: &Failure) {
        match failure {
            Failure::Damaged(why) => {
                self.shared.health.is_damaged(&Damage::of_file(why.clone()), 0);
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

/// Writes the current values of these keys, in transactions of bounded size.
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
