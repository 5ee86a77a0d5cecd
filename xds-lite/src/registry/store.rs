//! Where an agent keeps what must outlive it: named values, replaced by compare-and-swap, so that several agents
//! could share one. Not what the values say. Kept in a directory ([`FileStore`]); elsewhere later.

mod file;

use std::io;
use std::path::PathBuf;

pub use file::FileStore;

/// The longest key, in bytes.
pub const LONGEST_KEY: usize = 200;
/// The largest value, in bytes.
pub const LARGEST_VALUE: usize = 64 << 20;

/// Which writing of a value: opaque, and only good for asking whether it is still the same. A value that was
/// replaced and put back may have the version that it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version(pub u64);

/// A value, and which writing of it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// For the next compare-and-swap.
    pub version: Version,
    /// What was written.
    pub value: Vec<u8>,
}

/// Named values with compare-and-swap. A key is 1 to 200 ASCII letters, digits, `-`, `_` and `.`, and does not
/// begin with a dot; a value has at most 64 MiB.
#[tonic::async_trait]
pub trait Store: Send + Sync {
    /// The value of a key, if there is one.
    ///
    /// # Errors
    /// No such key can be, or the store cannot be read.
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError>;

    /// Writes a value if what is there still has the expected version; `None` expects nothing there. Gives the
    /// new version, or `None` where somebody else came first: then nothing was written.
    ///
    /// # Errors
    /// No such key or value can be, or the store cannot be written: then it holds the old value or the new one,
    /// whole.
    async fn compare_and_swap(
        &self,
        key: &str,
        expected: Option<Version>,
        value: Vec<u8>,
    ) -> Result<Option<Version>, StoreError>;

    /// The keys that begin with a text, in their order.
    ///
    /// # Errors
    /// The store cannot be read.
    async fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError>;

    /// Removes a key if what is there still has the expected version. Says whether it did.
    ///
    /// # Errors
    /// No such key can be, or the store cannot be written.
    async fn delete(&self, key: &str, expected: Version) -> Result<bool, StoreError>;
}

/// A store does not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else has it.
    #[error(
        "{} is in use by another agent; a directory serves one agent: give this one a directory of its own, or let both share etcd or Kubernetes", .0.display()
    )]
    InUse(PathBuf),
    /// The system does not let us.
    #[error("cannot use {}: {cause}; it must be there, readable and writable", path.display())]
    Failed {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// No value has such a key.
    #[error(
        "{0:?} is no key; write 1 to {LONGEST_KEY} letters, digits, '-', '_' or '.', without a dot in front"
    )]
    Key(String),
    /// The value is larger than 64 MiB.
    #[error("the value of {0:?} is larger than 64 MiB")]
    Large(String),
}

/// Refuses what no store takes for a key.
fn checked(key: &str) -> Result<&str, StoreError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let fits = (1..=LONGEST_KEY).contains(&key.len()) && !key.starts_with('.') && key.bytes().all(allowed);
    // What is shown of it is bounded, whoever wrote it.
    if fits { Ok(key) } else { Err(StoreError::Key(key.chars().take(LONGEST_KEY).collect())) }
}

#[cfg(test)]
mod tests;
