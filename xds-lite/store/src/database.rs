//! A database file: records under keys, read as a whole when it is opened and written in batches. It reports damage;
//! `writer` handles it.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, TransactionBehavior, params};

use crate::files;
use crate::persistence::Record;
use crate::record;
use crate::salvage::{self, PAGE, salvage};

/// Suffixes of SQLite's own files.
const BESIDE: [&str; 3] = ["-journal", "-wal", "-shm"];
const SCHEMA: &str = "
    CREATE TABLE records (key TEXT NOT NULL, value BLOB NOT NULL, checksum BLOB NOT NULL);
    CREATE UNIQUE INDEX records_by_key ON records (key);
    PRAGMA user_version = 1;";
const VERSION: i64 = 1;
/// How long to wait for the lock of a process that is just ending.
const PATIENCE: Duration = Duration::from_millis(300);
const UPSERT: &str = "INSERT INTO records (key, value, checksum) VALUES (?1, ?2, ?3)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value, checksum = excluded.checksum";

/// Why an operation on a database failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The file is not as it was written.
    #[error("{0}")]
    Damaged(String),
    /// The disk, permissions or another process prevent it.
    #[error("{0}")]
    Unusable(String),
}

/// An open database.
#[derive(Debug)]
pub(crate) struct Database {
    connection: Connection,
    path: PathBuf,
    identity: (u64, u64),
}

/// The content of a database.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// The intact records.
    pub(crate) records: Vec<Record>,
    /// Keys that were marked as lost.
    pub(crate) lost: BTreeSet<String>,
    /// What is damaged, if anything.
    pub(crate) damage: Option<Damage>,
    /// The new names of what was in the place of the file or of one of SQLite's own.
    pub(crate) aside: Vec<PathBuf>,
}

/// Damage of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) why: String,
    /// Keys of lost records.
    pub(crate) lost: BTreeSet<String>,
    /// Records may be lost together with their keys.
    pub(crate) is_unnamed: bool,
}

impl Damage {
    /// Damage that no record is known to be lost by.
    pub(crate) fn of_file(why: String) -> Damage {
        Damage { why, ..Damage::default() }
    }
}

impl Database {
    /// Opens and reads a file in an existing directory, creating it if missing. A damaged file is read but not left
    /// open.
    pub(crate) fn open(path: &Path) -> Result<(Option<Database>, Loaded), Failure> {
        let aside = clear(path)?;
        // SQLite treats an empty file as a new one.
        let is_empty = files::facts(path)?.is_some_and(|facts| facts.len() == 0);
        let file = files::private_file(path)?;
        let identity = files::identity(&file.metadata()?);
        // Closed before SQLite opens it: closing it later would release SQLite's locks.
        drop(file);
        let attempt = || -> Result<_, Failure> {
            let connection = connect(path)?;
            if is_empty {
                return Err(Failure::Damaged("is empty".to_owned()));
            }
            let (Rows { good, bad, lost }, keys) = (rows(&connection)?, indexed(&connection)?);
            let damage = compare(&good, bad, &lost, keys);
            Ok((connection, Loaded { records: good, lost, damage, aside: Vec::new() }))
        };
        let (database, loaded) = match attempt() {
            Ok((connection, loaded)) if loaded.damage.is_none() => {
                (Some(Database { connection, path: path.to_owned(), identity }), loaded)
            }
            // The pages are read again, one by one: a record that the tree has lost may still be in one.
            Ok((connection, loaded)) => {
                drop(connection);
                (None, read_pages(path, loaded)?)
            }
            Err(Failure::Damaged(why)) => {
                let damage = Some(Damage { is_unnamed: true, ..Damage::of_file(why) });
                let loaded = read_pages(path, Loaded { damage, ..Loaded::default() })?;
                (None, loaded)
            }
            Err(unusable) => return Err(unusable),
        };
        Ok((database, Loaded { aside, ..loaded }))
    }

    /// Whether the file name still leads to this file, as far as that can be determined.
    pub(crate) fn is_in_place(&self) -> bool {
        let is_it =
            |facts: Option<Metadata>| facts.is_some_and(|facts| files::identity(&facts) == self.identity);
        files::facts(&self.path).map_or(true, is_it)
    }

    /// The keys of all records.
    pub(crate) fn keys(&self) -> Result<BTreeSet<String>, Failure> {
        indexed(&self.connection)
    }

    /// Writes values and removes keys without a value, in one transaction.
    pub(crate) fn write(&mut self, changes: &[(String, Option<Vec<u8>>)]) -> Result<(), Failure> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let mut upsert = transaction.prepare(UPSERT)?;
            let mut delete = transaction.prepare("DELETE FROM records WHERE key = ?1")?;
            for (key, value) in changes {
                match value {
                    Some(value) => upsert.execute(params![key, value, record::checksum(key, value)])?,
                    None => delete.execute(params![key])?,
                };
            }
        }
        Ok(transaction.commit()?)
    }

    /// Marks keys as lost: rows without value and checksum.
    pub(crate) fn mark_lost<'a>(&mut self, keys: impl IntoIterator<Item = &'a str>) -> Result<(), Failure> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for key in keys {
            transaction.execute(UPSERT, params![key, [0_u8; 0], [0_u8; 0]])?;
        }
        Ok(transaction.commit()?)
    }

    /// Replaces the file at a path by a new one with the content of `fill`, and sets the old one aside.
    pub(crate) fn replace(
        path: &Path,
        fill: impl FnOnce(&mut Database) -> Result<(), Failure>,
    ) -> Result<Replaced, Failure> {
        let next = files::beside(path, ".new");
        remove(&next)?;
        let opened = Database::open(&next);
        let written = opened.and_then(|(database, _)| {
            let mut database = database.ok_or_else(|| {
                Failure::Unusable("a new file is damaged at once; check the disk".to_owned())
            })?;
            fill(&mut database)?;
            database.connection.close().map_err(|(_, error)| error.into())
        });
        if let Err(failure) = written {
            let _ = remove(&next);
            return Err(failure);
        }
        let mut aside = Vec::new();
        for path in all_files(path) {
            if files::facts(&path)?.is_some() {
                aside.push(files::set_aside(&path)?);
            }
        }
        fs::rename(&next, path)?;
        files::sync_folder_of(path)?;
        let (database, _) = Database::open(path)?;
        let database = database.ok_or_else(|| {
            Failure::Damaged("was damaged as soon as it was written; check the disk".to_owned())
        })?;
        Ok(Replaced { database, aside })
    }
}

/// Compares the rows of the table with the keys of the index.
fn compare(
    good: &[Record],
    bad: BTreeSet<String>,
    marked: &BTreeSet<String>,
    mut keys: BTreeSet<String>,
) -> Option<Damage> {
    keys.retain(|key| !marked.contains(key));
    let count = keys.len();
    good.iter().for_each(|(key, _)| _ = keys.remove(key));
    if bad.is_empty() && keys.is_empty() && count == good.len() {
        return None;
    }
    // An index with no more keys than there are records has damaged keys itself.
    let lost = match count > good.len() {
        true => keys,
        false => bad,
    };
    Some(Damage { why: "records differ from what was written".to_owned(), lost, is_unnamed: false })
}

/// Adds the records found in the pages of a damaged file to those already read.
fn read_pages(path: &Path, read: Loaded) -> Result<Loaded, Failure> {
    let file = files::existing_file(path)?;
    let found = salvage(&file)?;
    let mut damage = read.damage.clone().unwrap_or_default();
    if read.records.is_empty() {
        damage.lost.extend(found.named);
    }
    let mut records = found.records;
    records.extend(read.records.iter().cloned());
    damage.lost.retain(|key| !records.contains_key(key));
    Ok(Loaded { records: records.into_iter().collect(), damage: Some(damage), ..read })
}

/// The file, and SQLite's own beside it.
fn all_files(path: &Path) -> impl Iterator<Item = PathBuf> {
    [""].into_iter().chain(BESIDE).map(|suffix| files::beside(path, suffix))
}

/// Sets aside anything in the place of these files that is not a file: opening a pipe would wait for ever.
fn clear(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut aside = Vec::new();
    for path in all_files(path) {
        if files::facts(&path)?.is_some_and(|facts| !facts.is_file()) {
            aside.push(files::set_aside(&path)?);
        }
    }
    Ok(aside)
}

/// A database that replaced another file.
#[derive(Debug)]
pub(crate) struct Replaced {
    pub(crate) database: Database,
    /// The new names of the old files.
    pub(crate) aside: Vec<PathBuf>,
}

fn connect(path: &Path) -> Result<Connection, Failure> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW
        | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(PATIENCE)?;
    // Locked against other processes; a cache of 2 MiB, never memory-mapped: a truncated file must not crash the
    // process. EXTRA syncs the directory after each commit, too: a journal that came back after a power loss would undo
    // the commit.
    connection.execute_batch(&format!(
        "PRAGMA page_size = {PAGE}; PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = DELETE;
         PRAGMA synchronous = EXTRA; PRAGMA secure_delete = ON; PRAGMA cell_size_check = ON;
         PRAGMA trusted_schema = OFF; PRAGMA mmap_size = 0; PRAGMA cache_size = -2048; PRAGMA temp_store = MEMORY;
         BEGIN EXCLUSIVE; COMMIT;"
    ))?;
    match connection.query_row("PRAGMA user_version", [], |row| row.get(0))? {
        VERSION => {}
        0 if connection
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| Ok(row.get::<_, i64>(0)? == 0))? =>
        {
            connection.execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA} COMMIT;"))?;
        }
        other => {
            return Err(Failure::Damaged(format!("has format {other}, but this version reads {VERSION}")));
        }
    }
    Ok(connection)
}

#[derive(Default)]
struct Rows {
    good: Vec<Record>,
    /// Keys of damaged rows, as far as readable.
    bad: BTreeSet<String>,
    /// Keys that were marked as lost.
    lost: BTreeSet<String>,
}

/// All rows of the table, without the index.
fn rows(connection: &Connection) -> Result<Rows, Failure> {
    let mut rows = Rows::default();
    let mut statement =
        connection.prepare("SELECT key, value, checksum FROM records NOT INDEXED ORDER BY rowid")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        let [key, value, sum] = [bytes(row, 0)?, bytes(row, 1)?, bytes(row, 2)?];
        match record::checked(key, value, sum) {
            Some(record) => rows.good.push(record),
            None if value.is_empty() && sum.is_empty() => rows.lost.extend(salvage::name(key)),
            None => rows.bad.extend(salvage::name(key)),
        }
    }
    Ok(rows)
}

/// The keys of the index, without the table.
fn indexed(connection: &Connection) -> Result<BTreeSet<String>, Failure> {
    let mut keys = BTreeSet::new();
    let mut statement =
        connection.prepare("SELECT key FROM records INDEXED BY records_by_key ORDER BY key")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        keys.extend(salvage::name(bytes(row, 0)?));
    }
    Ok(keys)
}

/// The bytes of a column; a damaged row may have another type in it.
fn bytes<'a>(row: &'a Row<'_>, column: usize) -> Result<&'a [u8], Failure> {
    match row.get_ref(column)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Ok(bytes),
        _ => Ok(&[]),
    }
}

fn remove(path: &Path) -> Result<(), Failure> {
    for path in all_files(path) {
        match files::facts(&path)? {
            Some(facts) if facts.is_dir() => fs::remove_dir(&path)?,
            Some(_) => fs::remove_file(&path)?,
            None => {}
        }
    }
    Ok(())
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Unusable(error.to_string())
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Failure {
        let why = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Failure::Unusable("is in use by another process; give each its own directory".to_owned())
            }
            Some(
                ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::OutOfMemory
                | ErrorCode::NoLargeFileSupport
                | ErrorCode::FileLockingProtocolFailed,
            ) => Failure::Unusable(why),
            // The statements never change, so any other error comes from the file.
            _ => Failure::Damaged(why),
        }
    }
}
