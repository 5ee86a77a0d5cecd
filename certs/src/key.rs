//! Key types of authorities and leaves, and the pins that identify keys.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A key type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// ECDSA on P-256, which every TLS implementation supports.
    #[default]
    P256,
    /// ECDSA on P-384.
    P384,
    /// Ed25519, which browsers and some load balancers do not support.
    Ed25519,
}

impl KeyKind {
    /// All key types.
    pub const ALL: [Self; 3] = [Self::P256, Self::P384, Self::Ed25519];

    /// Generates a key.
    pub fn generate(self) -> Result<KeyPair, rcgen::Error> {
        KeyPair::generate_for(match self {
            Self::P256 => &PKCS_ECDSA_P256_SHA256,
            Self::P384 => &PKCS_ECDSA_P384_SHA384,
            Self::Ed25519 => &PKCS_ED25519,
        })
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::P256 => "p256",
            Self::P384 => "p384",
            Self::Ed25519 => "ed25519",
        })
    }
}

/// Not a key type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a key type; write p256, p384 or ed25519")]
pub struct UnknownKind(String);

impl FromStr for KeyKind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|kind| kind.to_string() == text);
        found.ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

/// The SHA-256 of a public key (its SubjectPublicKeyInfo), written `sha256:BASE64` as HPKP and curl do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyPin([u8; 32]);

impl KeyPin {
    /// The pin of a key in DER, the whole SubjectPublicKeyInfo.
    pub fn new(public_key_info: &[u8]) -> Self {
        Self(Sha256::digest(public_key_info).into())
    }

    /// The hash itself.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for KeyPin {
    /// A pin from a stored hash.
    fn from(hash: [u8; 32]) -> Self {
        Self(hash)
    }
}

impl fmt::Display for KeyPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", STANDARD.encode(self.0))
    }
}

/// Not a pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a pin, which is sha256: and 44 characters; `inspect` prints that of a certificate's key"
)]
pub struct NoPin(String);

impl FromStr for KeyPin {
    type Err = NoPin;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = text.strip_prefix("sha256:").and_then(|rest| STANDARD.decode(rest).ok());
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| NoPin(text.chars().take(64).collect()))
    }
}

impl Serialize for KeyPin {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_types_and_pins_round_trip_as_text() {
        for kind in KeyKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("rsa".parse::<KeyKind>().is_err());
        let pin = KeyPin::new(b"a key");
        assert_eq!(pin.to_string().parse(), Ok(pin));
        for bad in ["", "sha256:", "sha256:AAAA", "sha1:AAAA", "sha256:????"] {
            assert!(bad.parse::<KeyPin>().is_err(), "{bad}");
        }
    }
}
