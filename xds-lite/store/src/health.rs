//! The health of a store: whether it is usable, and what was found damaged. Logged when it changes; available to status
//! and metrics at any time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use isthmus_model::admin::StoreHealth;

use crate::database::Damage;
use crate::record::escaped;
use crate::store::UNNAMED;

/// The most lost records named in status; all are counted.
const NAMED: usize = 20;
/// The most lost records of one damaged file named in the log.
const LOGGED: usize = 200;

/// The most damaged files that stay in place and are remembered, so that each counts once.
const KNOWN: usize = 1_000;

/// The health of a store.
#[derive(Debug)]
pub struct Health {
    name: &'static str,
    file: PathBuf,
    report: Mutex<StoreHealth>,
    /// Damaged files that stay in place, with their damage.
    known: Mutex<BTreeSet<String>>,
}

impl Health {
    pub(crate) fn new(name: &'static str, file: &Path) -> Health {
        let report = StoreHealth {
            store: name.to_owned(),
            file: file.display().to_string(),
            ..StoreHealth::default()
        };
        Health { name, file: file.to_owned(), report: Mutex::new(report), known: Mutex::default() }
    }

    /// The health of a directory of files with one record each, or of one such file.
    #[must_use]
    pub fn for_files(name: &'static str, path: &Path) -> Health {
        let health = Health::new(name, path);
        health.lock().usable = true;
        health
    }

    /// The name of the store.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The current health.
    #[must_use]
    pub fn report(&self) -> StoreHealth {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, StoreHealth> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports whether changes are waiting to be written.
    pub fn is_behind(&self, behind: bool) {
        self.lock().behind = behind;
    }

    /// Reports that changes are written, or can be.
    pub fn is_usable(&self) {
        let mut report = self.lock();
        if report.problem.take().is_some() {
            tracing::info!(store = self.name, file = %self.file.display(), "persisting state again");
        }
        report.usable = true;
    }

    /// Reports that changes cannot be written, and why.
    pub fn is_unusable(&self, why: &str) {
        let mut report = self.lock();
        report.usable = false;
        if report.problem.as_deref() != Some(why) {
            tracing::error!(
                store = self.name, file = %self.file.display(), why,
                "cannot persist state; continuing without it and retrying; free disk space or fix permissions"
            );
        }
        report.problem = Some(why.to_owned());
    }

    /// Reports a damaged file: `read` records were recovered; those in `damage` are lost.
    pub(crate) fn is_damaged(&self, damage: &Damage, read: usize) {
        tracing::error!(
            store = self.name, file = %self.file.display(), why = damage.why, read, lost = damage.lost.len(),
            "the state file is damaged; using what can be read"
        );
        let mut report = self.lock();
        report.damaged_files += 1;
        report.damage = Some(damage.why.clone());
        drop(report);
        self.are_lost(&damage.lost);
    }

    /// Reports lost records.
    pub(crate) fn are_lost(&self, keys: &BTreeSet<String>) {
        if keys.contains(UNNAMED) {
            tracing::error!(store = self.name, "records may be lost together with their names");
        }
        let keys: Vec<_> = keys.iter().filter(|key| *key != UNNAMED).collect();
        for key in keys.iter().take(LOGGED) {
            tracing::error!(
                store = self.name,
                record = escaped(key.as_bytes()),
                "a record was damaged and is lost"
            );
        }
        let mut report = self.lock();
        report.lost_records += keys.len() as u64;
        report.lost.extend(keys.iter().take(NAMED).map(|key| escaped(key.as_bytes())));
        let old = report.lost.len().saturating_sub(NAMED);
        report.lost.drain(..old);
    }

    /// Reports a damaged file of one record, and its new path if it was set aside. A file that stays in place counts once
    /// for the same damage. The caller logs it.
    pub fn file_is_damaged(&self, record: &str, why: &str, aside: Option<&Path>) {
        let record = escaped(record.as_bytes());
        let damage = format!("{record}: {why}");
        if aside.is_none() {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if known.contains(&damage) {
                return;
            }
            if known.len() < KNOWN {
                known.insert(damage.clone());
            }
        }
        let mut report = self.lock();
        report.damaged_files += 1;
        report.lost_records += 1;
        report.damage = Some(damage);
        if let Some(aside) = aside {
            report.set_aside = Some(aside.display().to_string());
        }
        if report.lost.len() >= NAMED {
            report.lost.remove(0);
        }
        report.lost.push(record);
    }

    pub(crate) fn is_aside(&self, aside: &Path) {
        tracing::warn!(store = self.name, aside = %aside.display(), "set aside the damaged file; inspect or remove it");
        self.lock().set_aside = Some(aside.display().to_string());
    }

    pub(crate) fn is_too_large(&self, key: &str) {
        tracing::warn!(
            store = self.name,
            record = escaped(key.as_bytes()),
            "not persisting a record above 512 KiB"
        );
        self.lock().too_large += 1;
    }
}
