//! The file of the audit log: appended to, opened again when it was moved away, and not stopped by a full disk.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use rustix::fs::OFlags;

/// The file.
#[derive(Debug)]
pub(crate) struct AuditFile {
    path: PathBuf,
    /// None after it could not be opened again.
    file: Option<File>,
    /// A write has ended within a line.
    is_torn: bool,
    /// The last write failed.
    fails: bool,
}

impl AuditFile {
    /// Opens the file, and creates it if there is none: readable by its owner and group.
    ///
    /// # Errors
    /// It cannot be opened for appending, or is not a regular file.
    pub(crate) fn append_to(path: PathBuf) -> io::Result<AuditFile> {
        let file = open(&path)?;
        Ok(AuditFile { path, file: Some(file), is_torn: false, fails: false })
    }

    /// Opens the file again if another one, or none, has its name by now: it was rotated.
    fn reopen_if_moved(&mut self) -> io::Result<()> {
        let print = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let named = fs::metadata(&self.path).map(print).ok();
        let opened = self.file.as_ref().and_then(|file| file.metadata().ok()).map(print);
        if named.is_none() || named != opened {
            self.file = None;
            self.file = Some(open(&self.path)?);
            self.is_torn = false;
        }
        Ok(())
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        self.reopen_if_moved()?;
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        if self.is_torn {
            file.write_all(b"\n")?;
            self.is_torn = false;
        }
        let mut rest = lines;
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(wrote) => {
                    self.is_torn = rest.get(wrote.saturating_sub(1)) != Some(&b'\n');
                    rest = rest.get(wrote..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Write for AuditFile {
    /// Writes all lines or fails.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let outcome = self.append(lines);
        match &outcome {
            Err(error) if !self.fails => {
                tracing::error!(file = %self.path.display(), %error, "cannot write the audit log; its lines are lost until this is repaired");
            }
            Ok(()) if self.fails => {
                tracing::info!(file = %self.path.display(), "the audit log is written again")
            }
            _ => {}
        }
        self.fails = outcome.is_err();
        outcome.map(|()| lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A FIFO without a reader fails at once, and is then refused like everything that is not a regular file.
fn open(path: &PathBuf) -> io::Result<File> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audit_file_is_appended_to_and_followed_when_it_is_moved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        fs::write(&path, "old\n").unwrap();
        let mut file = AuditFile::append_to(path.clone()).unwrap();
        file.write_all(b"one\n").unwrap();
        fs::rename(&path, folder.path().join("audit.log.1")).unwrap();
        file.write_all(b"two\n").unwrap();
        fs::remove_file(&path).unwrap();
        file.write_all(b"three\n").unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!((read("audit.log.1").as_str(), read("audit.log").as_str()), ("old\none\n", "three\n"));
        let mode = fs::metadata(&path).unwrap().mode() & 0o777;
        assert_eq!(mode & 0o137, 0, "{mode:o}");
    }

    #[test]
    fn audit_file_must_be_a_regular_file() {
        for path in ["/dev/null", "/nowhere/audit.log", "/"] {
            AuditFile::append_to(path.into()).unwrap_err();
        }
    }

    #[test]
    fn audit_file_on_a_full_disk_loses_lines_alone() {
        // The device is not a regular file; opened here as a disk that has run full.
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let mut file = AuditFile { path: "/dev/full".into(), file: Some(full), is_torn: false, fails: false };
        file.write_all(b"lost\n").unwrap_err();
        let folder = tempfile::tempdir().unwrap();
        file.path = folder.path().join("audit.log");
        file.write_all(b"written\n").unwrap();
        assert_eq!(fs::read_to_string(&file.path).unwrap(), "written\n");
    }
}
