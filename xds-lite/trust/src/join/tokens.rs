//! The tokens that this side made: each is consumed once, however many callers race, by a compare-and-swap of its
//! record. Verifiers are stored, not secrets.

mod spent;
#[cfg(test)]
mod tests;
mod wrong;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use isthmus_store::{Entry, Expect, Store, StoreError};
use serde::{Deserialize, Serialize};

use super::secret::{TokenId, Verifier};
use super::{Guest, encode, text};
use spent::Spent;

pub(super) use wrong::Wrong;

/// How long an ended token is remembered, in seconds, so that its joiner is told how it ended.
const REMEMBERED: u64 = 60 * 60;
/// The kind of record in the store.
const KIND: &str = "tokens/";

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Usable, unless expired.
    Open,
    /// Its holder proved the secret, whether or not the rest succeeded.
    Used,
    /// Revoked, by a command or after too many wrong proofs.
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
    /// It was revoked.
    Void,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    state: State,
    token: Record,
}

/// Why a token cannot be revoked.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// No token has that id.
    #[error("no token {0}; `isthmus-agent token list` shows them")]
    Unknown(String),
    /// More than one token has that id.
    #[error("several tokens begin with {0}; write all of the id in `isthmus-agent token list`")]
    Several(String),
    /// It has ended already.
    #[error("token {0} is {1} already")]
    Ended(String, State),
    /// The store failed.
    #[error("token store: {0}")]
    Store(#[from] StoreError),
}

/// The tokens in a store. All methods block on a disk or network; do not call them on an async worker.
#[derive(Clone, Debug)]
pub struct Tokens {
    store: Arc<dyn Store>,
    spent: Spent,
}

impl Tokens {
    /// The tokens in a store. Those that have ended are remembered in the state directory, too: a store that is restored
    /// from a backup does not make them valid again.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, state: &Path) -> Tokens {
        Tokens { store, spent: Spent::of_state(state) }
    }

    /// Stores a new token.
    ///
    /// # Errors
    /// The token is not stored.
    pub fn put(&self, record: &Record) -> Result<(), StoreError> {
        self.write(record.clone(), State::Open, Expect::Absent)
    }

    /// Stores the record of a token, as an older version had it.
    pub(super) fn take_over(&self, record: Record, state: State) -> Result<(), StoreError> {
        match self.write(record, state, Expect::Absent) {
            // What the store has is newer.
            Err(StoreError::Conflict(_)) => Ok(()),
            written => written,
        }
    }

    /// Remembers that a token has ended whose record is damaged.
    pub(super) fn remember_end(&self, id: TokenId) -> Result<(), StoreError> {
        self.spent.insert(id).map_err(|error| StoreError::Unusable(error.to_string()))
    }

    fn write(&self, token: Record, state: State, expect: Expect<'_>) -> Result<(), StoreError> {
        let key = key(token.id);
        self.store.put(&key, &encode(&Stored { state, token })?, expect).map(drop)
    }

    /// Looks up a token, ended or not. A damaged record is none: its token cannot be used any more.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn find(&self, id: TokenId) -> Result<Option<(Record, State)>, StoreError> {
        Ok(self.entry(id)?.and_then(|entry| self.read(&entry)))
    }

    fn entry(&self, id: TokenId) -> Result<Option<Entry>, StoreError> {
        match self.store.get(&key(id)) {
            Err(StoreError::Lost(_)) => Ok(None),
            found => found,
        }
    }

    fn read(&self, entry: &Entry) -> Option<(Record, State)> {
        match serde_json::from_slice::<Stored>(&entry.value) {
            Ok(Stored { token, .. }) if key(token.id) != entry.key => None,
            Ok(Stored { token, state: State::Open }) if self.spent.contains(token.id) => {
                Some((token, State::Used))
            }
            Ok(Stored { token, state }) => Some((token, state)),
            Err(error) => {
                tracing::error!(%error, "ignoring an invalid token record; make a new token");
                None
            }
        }
    }

    /// Ends an open token. Of all callers in all processes, at any time and across crashes, exactly one gets `true`.
    ///
    /// # Errors
    /// The end may not be durable; either no other caller gets `true`, or the token is still open.
    pub fn end(&self, id: TokenId, ending: Ending) -> Result<bool, StoreError> {
        let Some(entry) = self.entry(id)? else { return Ok(false) };
        let Some((token, State::Open)) = self.read(&entry) else { return Ok(false) };
        let state = match ending {
            Ending::Used => State::Used,
            Ending::Void => State::Void,
        };
        match self.write(token, state, Expect::Version(&entry.version)) {
            Ok(()) => {}
            Err(StoreError::Conflict(_)) => return Ok(false),
            Err(error) => return Err(error),
        }
        if let Err(error) = self.spent.insert(id) {
            tracing::warn!(token = id.short(), %error, "cannot remember the end of a token outside of the store; do not restore the store from a backup within a day");
        }
        Ok(true)
    }

    /// Revokes the open token whose id begins so, and returns it.
    ///
    /// # Errors
    /// Not exactly one token begins so, it is not open, or the store cannot be changed.
    pub fn revoke(&self, id: &str) -> Result<Record, RevokeError> {
        let shown = || isthmus_model::problem::Plain(id).to_string();
        let mut found = self
            .list()?
            .into_iter()
            .filter(|(record, _)| !id.is_empty() && record.id.to_string().starts_with(id));
        let (record, _) = found.next().ok_or_else(|| RevokeError::Unknown(shown()))?;
        if found.next().is_some() {
            return Err(RevokeError::Several(shown()));
        }
        if self.end(record.id, Ending::Void)? {
            return Ok(record);
        }
        let state = self.find(record.id)?.map_or(State::Void, |(_, state)| state);
        Err(RevokeError::Ended(record.id.short(), state))
    }

    /// All tokens, the earliest expiry first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list(&self) -> Result<Vec<(Record, State)>, StoreError> {
        let entries = self.store.list(KIND)?.entries;
        let mut found: Vec<_> = entries.iter().filter_map(|entry| self.read(entry)).collect();
        found.sort_by_key(|(record, _)| (record.expires, record.id));
        Ok(found)
    }

    /// Removes tokens that ended or expired an hour before `now` (seconds since 1970), and damaged records.
    ///
    /// # Errors
    /// The store cannot be changed.
    pub fn sweep(&self, now: u64) -> Result<(), StoreError> {
        let listing = self.store.list(KIND)?;
        let is_over = |entry: &&Entry| {
            self.read(entry).is_none_or(|(record, _)| record.expires.saturating_add(REMEMBERED) < now)
        };
        let old =
            listing.entries.iter().filter(is_over).map(|entry| (&entry.key, Expect::Version(&entry.version)));
        let lost = listing.lost.iter().filter(|key| key.starts_with(KIND)).map(|key| (key, Expect::Lost));
        for (key, expect) in old.chain(lost) {
            match self.store.remove(key, expect) {
                Ok(()) | Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
        self.spent.sweep(now);
        Ok(())
    }
}

fn key(id: TokenId) -> String {
    format!("{KIND}{id}")
}
