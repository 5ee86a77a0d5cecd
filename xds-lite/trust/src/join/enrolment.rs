//! A first certificate by a token: TLS in which only the agent shows a certificate, and a proof of the token's secret
//! that is good in that one session. docs/decisions/0025 says why so. Not what is asked for over it: that is Istio's
//! certificate API (`issuing`, `enrol`).

mod guest;
mod host;

use std::fmt;
use std::time::Duration;

use isthmus_certs::{SpiffeId, Trust};
use tokio_rustls::rustls::{ConnectionCommon, Error};

use super::secret::{Proof, Session, TokenId};
use super::{CreateError, Guest, Maker, Party, Token, Tokens};
use isthmus_model::address::Target;

pub use guest::{Answer, Meeting, meet};
pub use host::{Admitted, Refused, TokenDesk};

/// What who has no certificate asks for in its hello (ALPN), and the version of all that follows.
pub const ALPN: &[u8] = b"isthmus-first/1";
/// The answer's metadata in which the agent proves the secret, too.
pub const PROOF: &str = "isthmus-proof";
const LABEL: &[u8] = b"EXPORTER-isthmus-first";

/// Keying material that both ends of one TLS session have, and nobody in between.
#[derive(Clone)]
pub struct Exported([u8; 32]);

impl Exported {
    /// Of a session whose handshake is over.
    ///
    /// # Errors
    /// It is not.
    pub fn of<D>(connection: &ConnectionCommon<D>) -> Result<Exported, Error> {
        connection.export_keying_material([0; 32], LABEL, None).map(Exported)
    }

    /// What both proofs are made over: this session, about this token, between these two.
    fn about(&self, id: TokenId, issuer: &Party, guest: &Guest) -> Session {
        Session::about(&self.0, &Token::context(id, issuer, guest))
    }
}

impl fmt::Debug for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exported(..)")
    }
}

/// Makes a token for the first certificate of one identity, which finds the agent at `address`. Another process may
/// be serving it. Waits for the store.
///
/// # Errors
/// Whatever the token would fail at later, and the store's faults.
pub fn create(
    trust: &Trust,
    issuer: Party,
    tokens: &dyn Tokens,
    address: Target,
    identity: SpiffeId,
    lifetime: Duration,
) -> Result<Token, CreateError> {
    Maker { trust, issuer, tokens }.make(address, Guest::Identity { identity }, lifetime)
}

/// How a token is presented: its name, and the proof.
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
    fn what_is_presented_is_good_in_its_session_for_its_token_only() {
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
            root: KeyPin::of(b"a key"),
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
