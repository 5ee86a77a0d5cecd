//! What gateways and agents persist for a restart. A file holds records under keys, each with a checksum of ours that
//! every read checks. State is a help and never a condition: a store that is damaged, full, missing or something else
//! than a file ends nobody; it is named, what can be read is used, and it is written anew once that is possible. Not
//! what the records say.

mod database;
mod files;
mod health;
mod journal;
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
