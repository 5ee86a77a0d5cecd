//! The configuration file: text → settings that cannot be wrong, or everything that is wrong with it, each
//! with its line and column. Not watching the file, and not putting settings to use.

mod defaults;
mod own;
mod raw;
mod resolve;
pub mod settings;
#[cfg(test)]
mod tests;
mod trusts;

use std::path::Path;

use isthmus_model::problem::Report;
use isthmus_model::{file, yaml};

pub use isthmus_model::{Problem, Problems};
pub use own::Own;
pub(crate) use resolve::{gateway_of, read_token};

use self::settings::Settings;

/// Whether this is what a cluster is called where nothing is said.
pub(crate) fn is_default_cluster(name: &str) -> bool {
    name == defaults::CLUSTER
}

const TOO_LARGE: &str = "split it between gateways";

/// Reads a regular file of at most 256 MiB and checks it whole.
///
/// # Errors
/// Everything that is wrong with it, or why it cannot be read.
pub fn load(path: &Path) -> Result<Settings, Problems> {
    parse(&file::read(path, TOO_LARGE)?, path)
}

/// The same for a command that ends: the file may be a pipe, as `/dev/stdin`.
///
/// # Errors
/// As [`load`].
pub fn load_argument(path: &Path) -> Result<Settings, Problems> {
    parse(&file::read_argument(path, TOO_LARGE)?, path)
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
