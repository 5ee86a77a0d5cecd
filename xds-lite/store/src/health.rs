//! How it stands with a store: usable or not, and what was found damaged. Said in the log when it changes; for status
//! and metrics at any time.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::database::Damage;
use crate::record::shown;

/// Lost records that status names; all are counted.
const NAMED: usize = 20;
/// Lost records of one damage that the log names.
const LOGGED: usize = 200;

/// How it stands with one store.
#[derive(Debug)]
pub struct Health {
    name: &'static str,
    file: PathBuf,
    report: Mutex<Report>,
}

/// The same, as status shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What is persisted in it.
    pub store: &'static str,
    /// Where.
    pub file: PathBuf,
    /// What changes is written there now.
    pub usable: bool,
    /// Why not.
    pub problem: Option<String>,
    /// Something has changed and is not written yet.
    pub behind: bool,
    /// Times that a damaged file was found, since this process began.
    pub damaged_files: u64,
    /// Records that were lost by that.
    pub lost_records: u64,
    /// The last of them.
    pub lost: Vec<String>,
    /// What was wrong the last time.
    pub damage: Option<String>,
    /// How what was damaged is called now.
    pub set_aside: Option<PathBuf>,
    /// Records that were too large to be written.
    pub too_large: u64,
}

impl Health {
    pub(crate) fn new(name: &'static str, file: &Path) -> Health {
        let report = Report { store: name, file: file.to_owned(), ..Report::default() };
        Health { name, file: file.to_owned(), report: Mutex::new(report) }
    }

    /// What is persisted.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// How it stands now.
    #[must_use]
    pub fn report(&self) -> Report {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_behind(&self, behind: bool) {
        self.lock().behind = behind;
    }

    pub(crate) fn is_usable(&self) {
        let mut report = self.lock();
        if report.problem.take().is_some() {
            tracing::info!(store = self.name, file = %self.file.display(), "state is persisted again");
        }
        report.usable = true;
    }

    pub(crate) fn is_unusable(&self, why: &str) {
        let mut report = self.lock();
        report.usable = false;
        if report.problem.as_deref() != Some(why) {
            tracing::error!(
                store = self.name, file = %self.file.display(), why,
                "cannot persist state; running on without it and trying again; free the disk or mend its rights"
            );
        }
        report.problem = Some(why.to_owned());
    }

    /// A file was not as it was written: so many records of it were read, and those that it still names are gone.
    pub(crate) fn is_damaged(&self, damage: &Damage, read: usize) {
        let mut report = self.lock();
        report.damaged_files += 1;
        report.damage = Some(damage.why.clone());
        report.lost_records += damage.lost.len() as u64;
        tracing::error!(
            store = self.name, file = %self.file.display(), why = damage.why, read, lost = damage.lost.len(),
            "the state file is damaged; using what can be read"
        );
        for key in damage.lost.iter().take(LOGGED) {
            tracing::error!(
                store = self.name,
                record = shown(key.as_bytes()),
                "a record was damaged and is lost"
            );
        }
        report.lost.extend(damage.lost.iter().take(NAMED).map(|key| shown(key.as_bytes())));
        let old = report.lost.len().saturating_sub(NAMED);
        report.lost.drain(..old);
    }

    pub(crate) fn is_aside(&self, aside: &Path) {
        tracing::warn!(store = self.name, aside = %aside.display(), "set aside what was damaged; look at it or remove it");
        self.lock().set_aside = Some(aside.to_owned());
    }

    pub(crate) fn is_too_large(&self, key: &str) {
        tracing::warn!(
            store = self.name,
            record = shown(key.as_bytes()),
            "a record above 512 KiB is not persisted"
        );
        self.lock().too_large += 1;
    }
}
