//! Opens the files of a store: readable by their owner only, regular files only, without following links; anything else
//! in their place is set aside.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;

const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// Suffix of files that were set aside, before a number.
pub(crate) const ASIDE: &str = ".damaged-";
/// How long to wait for a lock: work under it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);
const PACE: Duration = Duration::from_millis(10);
/// How many of them to keep, of each file.
const ASIDE_KEPT: usize = 3;

/// Creates a directory for its owner only, or restricts an existing one, and returns its canonical path.
///
/// # Errors
/// The directory cannot be created, or is not a directory.
pub fn private_folder(folder: &Path) -> io::Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
    let folder = fs::canonicalize(folder)?;
    let facts = fs::metadata(&folder)?;
    let is_own = facts.uid() == rustix::process::geteuid().as_raw();
    // A directory of another owner, such as a Kubernetes volume, stays as it is.
    if is_own && facts.mode() & 0o077 != 0 {
        fs::set_permissions(&folder, Permissions::from_mode(FOLDER_MODE))?;
    }
    Ok(folder)
}

/// Opens a regular file readable by its owner only, creating it if missing. Never waits, never follows a link.
///
/// # Errors
/// It cannot be opened, or is not a regular file ([`io::ErrorKind::InvalidInput`]).
pub fn private_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
    let opened = options.custom_flags(flags.bits().cast_signed()).open(path);
    let file = match opened {
        Err(error) if is_something_else(&error) => return Err(not_regular()),
        opened => opened?,
    };
    let facts = file.metadata()?;
    if !facts.is_file() {
        return Err(not_regular());
    }
    let is_own = facts.uid() == rustix::process::geteuid().as_raw();
    if is_own && facts.mode() & 0o177 != 0 {
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    }
    Ok(file)
}

/// Locks a file across processes and threads until it is dropped, creating it if missing. Waits three seconds at most.
///
/// # Errors
/// The file cannot be created, or another process holds the lock.
pub fn lock(path: &Path) -> io::Result<File> {
    let end = Instant::now() + PATIENCE;
    loop {
        let file = match private_file(path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                set_aside(path)?;
                private_file(path)?
            }
            opened => opened?,
        };
        match file.try_lock() {
            // A lock on a file that was removed meanwhile keeps nobody out.
            Ok(()) if is_at(path, &file)? => return Ok(file),
            Ok(()) | Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(PACE),
            Ok(()) | Err(TryLockError::WouldBlock) => {
                let why =
                    format!("{}: another process holds the lock; retry when it is done", path.display());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn is_at(path: &Path, file: &File) -> io::Result<bool> {
    let own = identity(&file.metadata()?);
    Ok(facts(path)?.is_some_and(|facts| identity(&facts) == own))
}

/// Opens a regular file for reading. Never waits, never follows a link.
pub(crate) fn existing_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    match opened {
        Err(error) if is_something_else(&error) => Err(not_regular()),
        Ok(file) if !file.metadata()?.is_file() => Err(not_regular()),
        opened => opened,
    }
}

/// Reads a regular file of at most `limit` bytes. Never waits, never follows a link.
///
/// # Errors
/// The file cannot be read, is not a regular file, or is too large.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    existing_file(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > limit {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("is larger than {limit} bytes"))),
        false => Ok(bytes),
    }
}

/// Whether the error is that of opening a link, a directory or a socket.
fn is_something_else(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    code.is_some_and(|code| {
        [rustix::io::Errno::LOOP, rustix::io::Errno::ISDIR, rustix::io::Errno::NXIO].contains(&code)
    })
}

fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file")
}

/// The metadata of a path, links not followed; none if nothing is there.
pub(crate) fn facts(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        facts => facts.map(Some),
    }
}

/// The identity of a file, to detect that another one has taken its name.
pub(crate) fn identity(facts: &Metadata) -> (u64, u64) {
    (facts.dev(), facts.ino())
}

/// Syncs the directory of a path: a file name is durable only then.
///
/// # Errors
/// It cannot be synced.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// A path with a suffix.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Renames what is at a path to move it out of the way, and returns its new name. Keeps the newest three of a path.
///
/// # Errors
/// It cannot be renamed.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let old = asides(path);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    // Higher than all previous numbers, whatever the clock says.
    let number = old.last().map_or(now, |(last, _)| now.max(last.saturating_add(1)));
    let aside = beside(path, &format!("{ASIDE}{number}"));
    fs::rename(path, &aside)?;
    for (_, path) in old.iter().rev().skip(ASIDE_KEPT - 1) {
        // A directory only if it is empty: its content may belong to someone. A failure is harmless.
        let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
    }
    Ok(aside)
}

/// What was set aside before, oldest first.
fn asides(path: &Path) -> Vec<(u128, PathBuf)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Vec::new() };
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let prefix = beside(Path::new(name), ASIDE);
    let number = |path: &Path| path.file_name()?.to_str()?.strip_prefix(prefix.to_str()?)?.parse().ok();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut asides: Vec<_> = paths.filter_map(|path| Some((number(&path)?, path))).collect();
    asides.sort();
    asides
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn private_file_follows_no_link_and_waits_for_no_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let folder = private_folder(&dir.path().join("a/state")).unwrap();
        assert_eq!((mode(&folder), mode(folder.parent().unwrap())), (0o700, 0o700));
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        private_folder(&folder).unwrap();
        assert_eq!(mode(&folder), 0o700, "made so");
        let path = folder.join("file");
        fs::write(&path, "kept").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        private_file(&path).unwrap();
        assert_eq!((mode(&path), fs::read_to_string(&path).unwrap()), (0o600, "kept".to_owned()));
        let target = dir.path().join("target");
        symlink(&target, folder.join("link")).unwrap();
        fs::create_dir(folder.join("folder")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, folder.join("pipe"), rustix::fs::Mode::RUSR).unwrap();
        for name in ["link", "folder", "pipe"] {
            let error = private_file(&folder.join(name)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}: {error}");
            let aside = set_aside(&folder.join(name)).unwrap();
            assert!(facts(&aside).unwrap().is_some() && facts(&folder.join(name)).unwrap().is_none());
        }
        assert!(!target.exists(), "the link was not followed");
    }

    #[test]
    fn set_aside_keeps_the_newest_three() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for text in 0..8 {
            fs::write(&path, text.to_string()).unwrap();
            set_aside(&path).unwrap();
        }
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|one| fs::read_to_string(one.unwrap().path()).unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["5", "6", "7"]);
    }
}
