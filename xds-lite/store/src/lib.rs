//! Persists the state of gateways and agents for a restart: records under keys in one file, each with a checksum that
//! every read verifies. [`Persistence`] writes what one program has in memory; a [`Store`] is shared by the processes of a
//! cluster, and is itself what is true. State is a help and never a condition: a store that is damaged, full, missing or not a regular
//! file stops no program. It is reported, what is readable is used, and the file is rewritten as soon as possible. The
//! callers define the content of records.

mod database;
mod embedded;
mod files;
mod health;
mod journal;
mod persistence;
mod record;
mod salvage;
mod store;
mod writer;

pub use embedded::Embedded;
pub use files::{lock, private_file, private_folder, read, set_aside, sync_folder_of};
pub use health::Health;
pub use isthmus_model::admin::StoreHealth;
pub use journal::journal;
pub use persistence::{Adopted, Persistence, Record, Source};
pub use record::{LARGEST_VALUE, LONGEST_KEY};
pub use store::{Entry, Expect, Listing, Store, StoreError, UNNAMED, Version, Watch};

#[cfg(test)]
mod tests;
