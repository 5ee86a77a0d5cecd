//! The side that made the token: it judges what is presented, and ends the token once. Not the signing in between.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use isthmus_certs::{Role, SpiffeId, Trust};
use tokio::task::{JoinError, spawn_blocking};
use tokio_rustls::rustls::server::NoServerSessionStorage;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, ServerConfig};

use super::{ALPN, Exported, presented};
use crate::join::secret::TokenId;
use crate::join::tls::{self, MeetError};
use crate::join::tokens::{Ending, State, StoreError, Tokens, Wrong};
use crate::join::{Guest, Party, Refusal, unix_seconds};

/// Where tokens are presented.
pub struct Desk {
    trust: Trust,
    issuer: Party,
    tokens: Arc<dyn Tokens>,
    wrong: Wrong,
}

/// Who has proven the secret of an open token.
#[derive(Debug)]
pub struct Admitted {
    /// For whom the token was made.
    pub identity: SpiffeId,
    /// The agent's proof, for the answer.
    pub proof: String,
    id: TokenId,
}

impl Admitted {
    /// Which token it was, for the log.
    #[must_use]
    pub fn token(&self) -> String {
        self.id.short()
    }
}

/// Why a token is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is no good, and never will be.
    #[error(transparent)]
    Token(#[from] Refusal),
    /// It is a cluster's, to join with.
    #[error(
        "the token was made for a cluster to join, and not for a certificate; give it to `isthmus-agent join` there"
    )]
    ToJoin,
    /// Who presents it is known, and the store does not do as it is asked.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// A thread broke.
    #[error("a thread has ended: {0}")]
    Thread(#[from] JoinError),
}

impl Desk {
    /// Where this agent's tokens are presented.
    #[must_use]
    pub fn new(trust: Trust, issuer: Party, tokens: Arc<dyn Tokens>) -> Desk {
        Desk { trust, issuer, tokens, wrong: Wrong::default() }
    }

    /// TLS for who has no certificate: the own chain is shown with the roots that vouch for it, and none is asked.
    ///
    /// # Errors
    /// The own certificate cannot be shown.
    pub fn tls(&self) -> Result<Arc<ServerConfig>, MeetError> {
        let trusted = self.trust.current();
        let chain = tls::showing(&trusted, Role::Server)?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&TLS13])
            .and_then(|builder| {
                builder.with_no_client_auth().with_single_cert(chain, trusted.identity.key().clone_key())
            })
            .map_err(MeetError::Own)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// Hears the proof. Only to who knows the secret is anything said of the token, and nothing is changed yet.
    ///
    /// # Errors
    /// Why it is not taken.
    pub async fn admit(&self, session: &Exported, bearer: &str) -> Result<Admitted, Refused> {
        let (id, proof) = presented(bearer).ok_or(Refusal::Unknown)?;
        let tokens = Arc::clone(&self.tokens);
        let found = spawn_blocking(move || tokens.find(id)).await??;
        let (record, state) = found.ok_or(Refusal::Unknown)?;
        let session = session.about(id, &self.issuer, &record.guest);
        if !record.verifier.admits(&session, &proof) {
            self.count(id, state).await?;
            return Err(Refusal::Unknown.into());
        }
        let Guest::Identity { identity } = record.guest else { return Err(Refused::ToJoin) };
        let refused = match state {
            State::Used => Some(Refusal::Used),
            State::Void => Some(Refusal::Void),
            State::Open if unix_seconds(SystemTime::now()) >= record.expires => Some(Refusal::Expired),
            State::Open => None,
        };
        if let Some(why) = refused {
            tracing::warn!(token = id.short(), %identity, %why, "who knows a token's secret was refused");
            return Err(why.into());
        }
        Ok(Admitted { identity, proof: record.verifier.prove(&session).to_text(), id })
    }

    /// Ends the token: of all who were admitted with it, one gets past here.
    ///
    /// # Errors
    /// Somebody else was first, or the store does not say.
    pub async fn take(&self, admitted: &Admitted) -> Result<(), Refused> {
        match self.end(admitted.id, Ending::Used).await? {
            true => Ok(()),
            false => Err(Refusal::Used.into()),
        }
    }

    async fn count(&self, id: TokenId, state: State) -> Result<(), Refused> {
        if state == State::Open && self.wrong.is_enough(id) && self.end(id, Ending::Void).await? {
            tracing::warn!(token = id.short(), "wrong proofs have ended a token; make a new one");
        }
        Ok(())
    }

    async fn end(&self, id: TokenId, ending: Ending) -> Result<bool, Refused> {
        let tokens = Arc::clone(&self.tokens);
        Ok(spawn_blocking(move || tokens.end(id, ending)).await??)
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}
