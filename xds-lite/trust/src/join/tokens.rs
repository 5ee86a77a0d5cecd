//! The store of the tokens that this side made: each is consumed once, however many callers race. It holds
//! verifiers, not secrets.

mod folder;
mod wrong;

use std::fmt;

use isthmus_certs::files::WriteError;
use serde::{Deserialize, Serialize};

use super::disk::ReadError;
use super::secret::{TokenId, Verifier};
use super::{Guest, text};

pub use folder::Folder;
pub(super) use wrong::Wrong;

/// How long an ended token is remembered, in seconds, so that its joiner is told how it ended.
pub(super) const REMEMBERED: u64 = 60 * 60;

/// What the side that made a token stores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The token's id.
    #[serde(with = "text::name")]
    pub id: TokenId,
    /// The party it was made for.
    #[serde(flatten)]
    pub guest: Guest,
    /// Its expiry, in seconds since 1970.
    pub expires: u64,
    /// Verifies its holder.
    pub verifier: Verifier,
}

/// The state of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Usable, unless expired.
    Open,
    /// Its holder proved the secret, whether or not the rest succeeded.
    Used,
    /// Revoked after too many wrong proofs.
    Void,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Open => "open",
            State::Used => "used",
            State::Void => "void",
        })
    }
}

/// How an open token ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its secret was proven.
    Used,
    /// There were too many wrong proofs.
    Void,
}

/// A store of tokens. Its methods block on a disk or network; do not call them on an async worker.
///
/// Several agents of a cluster share one store, or there is one agent.
pub trait Tokens: fmt::Debug + Send + Sync {
    /// Stores a new token.
    ///
    /// # Errors
    /// The token is not stored.
    fn put(&self, record: &Record) -> Result<(), StoreError>;

    /// Looks up a token, ended or not.
    ///
    /// # Errors
    /// The store cannot be read.
    fn find(&self, id: TokenId) -> Result<Option<(Record, State)>, StoreError>;

    /// Ends an open token. Of all callers, at any time and across crashes, exactly one gets `true`.
    ///
    /// # Errors
    /// The end may not be durable; either no other caller gets `true`, or the token is still open.
    fn end(&self, id: TokenId, ending: Ending) -> Result<bool, StoreError>;

    /// All tokens, the earliest expiry first.
    ///
    /// # Errors
    /// The store cannot be read.
    fn list(&self) -> Result<Vec<(Record, State)>, StoreError>;

    /// Deletes tokens that ended or expired an hour before `now` (seconds since 1970).
    ///
    /// # Errors
    /// The store cannot be changed.
    fn sweep(&self, now: u64) -> Result<(), StoreError>;
}

/// The token store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be read.
    #[error("token store: {0}")]
    Read(#[from] ReadError),
    /// It cannot be written.
    #[error("token store: {0}")]
    Write(#[from] WriteError),
}
