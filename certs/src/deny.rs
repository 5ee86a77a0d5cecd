//! Deny-lists: what a trust domain takes back before it expires, by serial number or by identity. A list is
//! signed by an authority of its domain, numbered, and travels beside the bundle. Who can issue can deny.
//!
//! The signature is a DSSE envelope: the payload is signed together with its type, and there is no algorithm
//! field to lie about. The signer's certificate comes with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

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
use crate::facts::{Facts, is_signed_by};
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
    serials: BTreeMap<Serial, Option<i64>>,
}

/// A certificate's serial number, read in any spelling (`4F:1B`, `4f1b`, `004F1B`) and written in one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial(String);

/// A text that is no serial number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no serial number; write it in hexadecimal, as `inspect` prints it")]
pub struct NoSerial(String);

impl FromStr for Serial {
    type Err = NoSerial;

    fn from_str(text: &str) -> Result<Self, NoSerial> {
        let digits: String = text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
        if digits.is_empty() || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(NoSerial(text.chars().take(64).collect()));
        }
        let number = digits.trim_start_matches('0');
        // Whole bytes, as certificates have them.
        Ok(Self(if number.len().is_multiple_of(2) { number.to_owned() } else { format!("0{number}") }))
    }
}

impl TryFrom<String> for Serial {
    type Error = NoSerial;

    fn try_from(text: String) -> Result<Self, NoSerial> {
        text.parse()
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> Self {
        serial.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
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
    #[error("the deny-list cannot be read: {0}; get it again from its domain")]
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
    pub fn serials(&self) -> impl Iterator<Item = (&Serial, Option<OffsetDateTime>)> {
        let at = |seconds: i64| OffsetDateTime::from_unix_timestamp(seconds).ok();
        self.serials.iter().map(move |(serial, until)| (serial, until.and_then(at)))
    }

    /// Denies identities. Says whether that is new.
    pub fn add_identity(&mut self, identity: IdPattern) -> bool {
        self.identities.insert(identity)
    }

    /// Denies a certificate by its serial number. Says whether that is new.
    pub fn add_serial(&mut self, serial: Serial, until: Option<OffsetDateTime>) -> bool {
        self.serials.insert(serial, until.map(OffsetDateTime::unix_timestamp)).is_none()
    }

    /// Whether the certificate with this serial number is denied.
    pub fn has_serial(&self, serial: &str) -> bool {
        serial.parse().is_ok_and(|serial: Serial| self.serials.contains_key(&serial))
    }

    /// No longer denies these identities. Says whether they were denied.
    pub fn remove_identity(&mut self, identity: &IdPattern) -> bool {
        self.identities.remove(identity)
    }

    /// No longer denies this serial number. Says whether it was denied.
    pub fn remove_serial(&mut self, serial: &Serial) -> bool {
        self.serials.remove(serial).is_some()
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

    /// Whether one of these serial numbers is on it.
    pub(crate) fn denies_any(&self, serials: &[String]) -> bool {
        serials.iter().any(|serial| self.has_serial(serial))
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

    /// Reads a list that this side keeps itself, whoever signed it and however long ago.
    pub(crate) fn reopen(envelope: &[u8]) -> Result<Self, DenyError> {
        let malformed = |what: &dyn fmt::Display| DenyError::Malformed(what.to_string());
        let envelope: Envelope = serde_json::from_slice(envelope).map_err(|e| malformed(&e))?;
        let payload = STANDARD.decode(&envelope.payload).map_err(|e| malformed(&e))?;
        serde_json::from_slice(&payload).map_err(|e| malformed(&e))
    }

    /// Reads a signed list of `domain`, whose signer must be a root of `bundle`, or an authority that one of
    /// them signed and that is valid at `now`. It must not be older than the one that is known, nor signed by
    /// somebody whom that one denies.
    pub fn open(
        envelope: &[u8],
        domain: &TrustDomain,
        bundle: &Bundle,
        now: UnixTime,
        known: Option<&Self>,
    ) -> Result<Self, DenyError> {
        let malformed = |what: &dyn fmt::Display| DenyError::Malformed(what.to_string());
        let envelope: Envelope = serde_json::from_slice(envelope).map_err(|e| malformed(&e))?;
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(malformed(&"it is an envelope of something else"));
        }
        let payload = STANDARD.decode(&envelope.payload).map_err(|e| malformed(&e))?;
        let text = signed_text(&payload);
        let mut signers = envelope.signatures.iter().filter_map(|signature| signature.by(&text, bundle, now));
        // Who was denied does not take that back.
        if !signers.any(|serial| known.is_none_or(|known| !known.has_serial(&serial))) {
            return Err(DenyError::NotSigned(domain.clone()));
        }
        // Only now: what nobody vouches for is not even parsed.
        let list: Self = serde_json::from_slice(&payload).map_err(|e| malformed(&e))?;
        if list.trust_domain != *domain {
            return Err(DenyError::OtherDomain { found: list.trust_domain, expected: domain.clone() });
        }
        match known {
            Some(known) if list.sequence < known.sequence => Err(DenyError::Older {
                domain: list.trust_domain,
                found: list.sequence,
                known: known.sequence,
            }),
            _ => Ok(list),
        }
    }
}

impl Signature {
    /// The serial number of its signer's certificate, if it is good.
    fn by(&self, text: &[u8], bundle: &Bundle, now: UnixTime) -> Option<String> {
        let signature = STANDARD.decode(&self.sig).ok()?;
        let signer = CertificateDer::from(STANDARD.decode(&self.cert).ok()?);
        let key = EndEntityCert::try_from(&signer).ok()?;
        let verify = |algorithm| key.verify_signature(algorithm, text, &signature).is_ok();
        let is_good =
            is_authority_of(&signer, bundle, now) && crypto::algorithms().all.iter().copied().any(verify);
        is_good.then(|| Facts::of(&signer).ok()).flatten().map(|facts| facts.serial)
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
    // Another domain's root that one of these signed may speak for that domain only.
    let is_whole = matches!(parsed.name_constraints(), Ok(None));
    is_valid
        && is_whole
        && parsed.is_ca()
        && may_sign
        && bundle.roots().iter().any(|root| is_signed_by(signer, root))
}

/// DSSE's pre-authentication encoding: type and payload, each with its length before it.
fn signed_text(payload: &[u8]) -> Vec<u8> {
    let mut text = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).into_bytes();
    text.extend_from_slice(payload);
    text
}

#[cfg(test)]
mod tests;
