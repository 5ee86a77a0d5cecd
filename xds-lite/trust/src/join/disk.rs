//! File access of joining: optional small files, and a lock across processes. Reads files of other writers
//! with `isthmus_certs::input`, writes with `isthmus_certs::files`.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use isthmus_certs::input;

/// How long to wait for the lock: work under it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);
const PACE: Duration = Duration::from_millis(10);
const LOCK: &str = ".lock";

/// A file or directory cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct ReadError {
    /// Its path.
    pub path: PathBuf,
    /// The error, with the remedy.
    pub cause: String,
}

impl ReadError {
    pub(crate) fn new(path: &Path, cause: impl ToString) -> ReadError {
        ReadError { path: path.to_owned(), cause: cause.to_string() }
    }
}

/// The text of a file; `None` if it does not exist.
pub(crate) fn read(path: &Path, most: u64) -> Result<Option<String>, ReadError> {
    match input::read_text(path, most) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(|error| ReadError::new(path, error)),
    }
}

/// The names in a directory, sorted; empty if it does not exist.
pub(super) fn names(folder: &Path) -> Result<Vec<String>, ReadError> {
    let attempt = || -> io::Result<Vec<String>> {
        let entries: io::Result<Vec<_>> = fs::read_dir(folder)?.collect();
        let names = entries?.into_iter().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.collect())
    };
    match attempt() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(ReadError::new(folder, error)),
        Ok(mut names) => {
            names.sort();
            Ok(names)
        }
    }
}

/// The bytes of a private state file, without following links; `None` if it does not exist.
pub(super) fn read_private(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    match isthmus_store::read(path, most) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// Whether the error means a damaged file rather than an inaccessible one.
pub(super) fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, InvalidData, InvalidInput};
    matches!(error.kind(), FileTooLarge | InvalidData | InvalidInput)
}

/// Locks a directory across processes and threads until the file is dropped.
pub(crate) fn lock(folder: &Path) -> Result<File, ReadError> {
    let path = folder.join(LOCK);
    let lock = isthmus_store::private_file(&path).map_err(|error| ReadError::new(&path, error))?;
    let patience = Instant::now() + PATIENCE;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if Instant::now() < patience => thread::sleep(PACE),
            Err(TryLockError::WouldBlock) => {
                return Err(ReadError::new(&path, "another process holds the lock; retry when it is done"));
            }
            Err(TryLockError::Error(error)) => return Err(ReadError::new(&path, error)),
        }
    }
}
