//! Wrong proofs of the secrets of tokens that are open: so many end a token. Not the ending.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::join::secret::TokenId;

/// Wrong proofs that end a token. Only who knows its id can bring them, and that travels inside TLS only: it is
/// somebody with a damaged token, which its checksum tells, or somebody in between who holds an agent's key.
const MOST: u32 = 5;

/// How many there were, of each.
#[derive(Debug, Default)]
pub(in crate::join) struct Wrong(Mutex<HashMap<TokenId, u32>>);

impl Wrong {
    /// One more; whether the token is to end now.
    pub(in crate::join) fn is_enough(&self, id: TokenId) -> bool {
        let times = {
            let mut wrong = self.lock();
            let times = wrong.entry(id).or_default();
            *times += 1;
            *times
        };
        tracing::warn!(
            token = id.short(),
            times,
            "a proof of a token's secret is wrong; somebody may be in between"
        );
        times >= MOST
    }

    /// Forgets all others.
    pub(in crate::join) fn keep_only(&self, tokens: &HashSet<TokenId>) {
        self.lock().retain(|id, _| tokens.contains(id));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TokenId, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
