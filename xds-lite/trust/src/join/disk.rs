//! File access of joining: optional small files, and a lock across processes. Reads files of other writers
//! with `isthmus_certs::input`, writes with `isthmus_certs::files`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use isthmus_certs::input;

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

/// Locks a directory across processes and threads until the file is dropped.
pub(crate) fn lock(folder: &Path) -> Result<File, ReadError> {
    let path = folder.join(LOCK);
    let locked = isthmus_store::private_folder(folder).and_then(|_| isthmus_store::lock(&path));
    locked.map_err(|error| ReadError::new(&path, error))
}
