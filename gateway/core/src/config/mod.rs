//! Parses the configuration file into valid settings, or reports every problem with its line and column. `watch`
//! follows the file; `control` applies the settings.

mod defaults;
mod destinations;
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

/// Whether this is the default name of a cluster.
pub(crate) fn is_default_cluster(name: &str) -> bool {
    name == defaults::CLUSTER
}

const TOO_LARGE: &str = "split it between gateways";

/// Reads and checks a regular file of at most 256 MiB.
///
/// # Errors
/// All problems of the file, or why it cannot be read.
pub fn load(path: &Path) -> Result<Settings, Problems> {
    parse(&file::read(path, TOO_LARGE)?, path)
}

/// Reads and checks the file of a one-shot command; it may be a pipe such as `/dev/stdin`. Returns warnings, too: what is
/// valid, but probably not what is meant.
///
/// # Errors
/// As [`load`].
pub fn load_argument(path: &Path) -> Result<(Settings, Vec<Problem>), Problems> {
    read(&file::read_argument(path, TOO_LARGE)?, path)
}

/// Checks a text as if it were the content of `file`.
///
/// # Errors
/// All problems of the text.
pub fn parse(text: &str, file: &Path) -> Result<Settings, Problems> {
    read(text, file).map(|(settings, _)| settings)
}

fn read(text: &str, file: &Path) -> Result<(Settings, Vec<Problem>), Problems> {
    let mut report = Report::new(file);
    let settings = yaml::read(text, &mut report).and_then(|raw| resolve::resolve(&mut report, raw));
    let warnings = report.warnings().to_vec();
    report.finish(settings).map(|settings| (settings, warnings))
}

/// Returns the JSON Schema of the file, for editors.
#[must_use]
pub fn schema() -> String {
    let schema = schemars::schema_for!(raw::File);
    format!("{:#}", schema.as_value())
}
