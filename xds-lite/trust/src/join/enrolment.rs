//! Authenticates the request for a first certificate by token: a TLS session in which only the agent shows a
//! certificate, and a proof of the token's secret that is bound to that session. docs/decisions/0025 has the
//! reasons. The request itself is Istio's certificate API (`issuing`, `enrolment`).

mod guest;
mod host;

use std::fmt;
use std::time::Duration;

use isthmus_certs::{SpiffeId, Trust};
use tokio_rustls::rustls::{ConnectionCommon, Error};

use super::secret::{Proof, Session, TokenId};
use super::{CreateError, Guest, Party, Token, TokenMaker, Tokens};
use isthmus_model::address::Target;

pub use guest::{Answer, Meeting, meet};
pub use host::{Admitted, Refused, TokenAuthenticator};

/// The ALPN of a client without a certificate, which is also the protocol's version.
pub const ALPN: &[u8] = b"isthmus-first/1";
/// The response metadata with the agent's proof of the secret.
pub const PROOF: &str = "isthmus-proof";
const LABEL: &[u8] = b"EXPORTER-isthmus-first";

/// Exported keying material, known only to the two ends of one TLS session.
#[derive(Clone)]
pub struct Exported([u8; 32]);

impl Exported {
    /// Exports it from a session.
    ///
    /// # Errors
    /// The handshake is not complete.
    pub fn from_connection<D>(connection: &ConnectionCommon<D>) -> Result<Exported, Error> {
        connection.export_keying_material([0; 32], LABEL, None).map(Exported)
    }

    /// What both proofs cover: this session, this token, and these two parties.
    fn about(&self, id: TokenId, issuer: &Party, guest: &Guest) -> Session {
        Session::about(&self.0, &Token::context(id, issuer, guest))
    }
}

impl fmt::Debug for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exported(..)")
    }
}

/// Creates a token for the first certificate of one identity, to be used at `address`. Another process may
/// serve that endpoint. Blocks on the store.
///
/// # Errors
/// A request with the token would fail, or the store fails.
pub fn create(
    trust: &Trust,
    issuer: Party,
    tokens: &Tokens,
    address: Target,
    identity: SpiffeId,
    lifetime: Duration,
) -> Result<Token, CreateError> {
    TokenMaker { trust, issuer, tokens }.make(address, Guest::Identity { identity }, lifetime)
}

/// The bearer text of a token: its id and the proof.
fn bearer(id: TokenId, proof: &Proof) -> String {
    format!("{id}.{}", proof.to_text())
}

fn presented(text: &str) -> Option<(TokenId, Proof)> {
    let (id, proof) = text.split_once('.')?;
    Some((id.parse().ok()?, Proof::from_text(proof)?))
}

#[cfg(test)]
mod tests {
    use isthmus_certs::{KeyPin, TrustDomain};

    use super::*;
    use crate::join::secret::Secret;

    #[test]
    fn bearer_proof_is_valid_for_its_session_and_token_only() {
        let identity = |name| {
            let identity = SpiffeId::parse(&format!("spiffe://east.example/ns/db/sa/{name}")).unwrap();
            Guest::Identity { identity }
        };
        let issuer = Party {
            cluster: "east".parse().unwrap(),
            trust_domain: TrustDomain::new("east.example").unwrap(),
        };
        let token = Token {
            address: "192.0.2.7:15012".parse().unwrap(),
            issuer: issuer.clone(),
            root: KeyPin::new(b"a key"),
            guest: identity("mysql"),
            expires: 0,
            secret: Secret::generate().unwrap(),
        };
        let session = |byte: u8, guest: &Guest| Exported([byte; 32]).about(token.id(), &issuer, guest);
        let here = session(1, &token.guest);
        let (id, proof) = presented(&bearer(token.id(), &token.secret.prove(&here))).unwrap();
        assert_eq!(id, token.id());
        let verifier = token.secret.verifier();
        assert!(verifier.admits(&here, &proof));
        assert!(!verifier.admits(&session(2, &token.guest), &proof), "another session");
        assert!(!verifier.admits(&session(1, &identity("root")), &proof), "another identity");
        for text in ["", ".", "x.y", &format!("{id}"), &format!("{id}."), &format!("{id}.AAAA")] {
            assert!(presented(text).is_none(), "{text}");
        }
    }
}
