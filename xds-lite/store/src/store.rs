//! The key-value store of a cluster: records that several processes read and change. A change is a compare-and-swap on
//! the version of a record. Every call may block on a disk or a network and may fail.

use std::fmt;

/// Stands for any number of lost records whose keys are lost, too, in [`Listing::lost`]. No record has this key.
pub const UNNAMED: &str = "?";

/// A store. Keys are a kind and a name, separated by a slash.
pub trait Store: fmt::Debug + Send + Sync {
    /// The record of a key.
    ///
    /// # Errors
    /// The record is lost, or the store cannot be read.
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// The records whose keys begin with `prefix`.
    ///
    /// # Errors
    /// The store cannot be read.
    fn list(&self, prefix: &str) -> Result<Listing, StoreError>;

    /// Writes a record that is as expected, durably, and returns its new version.
    ///
    /// # Errors
    /// The record is not as expected ([`StoreError::Conflict`]), a limit is exceeded, or the store cannot be written: then
    /// the change may or may not have been made.
    fn put(&self, key: &str, value: &[u8], expect: Expect<'_>) -> Result<Version, StoreError>;

    /// Removes a record that is as expected, durably.
    ///
    /// # Errors
    /// As for [`Store::put`].
    fn remove(&self, key: &str, expect: Expect<'_>) -> Result<(), StoreError>;

    /// Follows the records whose keys begin with `prefix`.
    fn watch(&self, prefix: &str) -> Box<dyn Watch>;
}

/// Follows records.
pub trait Watch: fmt::Debug + Send {
    /// The records, if any has changed since the last call; the first call returns them in any case. Several changes
    /// between two calls are one.
    ///
    /// # Errors
    /// The store cannot be read; changes are returned later.
    fn poll(&mut self) -> Result<Option<Listing>, StoreError>;
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// Its version.
    pub version: Version,
}

/// Records with a common prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The records, in the order of their keys.
    pub entries: Vec<Entry>,
    /// Keys of records that were damaged and are lost, and [`UNNAMED`]. They stay until they are written or removed.
    pub lost: Vec<String>,
}

/// The version of a record. Opaque; two equal versions of a key have the same value.
#[derive(Clone, PartialEq, Eq)]
pub struct Version(Box<[u8]>);

impl Version {
    /// The version that a store calls so.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Version {
        Version(bytes.into())
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Version(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// What a record must be for a change to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect<'a> {
    /// Anything or nothing.
    Anything,
    /// There is none, and none is lost.
    Absent,
    /// It was damaged and is lost.
    Lost,
    /// It has this version.
    Version(&'a Version),
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The record is not as expected: another caller was first.
    #[error("record {0} has changed meanwhile; retry")]
    Conflict(String),
    /// The record was damaged.
    #[error("record {0} was damaged and is lost; write or remove it")]
    Lost(String),
    /// A key or value exceeds its limit.
    #[error("record {0}: {1}")]
    Invalid(String, &'static str),
    /// The store has as many records as it may have.
    #[error("the store has {0} records, which is its limit; remove some")]
    Full(usize),
    /// The store cannot be used now.
    #[error("{0}")]
    Unusable(String),
}
