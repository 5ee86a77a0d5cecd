//! Reads text files with a size limit and a UTF-8 check.

use std::io;
use std::path::Path;
use std::sync::Arc;

use isthmus_certs::input;

use super::at::Spot;
use super::problem::{Problem, Problems, Report};

/// The default path of an agent's configuration.
pub const AGENT: &str = "/etc/isthmus/agent.yaml";

/// The size limit of a file.
pub const LARGEST: u64 = 256 << 20;

/// Reads a regular file of at most 256 MiB; `remedy` is the advice for a larger one.
///
/// # Errors
/// The file cannot be read, or is not UTF-8.
pub fn read(path: &Path, remedy: &str) -> Result<String, Problems> {
    text(input::read(path, LARGEST), path, remedy)
}

/// Likewise for an argument of a one-shot command, which may also be a pipe such as `/dev/stdin`.
///
/// # Errors
/// As [`read`].
pub fn read_argument(path: &Path, remedy: &str) -> Result<String, Problems> {
    text(input::read_argument(path, LARGEST), path, remedy)
}

fn text(read: io::Result<Vec<u8>>, path: &Path, remedy: &str) -> Result<String, Problems> {
    let whole = |what: String, remedy: &str| Problem {
        file: Arc::from(path),
        line: 0,
        column: 0,
        what,
        remedy: remedy.to_owned(),
    };
    let bytes = read.map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => whole("is larger than 256 MiB".to_owned(), remedy),
        _ => whole(format!("cannot be read: {error}"), ""),
    })?;
    String::from_utf8(bytes).or_else(|error| {
        let before = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let mut report = Report::new(path);
        report.add(end_of(before), "not UTF-8", "save the file as UTF-8");
        report.finish(None)
    })
}

/// The place after the end of a text.
fn end_of(text: &[u8]) -> Spot {
    let narrow = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let last = text.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    // Continuation bytes are not characters.
    let column = last.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
    let lines = text.iter().filter(|byte| **byte == b'\n').count();
    Spot { line: narrow(lines).saturating_add(1), column: narrow(column).saturating_add(1) }
}
