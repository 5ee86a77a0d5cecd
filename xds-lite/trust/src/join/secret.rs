//! Derives the id, the verifier and the proofs of a token's secret. Pure.
//!
//! The side that made the token stores only a [`Verifier`]. As in SCRAM (RFC 5802), it suffices to check the
//! joiner's proof and to answer it, but not to make one: a thief of the stored tokens cannot join. SCRAM's
//! salt and iterations are for passwords; 128 random bits need neither.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::text;

/// Bytes of a secret.
pub(super) const SECRET: usize = 16;

/// 128 random bits, which `Debug` hides.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret([u8; SECRET]);

/// Identifies a token without revealing its secret. It cannot be guessed, and travels inside TLS only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId(u128);

/// What the side that made a token stores of its secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verifier {
    /// The hash of the key for the joiner's proof.
    #[serde(with = "text::bytes")]
    joiner: [u8; 32],
    /// The key for the issuer's proof.
    #[serde(with = "text::bytes")]
    issuer: [u8; 32],
}

/// Exported keying material: the same at both ends of one TLS session, and in no other session.
pub(super) struct Session(pub(super) [u8; 32]);

impl Session {
    /// A session whose proofs also cover `what`.
    pub(super) fn about(exported: &[u8; 32], what: &[u8]) -> Session {
        Session(mac(exported, what))
    }
}

/// Proves knowledge of the secret, for one session.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Proof(#[serde(with = "text::bytes")] [u8; 32]);

impl Secret {
    /// A new random secret.
    pub(super) fn generate() -> Result<Secret, Unspecified> {
        let mut bytes = [0; SECRET];
        rand::fill(&mut bytes)?;
        Ok(Secret(bytes))
    }

    pub(super) fn from_bytes(bytes: [u8; SECRET]) -> Secret {
        Secret(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8; SECRET] {
        &self.0
    }

    pub(super) fn id(&self) -> TokenId {
        let mac = mac(&self.0, b"isthmus-join id");
        TokenId(mac.iter().take(16).fold(0, |id, byte| (id << 8) | u128::from(*byte)))
    }

    pub(super) fn verifier(&self) -> Verifier {
        Verifier { joiner: Sha256::digest(self.joiner()).into(), issuer: self.issuer() }
    }

    fn joiner(&self) -> [u8; 32] {
        mac(&self.0, b"isthmus-join joiner")
    }

    fn issuer(&self) -> [u8; 32] {
        mac(&self.0, b"isthmus-join issuer")
    }

    /// The joiner's proof.
    pub(super) fn prove(&self, session: &Session) -> Proof {
        Proof(xor(self.joiner(), mac(&self.verifier().joiner, &session.0)))
    }

    /// Whether the issuer's proof is valid.
    pub(super) fn admits(&self, session: &Session, proof: &Proof) -> bool {
        verify_slices_are_equal(&mac(&self.issuer(), &session.0), &proof.0).is_ok()
    }
}

impl Verifier {
    /// Whether the joiner's proof is valid.
    pub(super) fn admits(&self, session: &Session, proof: &Proof) -> bool {
        let joiner = xor(proof.0, mac(&self.joiner, &session.0));
        verify_slices_are_equal(&Sha256::digest(joiner), &self.joiner).is_ok()
    }

    /// The issuer's proof.
    pub(super) fn prove(&self, session: &Session) -> Proof {
        Proof(mac(&self.issuer, &session.0))
    }
}

fn mac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    let mut bytes = [0; 32];
    for (to, from) in bytes.iter_mut().zip(tag.as_ref()) {
        *to = *from;
    }
    bytes
}

fn xor(mut one: [u8; 32], other: [u8; 32]) -> [u8; 32] {
    for (to, from) in one.iter_mut().zip(other) {
        *to ^= from;
    }
    one
}

impl Proof {
    /// The proof as base64url text.
    pub(super) fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// Parses [`Proof::to_text`].
    pub(super) fn from_text(text: &str) -> Option<Proof> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        bytes.try_into().ok().map(Proof)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session(..)")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(..)")
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proof(..)")
    }
}

impl TokenId {
    /// The first digits, for lists and logs: too few to identify the token to an agent.
    #[must_use]
    pub fn short(&self) -> String {
        format!("{:08x}", self.0 >> 96)
    }

    pub(super) fn to_be_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

/// 32 hexadecimal digits in lower case.
impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenId({}..)", self.short())
    }
}

/// The text is not a token id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token id is 32 lower-case hexadecimal digits")]
pub struct NoTokenId;

impl FromStr for TokenId {
    type Err = NoTokenId;

    fn from_str(text: &str) -> Result<TokenId, NoTokenId> {
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number = u128::from_str_radix(text, 16).ok().filter(|_| digits && text.len() == 32);
        number.map(TokenId).ok_or(NoTokenId)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn proof_is_valid_for_its_session_secret_and_direction_only() {
        let [secret, other] = [7, 8].map(|byte| Secret([byte; SECRET]));
        let [session, next] = [1, 2].map(|byte| Session([byte; 32]));
        let verifier = secret.verifier();
        let (joiner, issuer) = (secret.prove(&session), verifier.prove(&session));
        assert!(verifier.admits(&session, &joiner) && secret.admits(&session, &issuer));
        assert!(!verifier.admits(&next, &joiner) && !secret.admits(&next, &issuer), "another session");
        assert!(!other.verifier().admits(&session, &joiner) && !other.admits(&session, &issuer));
        assert!(!verifier.admits(&session, &issuer) && !secret.admits(&session, &joiner), "reflected");
    }

    #[test]
    fn verifier_cannot_make_the_joiners_proof() {
        let secret = Secret([7; SECRET]);
        let (verifier, session) = (secret.verifier(), Session([1; 32]));
        // All that a thief of the file can try: either half of it in the joiner's place.
        for key in [verifier.joiner, verifier.issuer] {
            let forged = Proof(xor(key, mac(&verifier.joiner, &session.0)));
            assert!(!verifier.admits(&session, &forged));
        }
        assert_eq!(format!("{secret:?} {verifier:?}"), "Secret(..) Verifier(..)");
    }

    #[test]
    fn token_id_is_parsed_in_its_canonical_form_only() {
        let id = Secret([7; SECRET]).id();
        assert_eq!(id.to_string().parse(), Ok(id));
        let long = format!("0{id}");
        let upper = id.to_string().to_uppercase();
        let signed = format!("+{:.31}", id.to_string());
        for bad in ["", "..", "../../etc/passwd", long.as_str(), upper.as_str(), signed.as_str()] {
            assert_eq!(bad.parse::<TokenId>(), Err(NoTokenId), "{bad}");
        }
        assert!(!format!("{id:?}").contains(&id.to_string()));
    }

    proptest! {
        #[test]
        fn proof_with_a_changed_bit_is_invalid(byte in 0..32_usize, bit in 0..8_u32) {
            let (secret, session) = (Secret([7; SECRET]), Session([1; 32]));
            let mut proof = secret.prove(&session);
            proof.0[byte] ^= 1 << bit;
            prop_assert!(!secret.verifier().admits(&session, &proof));
        }
    }
}
