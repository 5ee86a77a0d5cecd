//! The configuration file: text → settings that cannot be wrong, or everything that is wrong with it, each
//! with its line and column. Not watching the file, and not putting settings to use.

mod address;
mod at;
mod defaults;
mod own;
mod problem;
mod raw;
mod resolve;
pub mod settings;
#[cfg(test)]
mod tests;
mod units;
mod yaml;

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

pub use own::Own;
pub use problem::{Problem, Problems};

use self::at::Spot;
use self::problem::Report;
use self::settings::Settings;

/// Reads a file of at most 256 MiB and checks it whole.
///
/// # Errors
/// Everything that is wrong with it, or why it cannot be read.
pub fn load(path: &Path) -> Result<Settings, Problems> {
    let whole = |what: String, remedy: &str| Problem {
        file: Arc::from(path),
        line: 0,
        column: 0,
        what,
        remedy: remedy.to_owned(),
    };
    let mut bytes = Vec::new();
    let read = fs::File::open(path)
        .and_then(|file| file.take(defaults::FILE_SIZE.saturating_add(1)).read_to_end(&mut bytes));
    match read {
        Err(error) => return Err(whole(format!("cannot be read: {error}"), "").into()),
        Ok(read) if read as u64 > defaults::FILE_SIZE => {
            return Err(whole("is larger than 256 MiB".to_owned(), "split it between gateways").into());
        }
        Ok(_) => {}
    }
    match str::from_utf8(&bytes) {
        Ok(text) => parse(text, path),
        Err(error) => {
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let mut report = Report::new(path);
            report.add(end_of(before), "not UTF-8", "save the file as UTF-8");
            report.finish(None)
        }
    }
}

/// Checks a text as if it stood in `file`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str, file: &Path) -> Result<Settings, Problems> {
    let mut report = Report::new(file);
    let settings = yaml::read(text, &mut report).and_then(|raw| resolve::resolve(&mut report, raw));
    report.finish(settings)
}

/// The JSON Schema of the file, for editors.
#[must_use]
pub fn schema() -> String {
    let schema = schemars::schema_for!(raw::File);
    format!("{:#}", schema.as_value())
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
