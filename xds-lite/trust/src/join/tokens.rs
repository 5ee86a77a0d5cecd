//! The tokens that one side has made, wherever they are kept: each is taken once, whoever asks how often at the
//! same time. Not the secrets; they are with those who were given the tokens.

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

/// How long a token that has ended is remembered, in seconds: its joiner is told how it ended.
pub(super) const REMEMBERED: u64 = 60 * 60;

/// What the side that made a token keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which token.
    #[serde(with = "text::name")]
    pub id: TokenId,
    /// For whom it was made.
    #[serde(flatten)]
    pub guest: Guest,
    /// Its end, in seconds since 1970.
    pub expires: u64,
    /// What its holder is known by.
    pub verifier: Verifier,
}

/// What has become of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It can be used, unless it has expired.
    Open,
    /// Somebody has used it, or has tried to after proving its secret.
    Used,
    /// Wrong proofs have ended it.
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
    /// Its secret was not, too often.
    Void,
}

/// A store of tokens. Its functions may wait for a disk or a network; no runtime's worker calls them.
///
/// Several agents of a cluster share one store, or there is one agent.
pub trait Tokens: fmt::Debug + Send + Sync {
    /// Keeps a new token.
    ///
    /// # Errors
    /// It is not kept.
    fn put(&self, record: &Record) -> Result<(), StoreError>;

    /// Looks one up, ended or not.
    ///
    /// # Errors
    /// The store cannot be read.
    fn find(&self, id: TokenId) -> Result<Option<(Record, State)>, StoreError>;

    /// Ends an open token. Of all that try, at any time and over crashes, exactly one is told `true`.
    ///
    /// # Errors
    /// It is not certain to have been ended for good; nobody else will be told `true`, or it is open still.
    fn end(&self, id: TokenId, ending: Ending) -> Result<bool, StoreError>;

    /// All there are, those that end first before the others.
    ///
    /// # Errors
    /// The store cannot be read.
    fn list(&self) -> Result<Vec<(Record, State)>, StoreError>;

    /// Forgets what ended, or expired, an hour before `now` (seconds since 1970).
    ///
    /// # Errors
    /// The store cannot be changed.
    fn sweep(&self, now: u64) -> Result<(), StoreError>;
}

/// A store that does not do as it is asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be read.
    #[error("tokens: {0}")]
    Read(#[from] ReadError),
    /// It cannot be written.
    #[error("tokens: {0}")]
    Write(#[from] WriteError),
}
