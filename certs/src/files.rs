//! Writes files atomically, one or several together. After a crash at any point either the old or the new content is
//! there, and perhaps a leftover that the next write removes.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

/// Mode of keys: readable by the owner only.
pub const SECRET: u32 = 0o600;
/// Mode of certificates: readable by all.
pub const PUBLIC: u32 = 0o644;
const FOLDER: u32 = 0o700;
/// The link through which all files of a set are reached, named as by kubelet.
const DATA: &str = "..data";
/// Name prefix of single files until they are complete.
const NEW: &str = ".new-";
/// Name prefix of the directories of sets, and of links before they are renamed. Nothing else is ever removed.
const OURS: &str = "..isthmus-";

/// A file or directory could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The operating system reported an error.
    #[error("cannot write {}; the directory must exist and be writable", path.display())]
    Failed {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// A file that Isthmus did not write is there.
    #[error("{} is there already and was not written by Isthmus; choose another directory, or move it away", .0.display())]
    Occupied(PathBuf),
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> WriteError {
    let path = path.to_owned();
    |cause| WriteError::Failed { path, cause }
}

/// One file of a set.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    pub(crate) name: &'static str,
    pub(crate) content: String,
    pub(crate) mode: u32,
}

/// Hides the content, which may be a key.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("name", &self.name).field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Entry {
    /// An entry that everyone may read.
    pub fn public(name: &'static str, content: impl Into<String>) -> Self {
        Self { name, content: content.into(), mode: PUBLIC }
    }

    /// An entry that only the owner may read.
    pub fn secret(name: &'static str, content: impl Into<String>) -> Self {
        Self { name, content: content.into(), mode: SECRET }
    }
}

/// Writes one file, replacing what is there.
pub fn write(path: &Path, content: &str, mode: u32) -> Result<(), WriteError> {
    let attempt = || {
        let folder = parent(path);
        // Temporary files are created with mode 0600, so a key is never readable by others.
        let mut file = tempfile::Builder::new().prefix(NEW).tempfile_in(folder).map_err(nameless)?;
        file.write_all(content.as_bytes())?;
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        sync(folder)
    };
    attempt().map_err(failed(path))
}

/// Removes leftovers of interrupted writes of single files, in a directory and below it.
pub(crate) fn sweep(folder: &Path) -> Result<(), WriteError> {
    sweep_in(folder).map_err(failed(folder))
}

fn sweep_in(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sweep_in(&entry.path())?;
        } else if entry.file_name().as_encoded_bytes().starts_with(NEW.as_bytes()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Makes a directory and its parents, for their owner only.
pub fn make_folder(folder: &Path) -> Result<(), WriteError> {
    let made = DirBuilder::new().recursive(true).mode(FOLDER).create(folder);
    made.map_err(failed(folder))
}

/// Replaces all files of a set at once, as kubelet does with a Secret: they are in a directory of their own, the link
/// `..data` points to it, and each name is a link through `..data`.
///
/// # Errors
/// A file cannot be written. The previous set is still complete.
pub fn publish(folder: &Path, entries: &[Entry]) -> Result<(), WriteError> {
    make_folder(folder)?;
    publish_in(folder, entries).map_err(failed(folder))
}

fn publish_in(folder: &Path, entries: &[Entry]) -> io::Result<()> {
    let private = Permissions::from_mode(FOLDER);
    let next =
        tempfile::Builder::new().prefix(OURS).permissions(private).tempdir_in(folder).map_err(nameless)?;
    for entry in entries {
        let mut file = File::create_new(next.path().join(entry.name))?;
        file.set_permissions(Permissions::from_mode(entry.mode))?;
        file.write_all(entry.content.as_bytes())?;
        file.sync_all()?;
    }
    chown_set(next.path(), folder, entries)?;
    sync(next.path())?;
    let next = next.keep();
    let name = next.file_name().unwrap_or_default();
    link(Path::new(name), &folder.join(DATA))?;
    for entry in entries {
        let target = Path::new(DATA).join(entry.name);
        let visible = folder.join(entry.name);
        if fs::read_link(&visible).ok().as_ref() != Some(&target) {
            link(&target, &visible)?;
        }
    }
    sync(folder)?;
    remove_old(folder, name)
}

/// Gives a new set to the owner of its directory: a service must be able to read what root renews for it.
fn chown_set(set: &Path, folder: &Path, entries: &[Entry]) -> io::Result<()> {
    let (owner, made) = (fs::metadata(folder)?, fs::metadata(set)?);
    if (owner.uid(), owner.gid()) == (made.uid(), made.gid()) {
        return Ok(());
    }
    for path in entries.iter().map(|entry| set.join(entry.name)).chain([set.to_owned()]) {
        chown(path, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

/// Removes leftovers of an interrupted [`publish`].
pub(crate) fn tidy(folder: &Path) -> Result<(), WriteError> {
    let attempt = || match fs::read_link(folder.join(DATA)) {
        Ok(current) => remove_old(folder, current.as_os_str()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    attempt().map_err(failed(folder))
}

/// Makes a link, replacing what is there.
fn link(target: &Path, at: &Path) -> io::Result<()> {
    let name = at.file_name().unwrap_or_default().to_string_lossy();
    let next = at.with_file_name(format!("{OURS}{name}"));
    remove(&next)?;
    symlink(target, &next)?;
    fs::rename(&next, at)
}

/// Refuses a directory in which one of these names is not a link made by [`publish`].
///
/// # Errors
/// The first such name.
pub fn check_unoccupied(folder: &Path, names: &[&str]) -> Result<(), WriteError> {
    // A mounted Secret differs only in the target of its `..data` link.
    let data = fs::read_link(folder.join(DATA)).unwrap_or_default();
    let is_ours =
        data.as_os_str().is_empty() || data.as_os_str().as_encoded_bytes().starts_with(OURS.as_bytes());
    for name in names {
        let path = folder.join(name);
        match fs::read_link(&path) {
            Ok(target) if is_ours && target.starts_with(DATA) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            _ => return Err(WriteError::Occupied(path)),
        }
    }
    Ok(())
}

/// Drops the name of a temporary file from an error: it is random.
fn nameless(error: io::Error) -> io::Error {
    error.kind().into()
}

/// Removes previous sets and leftovers of interrupted writes.
fn remove_old(folder: &Path, current: &OsStr) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(OURS.as_bytes()) && name != current {
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => remove(&entry.path())?,
            }
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A file name is durable only once its directory is synced.
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> [Entry; 2] {
        [Entry::public("tls.crt", text), Entry::secret("tls.key", text)]
    }

    #[test]
    fn publish_replaces_all_files_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        publish(&folder, &set("one")).unwrap();
        let data = fs::read_link(folder.join(DATA)).unwrap();
        publish(&folder, &set("two")).unwrap();
        assert_ne!(fs::read_link(folder.join(DATA)).unwrap(), data);
        for name in ["tls.crt", "tls.key"] {
            assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), "two");
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let modes = [folder.join("tls.key"), folder.join("tls.crt"), folder.clone(), folder.join(DATA)];
        assert_eq!(modes.map(|path| mode(&path)), [0o600, 0o644, 0o700, 0o700]);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 4, "two links, ..data, and where it leads");
    }

    #[test]
    fn publish_cleans_up_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("..isthmus-left")).unwrap();
        fs::write(dir.path().join("..isthmus-left/tls.key"), "half").unwrap();
        symlink("nowhere", dir.path().join("..isthmus-..data")).unwrap();
        fs::write(dir.path().join("tls.crt"), "a file where a link should be").unwrap();
        publish(dir.path(), &set("one")).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("tls.crt")).unwrap(), "one");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
    }
}
