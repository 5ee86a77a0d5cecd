//! File → text: bounded and UTF-8, or why it cannot be read. Not what the text says.

use std::io;
use std::path::Path;
use std::sync::Arc;

use isthmus_certs::input;

use super::at::Spot;
use super::problem::{Problem, Problems, Report};

/// Where an agent's file stands, unless a command says otherwise.
pub const AGENT: &str = "/etc/isthmus/agent.yaml";

/// Bytes of a file.
pub const LARGEST: u64 = 256 << 20;

/// Reads a regular file of at most 256 MiB; `remedy` says what to do about a larger one.
///
/// # Errors
/// Why it cannot be read, or where it is not UTF-8.
pub fn read(path: &Path, remedy: &str) -> Result<String, Problems> {
    text(input::read(path, LARGEST), path, remedy)
}

/// The same of what a command that ends was given: it may also be a pipe, as `/dev/stdin`.
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

/// Where a text ends: the place of whatever comes next.
fn end_of(text: &[u8]) -> Spot {
    let narrow = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let last = text.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    // Continuation bytes are no characters of their own.
    let column = last.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
    let lines = text.iter().filter(|byte| **byte == b'\n').count();
    Spot { line: narrow(lines).saturating_add(1), column: narrow(column).saturating_add(1) }
}
