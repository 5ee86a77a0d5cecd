//! Persists the state of gateways and agents for a restart: records under keys in one file, each with a checksum that
//! every read verifies. State is a help and never a condition: a store that is damaged, full, missing or not a regular
//! file stops no program. It is reported, what is readable is used, and the file is rewritten as soon as possible. The
//! callers define the content of records.

mod database;
mod files;
mod health;
mod journal;
mod page;
mod persistence;
mod record;
mod salvage;
mod writer;

pub use files::{private_file, private_folder, read, set_aside};
pub use health::{Health, Report};
pub use journal::journal;
pub use persistence::{Adopted, Persistence, Record, Source};
pub use record::{LARGEST_VALUE, LONGEST_KEY};

#[cfg(test)]
mod tests;
