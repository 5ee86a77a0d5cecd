//! Counts wrong proofs of open tokens: too many revoke the token.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::join::secret::TokenId;

/// Wrong proofs that revoke a token. Only a client that knows its id, which travels inside TLS, can send
/// them: the holder of a damaged token, which its checksum detects, or an interceptor that holds an agent's
/// key.
const MOST: u32 = 5;

/// Wrong proofs by token.
#[derive(Debug, Default)]
pub(in crate::join) struct Wrong(Mutex<HashMap<TokenId, u32>>);

impl Wrong {
    /// Counts one; returns whether to revoke the token.
    pub(in crate::join) fn is_enough(&self, id: TokenId) -> bool {
        let times = {
            let mut wrong = self.lock();
            let times = wrong.entry(id).or_default();
            *times += 1;
            *times
        };
        tracing::warn!(token = id.short(), times, "wrong proof of a token's secret; possible interception");
        times >= MOST
    }

    /// Drops the counts of all other tokens.
    pub(in crate::join) fn keep_only(&self, tokens: &HashSet<TokenId>) {
        self.lock().retain(|id, _| tokens.contains(id));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TokenId, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
