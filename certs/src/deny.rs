//! Deny-lists: what a trust domain takes back before it expires, by serial number or by identity. A list is
//! signed by an authority of its domain, numbered, and travels beside the bundle. Who can issue can deny.
//!
//! The signature is a DSSE envelope: the payload is signed together with its type, and there is no algorithm
//! field to lie about. The signer's certificate comes with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use webpki::EndEntityCert;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::authority::{Authority, IssueError};
use crate::bundle::Bundle;
use crate::crypto;
use crate::facts::is_signed_by;
use crate::spiffe::{IdPattern, SpiffeId, TrustDomain};

const PAYLOAD_TYPE: &str = "application/vnd.isthmus.deny-list+json";

/// What one trust domain denies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenyList {
    trust_domain: TrustDomain,
    sequence: u64,
    #[serde(default)]
    identities: BTreeSet<IdPattern>,
    /// Serial number, and when its certificate expires by itself.
    #[serde(default)]
    serials: BTreeMap<String, Option<i64>>,
}

/// What of a chain is denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    /// Its identity.
    Identity(IdPattern),
    /// A certificate of it, the leaf or one that signed it.
    Serial(String),
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(pattern) => write!(f, "identity {pattern}"),
            Self::Serial(serial) => write!(f, "serial {serial}"),
        }
    }
}

/// Why a deny-list is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DenyError {
    /// Not an envelope, not a list.
    #[error("the deny-list cannot be read: {0}")]
    Malformed(String),
    /// It speaks for another domain than its place says.
    #[error("the deny-list is of {found}, not of {expected}; a domain denies only its own")]
    OtherDomain {
        /// What it says.
        found: TrustDomain,
        /// Whose it was to be.
        expected: TrustDomain,
    },
    /// Not signed by an authority of the domain.
    #[error(
        "the deny-list of {0} is not signed by an authority of its bundle; `isthmus-certs rotate` signs it anew"
    )]
    NotSigned(TrustDomain),
    /// Older than the one already known.
    #[error(
        "the deny-list of {domain} has sequence {found}, but {known} is known; an old list never replaces a newer one"
    )]
    Older {
        /// Whose it is.
        domain: TrustDomain,
        /// The number it has.
        found: u64,
        /// The number already seen.
        known: u64,
    },
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    #[serde(rename = "payloadType")]
    payload_type: String,
    payload: String,
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
struct Signature {
    sig: String,
    /// The signer's certificate, DER.
    cert: String,
}

impl DenyList {
    /// Denies nothing yet.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self { trust_domain, sequence: 0, identities: BTreeSet::new(), serials: BTreeMap::new() }
    }

    /// Whose list it is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Grows with each change.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The identities that are denied.
    pub fn identities(&self) -> impl Iterator<Item = &IdPattern> {
        self.identities.iter()
    }

    /// The serial numbers that are denied, hexadecimal, and when their certificates expire, if known.
    pub fn serials(&self) -> impl Iterator<Item = (&str, Option<OffsetDateTime>)> {
        let at = |seconds: i64| OffsetDateTime::from_unix_timestamp(seconds).ok();
        self.serials.iter().map(move |(serial, until)| (serial.as_str(), until.and_then(at)))
    }

    /// Denies identities. Says whether that is new.
    pub fn add_identity(&mut self, identity: IdPattern) -> bool {
        self.identities.insert(identity)
    }

    /// Denies a certificate by its serial number. Says whether that is new.
    pub fn add_serial(&mut self, serial: &str, until: Option<OffsetDateTime>) -> bool {
        self.serials.insert(normal(serial), until.map(OffsetDateTime::unix_timestamp)).is_none()
    }

    /// Whether the certificate with this serial number is denied.
    pub fn has_serial(&self, serial: &str) -> bool {
        self.serials.contains_key(&normal(serial))
    }

    /// No longer denies these identities. Says whether they were denied.
    pub fn remove_identity(&mut self, identity: &IdPattern) -> bool {
        self.identities.remove(identity)
    }

    /// No longer denies this serial number. Says whether it was denied.
    pub fn remove_serial(&mut self, serial: &str) -> bool {
        self.serials.remove(&normal(serial)).is_some()
    }

    /// Forgets serial numbers whose certificates have expired. Says whether there were any.
    pub fn forget_expired(&mut self, now: OffsetDateTime) -> bool {
        let before = self.serials.len();
        self.serials.retain(|_, until| until.is_none_or(|until| until >= now.unix_timestamp()));
        self.serials.len() < before
    }

    /// Gives a changed list its next number, which must be higher.
    pub(crate) fn renumber(&mut self, sequence: u64) {
        self.sequence = sequence;
    }

    pub(crate) fn denies(&self, id: &SpiffeId, serials: &[String]) -> Option<Denied> {
        let identity = self.identities.iter().find(|pattern| pattern.matches(id)).cloned();
        let serial = || serials.iter().find(|serial| self.has_serial(serial)).cloned();
        identity.map(Denied::Identity).or_else(|| serial().map(Denied::Serial))
    }

    /// The list as an envelope signed by an authority of its domain.
    pub fn sign(&self, authority: &Authority) -> Result<String, IssueError> {
        let payload = serde_json::to_vec(self).map_err(|e| IssueError::External(e.into()))?;
        let signature = authority.sign_bytes(&signed_text(&payload))?;
        let envelope = Envelope {
            payload_type: PAYLOAD_TYPE.to_owned(),
            payload: STANDARD.encode(&payload),
            signatures: vec![Signature {
                sig: STANDARD.encode(signature),
                cert: STANDARD.encode(authority.certificate()),
            }],
        };
        serde_json::to_string_pretty(&envelope).map_err(|e| IssueError::External(e.into()))
    }

    /// Reads a signed list of `domain`, whose signer must be a root of `bundle`, or an authority that one of
    /// them signed and that is valid at `now`.
    pub fn open(
        envelope: &[u8],
        domain: &TrustDomain,
        bundle: &Bundle,
        now: UnixTime,
    ) -> Result<Self, DenyError> {
        let malformed = |what: &dyn fmt::Display| DenyError::Malformed(what.to_string());
        let envelope: Envelope = serde_json::from_slice(envelope).map_err(|e| malformed(&e))?;
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(malformed(&"it is an envelope of something else"));
        }
        let payload = STANDARD.decode(&envelope.payload).map_err(|e| malformed(&e))?;
        let text = signed_text(&payload);
        if !envelope.signatures.iter().any(|signature| signature.is_good(&text, bundle, now)) {
            return Err(DenyError::NotSigned(domain.clone()));
        }
        // Only now: what nobody vouches for is not even parsed.
        let list: Self = serde_json::from_slice(&payload).map_err(|e| malformed(&e))?;
        if list.trust_domain != *domain {
            return Err(DenyError::OtherDomain { found: list.trust_domain, expected: domain.clone() });
        }
        Ok(list)
    }
}

impl Signature {
    fn is_good(&self, text: &[u8], bundle: &Bundle, now: UnixTime) -> bool {
        let (Ok(signature), Ok(signer)) = (STANDARD.decode(&self.sig), STANDARD.decode(&self.cert)) else {
            return false;
        };
        let signer = CertificateDer::from(signer);
        let Ok(key) = EndEntityCert::try_from(&signer) else { return false };
        let algorithms = crypto::algorithms().all;
        is_authority_of(&signer, bundle, now)
            && algorithms.iter().any(|algorithm| key.verify_signature(*algorithm, text, &signature).is_ok())
    }
}

fn is_authority_of(signer: &CertificateDer<'_>, bundle: &Bundle, now: UnixTime) -> bool {
    if bundle.roots().contains(signer) {
        return true;
    }
    let Ok((_, parsed)) = X509Certificate::from_der(signer) else { return false };
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = parsed.validity();
    let is_valid = validity.not_before.timestamp() <= now && now <= validity.not_after.timestamp();
    let may_sign = matches!(parsed.key_usage(), Ok(Some(usage)) if usage.value.key_cert_sign());
    is_valid && parsed.is_ca() && may_sign && bundle.roots().iter().any(|root| is_signed_by(signer, root))
}

/// DSSE's pre-authentication encoding: type and payload, each with its length before it.
fn signed_text(payload: &[u8]) -> Vec<u8> {
    let mut text = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).into_bytes();
    text.extend_from_slice(payload);
    text
}

/// As `openssl x509 -serial` prints it, or as `inspect` does.
fn normal(serial: &str) -> String {
    serial.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests;
