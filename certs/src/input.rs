//! Reads files that people and other programs write. Only regular files are opened, never waiting, and never beyond a
//! limit: a pipe, a device or a directory in place of a file must not hang or fill a program. Links are followed, since
//! Kubernetes mounts files through them. Only short commands accept a pipe, and wait for it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

/// Opens a regular file for reading.
///
/// # Errors
/// It cannot be opened, or is not a regular file.
pub fn open(path: &Path) -> io::Result<File> {
    // Without NONBLOCK, opening a pipe waits for a writer.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file; replace it with one"))
        }
    }
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// It cannot be read, is not a regular file ([`io::ErrorKind::InvalidInput`]), or is larger
/// ([`io::ErrorKind::FileTooLarge`]).
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    bounded(open(path)?, limit)
}

/// Reads at most `limit` bytes of a command line argument: a file, or a pipe (`<(…)`, `/dev/stdin`), which it waits
/// for. Only for short commands.
///
/// # Errors
/// It cannot be read, or is larger ([`io::ErrorKind::FileTooLarge`]).
pub fn read_argument(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    bounded(File::open(path)?, limit)
}

fn bounded(from: impl io::Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > limit {
        true => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("is larger than {limit} bytes; is it the right file?"),
        )),
        false => Ok(bytes),
    }
}

/// Reads a regular UTF-8 file of at most `limit` bytes.
///
/// # Errors
/// As [`read`], or it is not UTF-8 ([`io::ErrorKind::InvalidData`]).
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    text(read(path, limit)?)
}

/// [`read_argument`] of UTF-8.
///
/// # Errors
/// As [`read_argument`], or it is not UTF-8 ([`io::ErrorKind::InvalidData`]).
pub fn read_text_argument(path: &Path, limit: u64) -> io::Result<String> {
    text(read_argument(path, limit)?)
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "is not UTF-8 text; is it the right file, and saved as UTF-8?",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_reads_only_regular_files_within_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "four").unwrap();
        assert_eq!(read_text(&path, 4).unwrap(), "four");
        assert_eq!(read(&path, 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        std::fs::write(&path, b"\xff").unwrap();
        assert_eq!(read_text(&path, 4).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(read(&link, 4).unwrap(), b"\xff");
        let pipe = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        for odd in [&pipe, dir.path(), Path::new("/dev/zero")] {
            assert_eq!(read(odd, 4).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{}", odd.display());
        }
        assert_eq!(read(&dir.path().join("none"), 4).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn input_argument_may_be_a_bounded_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).unwrap();
        let writer = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::write(pipe, "four").unwrap()
        });
        assert_eq!(read_text_argument(&pipe, 4).unwrap(), "four");
        writer.join().unwrap();
        let endless = read_argument(Path::new("/dev/zero"), 4).unwrap_err();
        assert_eq!(endless.kind(), io::ErrorKind::FileTooLarge);
    }
}
