//! A store in a directory, a file for each key. One agent's only: a lock on the directory keeps others out, and
//! within the agent one writing follows the other. A file appears whole or not at all.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use super::{LARGEST_VALUE, Store, StoreError, Version, Versioned, checked};

/// Whose lock is held while the store is open.
const LOCK: &str = ".lock";
/// What files are called until they are whole.
const NEW: &str = ".new-";
/// For its owner only: it may say what others need not know.
const FOLDER_MODE: u32 = 0o700;

/// A directory as a store.
#[derive(Clone, Debug)]
pub struct FileStore(Arc<Folder>);

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    /// Held for as long as this lives; the kernel lets go when the process ends, however it ends.
    _lock: File,
    writing: Mutex<()>,
}

impl FileStore {
    /// Opens a directory, made if it is not there, for this process alone.
    ///
    /// # Errors
    /// Another agent has it, or it cannot be used.
    pub fn open(path: impl Into<PathBuf>) -> Result<FileStore, StoreError> {
        let path = path.into();
        let made = DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&path);
        made.map_err(failed(&path))?;
        let file = path.join(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).open(&file);
        let lock = lock.map_err(failed(&file))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse(path)),
            Err(TryLockError::Error(cause)) => return Err(failed(&file)(cause)),
        }
        sweep(&path).map_err(failed(&path))?;
        Ok(FileStore(Arc::new(Folder { path, _lock: lock, writing: Mutex::new(()) })))
    }

    /// Does work on files where it keeps nobody waiting.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let folder = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || work(&folder)).await;
        done.unwrap_or_else(|cause| Err(failed(&self.0.path)(io::Error::other(cause))))
    }
}

#[tonic::async_trait]
impl Store for FileStore {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        let key = checked(key)?.to_owned();
        self.work(move |folder| folder.read(&key)).await
    }

    async fn compare_and_swap(
        &self,
        key: &str,
        expected: Option<Version>,
        value: Vec<u8>,
    ) -> Result<Option<Version>, StoreError> {
        let key = checked(key)?.to_owned();
        if value.len() > LARGEST_VALUE {
            return Err(StoreError::Large(key));
        }
        self.work(move |folder| folder.swap(&key, expected, &value)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let prefix = prefix.to_owned();
        self.work(move |folder| folder.keys(&prefix).map_err(failed(&folder.path))).await
    }

    async fn delete(&self, key: &str, expected: Version) -> Result<bool, StoreError> {
        let key = checked(key)?.to_owned();
        self.work(move |folder| folder.delete(&key, expected)).await
    }
}

impl Folder {
    fn read(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        let path = self.path.join(key);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed(&path))?,
        };
        let mut value = Vec::new();
        // One byte more than fits tells that there is more.
        let read = file.take(LARGEST_VALUE as u64 + 1).read_to_end(&mut value).map_err(failed(&path))?;
        if read > LARGEST_VALUE {
            return Err(StoreError::Large(key.to_owned()));
        }
        Ok(Some(Versioned { version: version(&value), value }))
    }

    fn swap(
        &self,
        key: &str,
        expected: Option<Version>,
        value: &[u8],
    ) -> Result<Option<Version>, StoreError> {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.read(key)?.map(|held| held.version) != expected {
            return Ok(None);
        }
        self.write(&self.path.join(key), value)?;
        Ok(Some(version(value)))
    }

    fn write(&self, path: &Path, value: &[u8]) -> Result<(), StoreError> {
        let attempt = || {
            // A temporary file is readable by its owner only, and stays so under its new name.
            let mut file = tempfile::Builder::new().prefix(NEW).tempfile_in(&self.path)?;
            file.write_all(value)?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error)?;
            sync(&self.path)
        };
        attempt().map_err(failed(path))
    }

    fn delete(&self, key: &str, expected: Version) -> Result<bool, StoreError> {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.read(key)?.map(|held| held.version) != Some(expected) {
            return Ok(false);
        }
        let path = self.path.join(key);
        fs::remove_file(&path).and_then(|()| sync(&self.path)).map_err(failed(&path))?;
        Ok(true)
    }

    fn keys(&self, prefix: &str) -> io::Result<Vec<String>> {
        let mut keys = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            // What is no key was not written here.
            let key = name.to_str().filter(|name| name.starts_with(prefix) && checked(name).is_ok());
            keys.extend(key.map(str::to_owned));
        }
        keys.sort();
        Ok(keys)
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    |cause| StoreError::Failed { path, cause }
}

/// What stands there: the same after a restart, and another once somebody has edited the file.
fn version(value: &[u8]) -> Version {
    let digest: [u8; 32] = Sha256::digest(value).into();
    let first = digest.first_chunk().copied().unwrap_or_default();
    Version(u64::from_le_bytes(first))
}

/// A name is only there for good once its directory is.
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes what interrupted writings have left.
fn sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(NEW.as_bytes()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
