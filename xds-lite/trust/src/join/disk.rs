//! Small files of joining: there or not, and one writer at a time over all processes. Not what they say; reading is
//! `isthmus_certs::input` where others write, writing `isthmus_certs::files`.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use isthmus_certs::input;

/// Work under the lock takes a moment; what takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(3);
const PACE: Duration = Duration::from_millis(10);
const LOCK: &str = ".lock";

/// A file or directory that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct ReadError {
    /// Which.
    pub path: PathBuf,
    /// Why, and what would help.
    pub cause: String,
}

impl ReadError {
    pub(crate) fn new(path: &Path, cause: impl ToString) -> ReadError {
        ReadError { path: path.to_owned(), cause: cause.to_string() }
    }
}

/// The text of a file; nothing if there is none.
pub(crate) fn read(path: &Path, most: u64) -> Result<Option<String>, ReadError> {
    match input::read_text(path, most) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(|error| ReadError::new(path, error)),
    }
}

/// The names in a directory, sorted; none if it is not there.
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

/// The bytes of a file of the state, which is nobody else's: no link is followed to it. Nothing if there is none.
pub(super) fn read_private(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    match isthmus_store::read(path, most) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// Whether a file is not what was written, rather than out of reach.
pub(super) fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, InvalidData, InvalidInput};
    matches!(error.kind(), FileTooLarge | InvalidData | InvalidInput)
}

/// Keeps other processes and threads out of a directory until it is dropped.
pub(crate) fn lock(folder: &Path) -> Result<File, ReadError> {
    let path = folder.join(LOCK);
    let lock = isthmus_store::private_file(&path).map_err(|error| ReadError::new(&path, error))?;
    let patience = Instant::now() + PATIENCE;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if Instant::now() < patience => thread::sleep(PACE),
            Err(TryLockError::WouldBlock) => {
                return Err(ReadError::new(&path, "another process holds it; wait until it is done"));
            }
            Err(TryLockError::Error(error)) => return Err(ReadError::new(&path, error)),
        }
    }
}
