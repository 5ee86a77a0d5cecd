//! What every YAML file of Isthmus is read with: values that know their place, their units, and a report of
//! everything that is wrong, each with its line and column. Not the sections of one program's own file.

pub mod address;
pub mod at;
pub mod file;
pub mod problem;
mod registry;
pub mod services;
pub mod units;
pub mod values;
pub mod yaml;

pub use problem::{Problem, Problems};
pub use registry::registry_file;
