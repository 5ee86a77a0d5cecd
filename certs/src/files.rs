//! Files that appear whole or not at all, one or several together. After a crash at any point there is what
//! was there before or what was to be there, and perhaps a leftover that the next writing removes.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

/// Readable by its owner only: keys.
pub const SECRET: u32 = 0o600;
/// Readable by all who may enter the directory.
pub const PUBLIC: u32 = 0o644;
const FOLDER: u32 = 0o700;
/// The link that all files of a set go through, as kubelet names it.
const DATA: &str = "..data";
/// What single files are called until they are whole.
const NEW: &str = ".new-";
/// How the directories of sets, and links until they are in their place, are called: nothing else is removed.
const OURS: &str = "..isthmus-";

/// A file or directory could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The system does not let us.
    #[error("cannot write {}; the directory must exist and be writable", path.display())]
    Failed {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Somebody else's file is there.
    #[error("{} is there already, and was not made here; choose another directory, or move it away", .0.display())]
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

/// What it says may be a key.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("name", &self.name).field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Entry {
    /// One that all who may enter the directory can read.
    pub fn public(name: &'static str, content: impl Into<String>) -> Self {
        Self { name, content: content.into(), mode: PUBLIC }
    }

    /// One for its owner only.
    pub fn secret(name: &'static str, content: impl Into<String>) -> Self {
        Self { name, content: content.into(), mode: SECRET }
    }
}

/// Writes one file, in place of what is there.
pub fn write(path: &Path, content: &str, mode: u32) -> Result<(), WriteError> {
    let attempt = || {
        let folder = parent(path);
        // A temporary file starts as 0600, so a key is never open to others.
        let mut file = tempfile::Builder::new().prefix(NEW).tempfile_in(folder).map_err(nameless)?;
        file.write_all(content.as_bytes())?;
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        sync(folder)
    };
    attempt().map_err(failed(path))
}

/// Removes what interrupted writings of single files have left in a directory and below it.
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

/// Makes a directory and those above it, for their owner only.
pub fn make_folder(folder: &Path) -> Result<(), WriteError> {
    let made = DirBuilder::new().recursive(true).mode(FOLDER).create(folder);
    made.map_err(failed(folder))
}

/// Replaces all files of a directory at one stroke, as kubelet does with a Secret: they stand in a
/// directory of their own, the link `..data` leads there, and each name is a link through it.
///
/// # Errors
/// It cannot be written. What was there before is still whole.
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
    give(next.path(), folder, entries)?;
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

/// Gives a new set to the owner of its directory: what root renews, the service that it is for must read.
fn give(set: &Path, folder: &Path, entries: &[Entry]) -> io::Result<()> {
    let (owner, made) = (fs::metadata(folder)?, fs::metadata(set)?);
    if (owner.uid(), owner.gid()) == (made.uid(), made.gid()) {
        return Ok(());
    }
    for path in entries.iter().map(|entry| set.join(entry.name)).chain([set.to_owned()]) {
        chown(path, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

/// Removes what an interrupted replacing has left beside the files of a set.
pub(crate) fn tidy(folder: &Path) -> Result<(), WriteError> {
    let attempt = || match fs::read_link(folder.join(DATA)) {
        Ok(current) => remove_old(folder, current.as_os_str()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    attempt().map_err(failed(folder))
}

/// Puts a link in the place of whatever is there.
fn link(target: &Path, at: &Path) -> io::Result<()> {
    let name = at.file_name().unwrap_or_default().to_string_lossy();
    let next = at.with_file_name(format!("{OURS}{name}"));
    remove(&next)?;
    symlink(target, &next)?;
    fs::rename(&next, at)
}

/// Refuses a directory in which one of these names is something else than a link that was made here.
///
/// # Errors
/// Which of them.
pub fn check_unoccupied(folder: &Path, names: &[&str]) -> Result<(), WriteError> {
    // A mounted Secret looks the same, but for where its link leads.
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

/// Temporary files have another name each time, which is of no use to anybody.
fn nameless(error: io::Error) -> io::Error {
    error.kind().into()
}

/// What earlier sets and interrupted writings have left.
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

/// A name is only there for good once its directory is.
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
    fn a_set_is_replaced_at_one_stroke() {
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
    fn what_a_crash_left_is_taken_over() {
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
