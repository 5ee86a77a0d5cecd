//! The agent's side: verifies tokens, and consumes each once. Signing happens in between, in `issuing`.

use std::sync::Arc;
use std::time::SystemTime;
use std::{fmt, io};

use isthmus_certs::{Role, SpiffeId, Trust};
use isthmus_grpc::serve::TokenSessions;
use isthmus_store::StoreError;
use tokio::task::{JoinError, spawn_blocking};
use tokio_rustls::rustls::server::NoServerSessionStorage;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, ServerConfig, ServerConnection};
use tonic::codegen::http::Extensions;

use super::{ALPN, Exported, presented};
use crate::join::secret::TokenId;
use crate::join::tls::{self, MeetError};
use crate::join::tokens::{Ending, State, Tokens, Wrong};
use crate::join::{Guest, Party, Refusal, unix_seconds};

/// Verifies and consumes tokens for first certificates.
pub struct TokenAuthenticator {
    trust: Trust,
    issuer: Party,
    tokens: Tokens,
    wrong: Wrong,
}

/// The holder of an open token that proved its secret.
#[derive(Debug)]
pub struct Admitted {
    /// The identity that the token was made for.
    pub identity: SpiffeId,
    /// The agent's proof, for the answer.
    pub proof: String,
    id: TokenId,
}

impl Admitted {
    /// The short id of the token, for the log.
    #[must_use]
    pub fn token(&self) -> String {
        self.id.short()
    }
}

/// Why a token is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The token is invalid for good.
    #[error(transparent)]
    Token(#[from] Refusal),
    /// The token is for a cluster to join.
    #[error(
        "the token was made for a cluster to join, not for a certificate; use it with `isthmus-agent join` there"
    )]
    ToJoin,
    /// The token store failed.
    #[error("token store: {0}")]
    Store(#[from] StoreError),
    /// A blocking task failed.
    #[error("a blocking task failed: {0}")]
    Thread(#[from] JoinError),
}

impl TokenAuthenticator {
    /// The tokens of an agent.
    #[must_use]
    pub fn new(trust: Trust, issuer: Party, tokens: Tokens) -> TokenAuthenticator {
        TokenAuthenticator { trust, issuer, tokens, wrong: Wrong::default() }
    }

    /// Shows the agent's chain with its roots, and asks for no client certificate.
    fn config(&self) -> Result<Arc<ServerConfig>, MeetError> {
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

    /// Verifies a bearer text. Only a holder of the secret learns anything about the token, and nothing
    /// changes yet.
    ///
    /// # Errors
    /// The token is refused.
    pub async fn admit(&self, session: &Exported, bearer: &str) -> Result<Admitted, Refused> {
        let (id, proof) = presented(bearer).ok_or(Refusal::Unknown)?;
        let tokens = self.tokens.clone();
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
            tracing::warn!(token = id.short(), %identity, %why, "refused a token presented with its secret");
            return Err(why.into());
        }
        Ok(Admitted { identity, proof: record.verifier.prove(&session).to_text(), id })
    }

    /// Consumes the token: of all callers admitted with it, one succeeds.
    ///
    /// # Errors
    /// Another caller was first, or the store failed.
    pub async fn consume(&self, admitted: &Admitted) -> Result<(), Refused> {
        match self.end(admitted.id, Ending::Used).await? {
            true => Ok(()),
            false => Err(Refusal::Used.into()),
        }
    }

    async fn count(&self, id: TokenId, state: State) -> Result<(), Refused> {
        if state == State::Open && self.wrong.is_enough(id) && self.end(id, Ending::Void).await? {
            tracing::warn!(token = id.short(), "token revoked after too many wrong proofs; make a new one");
        }
        Ok(())
    }

    async fn end(&self, id: TokenId, ending: Ending) -> Result<bool, Refused> {
        let tokens = self.tokens.clone();
        Ok(spawn_blocking(move || tokens.end(id, ending)).await??)
    }
}

impl TokenSessions for TokenAuthenticator {
    fn alpn(&self) -> &'static [u8] {
        ALPN
    }

    fn tls(&self) -> io::Result<Arc<ServerConfig>> {
        self.config().map_err(io::Error::other)
    }

    fn bind(&self, session: &ServerConnection) -> io::Result<Extensions> {
        let mut extensions = Extensions::new();
        extensions.insert(Exported::from_connection(session).map_err(io::Error::other)?);
        Ok(extensions)
    }
}

impl fmt::Debug for TokenAuthenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenAuthenticator").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isthmus_certs::{Authority, TrustBundles, TrustDomain};
    use tempfile::TempDir;
    use tokio::runtime::Runtime;

    use super::*;
    use crate::join::enrolment::{bearer, create};
    use crate::join::tokens::Record;
    use crate::join::{Token, secret::Secret};

    struct World {
        authenticator: TokenAuthenticator,
        trust: Trust,
        tokens: Tokens,
        _folder: TempDir,
    }

    fn world() -> World {
        let folder = tempfile::tempdir().unwrap();
        let root = Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap();
        let agent = SpiffeId::agent(root.trust_domain(), "east", "a").unwrap();
        let mut bundles = TrustBundles::new();
        bundles.add_root(root.trust_domain().clone(), root.certificate()).unwrap();
        let trust = Trust::new(root.issue(&agent, &[], Duration::from_secs(3600)).unwrap(), bundles);
        let tokens = Tokens::new(Arc::new(crate::join::store(folder.path())), folder.path());
        let authenticator = TokenAuthenticator::new(trust.clone(), issuer(), tokens.clone());
        World { authenticator, trust, tokens, _folder: folder }
    }

    fn issuer() -> Party {
        Party { cluster: "east".parse().unwrap(), trust_domain: TrustDomain::new("east.example").unwrap() }
    }

    impl World {
        fn token(&self, seconds: u64) -> Token {
            let (address, id) = ("192.0.2.7:15012".parse().unwrap(), "spiffe://east.example/ns/db/sa/mysql");
            let id = SpiffeId::parse(id).unwrap();
            create(&self.trust, issuer(), &self.tokens, address, id, Duration::from_secs(seconds)).unwrap()
        }

        /// Presents a token on session number `presented` with the proof for session `made`.
        fn admit(&self, token: &Token, made: u8, presented: u8) -> Result<Admitted, Refused> {
            let session = Exported([made; 32]).about(token.id(), &token.issuer, &token.guest);
            let text = bearer(token.id(), &token.secret.prove(&session));
            Runtime::new().unwrap().block_on(self.authenticator.admit(&Exported([presented; 32]), &text))
        }

        fn consume(&self, admitted: &Admitted) -> Result<(), Refused> {
            Runtime::new().unwrap().block_on(self.authenticator.consume(admitted))
        }
    }

    fn is(outcome: Result<impl fmt::Debug, Refused>, why: Refusal) {
        let refused = outcome.unwrap_err();
        assert!(matches!(&refused, Refused::Token(found) if *found == why), "{refused}");
    }

    #[test]
    fn token_is_consumed_once_by_its_holder() {
        let world = world();
        let token = world.token(60);
        // A receiver that presents the proof elsewhere.
        is(world.admit(&token, 1, 2), Refusal::Unknown);
        let [one, two] = [1, 2].map(|session| world.admit(&token, session, session).unwrap());
        assert_eq!(Guest::Identity { identity: one.identity.clone() }, token.guest);
        assert_ne!(one.proof, two.proof, "each answer is for its session");
        world.consume(&two).unwrap();
        is(world.consume(&one), Refusal::Used);
        is(world.admit(&token, 3, 3), Refusal::Used);
    }

    #[test]
    fn token_state_is_told_to_the_holder_of_its_secret_only() {
        let world = world();
        let token = world.token(60);
        for _ in 0..5 {
            is(world.admit(&token, 1, 2), Refusal::Unknown);
        }
        is(world.admit(&token, 1, 1), Refusal::Void);
        for text in ["", "x", "0.x", &format!("{}.x", "0".repeat(32))] {
            is(
                Runtime::new().unwrap().block_on(world.authenticator.admit(&Exported([1; 32]), text)),
                Refusal::Unknown,
            );
        }
        let secret = Secret::generate().unwrap();
        let stranger = Token { secret, ..token.clone() };
        is(world.admit(&stranger, 1, 1), Refusal::Unknown);
    }

    #[test]
    fn token_expired_or_for_joining_is_refused() {
        let world = world();
        let token = world.token(60);
        let keep = |guest: Guest, expires| {
            let secret = Secret::generate().unwrap();
            let (id, verifier) = (secret.id(), secret.verifier());
            world.tokens.put(&Record { id, guest: guest.clone(), expires, verifier }).unwrap();
            Token { secret, guest, ..token.clone() }
        };
        let late = keep(token.guest.clone(), unix_seconds(SystemTime::now()));
        is(world.admit(&late, 1, 1), Refusal::Expired);
        let to_join = keep(Guest::Cluster(issuer()), u64::MAX);
        assert!(matches!(world.admit(&to_join, 1, 1), Err(Refused::ToJoin)));
    }
}
