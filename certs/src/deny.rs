//! Deny-lists: certificates and identities that a trust domain denies before they expire, by serial number or SPIFFE
//! ID. An authority of the domain signs the list; it is numbered and accompanies the bundle. Who can issue can deny.
//!
//! The signature is a DSSE envelope: the payload is signed together with its type, and there is no algorithm
//! field to forge. The signer's certificate comes with it.

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

/// The deny-list of one trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenyList {
    trust_domain: TrustDomain,
    sequence: u64,
    #[serde(default)]
    identities: BTreeSet<IdPattern>,
    /// Serial numbers, with the expiry of their certificates.
    #[serde(default)]
    serials: BTreeMap<Serial, Option<i64>>,
}

/// A certificate's serial number, read in any spelling (`4F:1B`, `4f1b`, `004F1B`) and written in one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial(String);

/// Not a serial number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a serial number; write it in hexadecimal, as `inspect` prints it")]
pub struct NoSerial(String);

impl FromStr for Serial {
    type Err = NoSerial;

    fn from_str(text: &str) -> Result<Self, NoSerial> {
        let digits: String = text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
        if digits.is_empty() || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(NoSerial(text.chars().take(64).collect()));
        }
        let number = digits.trim_start_matches('0');
        // Certificates have whole bytes.
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

/// The part of a chain that is denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    /// Its identity.
    Identity(IdPattern),
    /// The serial number of a certificate in it, the leaf or one that signed it.
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

/// Why a deny-list is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DenyError {
    /// Not a deny-list in an envelope.
    #[error("the deny-list cannot be read: {0}; get it from its domain again")]
    Malformed(String),
    /// It is the list of another trust domain.
    #[error("the deny-list is of {found}, not of {expected}; a domain can deny only its own identities")]
    OtherDomain {
        /// The trust domain in the list.
        found: TrustDomain,
        /// The expected trust domain.
        expected: TrustDomain,
    },
    /// Not signed by an authority of the domain.
    #[error(
        "the deny-list of {0} is not signed by an authority of its bundle; `isthmus-certs rotate` there signs it again"
    )]
    NotSigned(TrustDomain),
    /// Older than the list already known.
    #[error(
        "the deny-list of {domain} has sequence {found}, but {known} is known; an old list never replaces a newer one"
    )]
    Older {
        /// The trust domain.
        domain: TrustDomain,
        /// The sequence number of the list.
        found: u64,
        /// The sequence number already known.
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
    /// Makes an empty list.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self { trust_domain, sequence: 0, identities: BTreeSet::new(), serials: BTreeMap::new() }
    }

    /// The trust domain of the list.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The sequence number, which grows with each change.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The denied identities.
    pub fn identities(&self) -> impl Iterator<Item = &IdPattern> {
        self.identities.iter()
    }

    /// The denied serial numbers, hexadecimal, and when their certificates expire, if known.
    pub fn serials(&self) -> impl Iterator<Item = (&Serial, Option<OffsetDateTime>)> {
        let at = |seconds: i64| OffsetDateTime::from_unix_timestamp(seconds).ok();
        self.serials.iter().map(move |(serial, until)| (serial, until.and_then(at)))
    }

    /// Denies identities. Returns whether the entry is new.
    pub fn add_identity(&mut self, identity: IdPattern) -> bool {
        self.identities.insert(identity)
    }

    /// Denies a certificate by its serial number. Returns whether the entry is new.
    pub fn add_serial(&mut self, serial: Serial, until: Option<OffsetDateTime>) -> bool {
        self.serials.insert(serial, until.map(OffsetDateTime::unix_timestamp)).is_none()
    }

    /// Whether the certificate with this serial number is denied.
    pub fn has_serial(&self, serial: &str) -> bool {
        serial.parse().is_ok_and(|serial: Serial| self.serials.contains_key(&serial))
    }

    /// Removes an entry for identities. Returns whether it was there.
    pub fn remove_identity(&mut self, identity: &IdPattern) -> bool {
        self.identities.remove(identity)
    }

    /// Removes a serial number. Returns whether it was there.
    pub fn remove_serial(&mut self, serial: &Serial) -> bool {
        self.serials.remove(serial).is_some()
    }

    /// Drops serial numbers of expired certificates. Returns whether there were any.
    pub fn forget_expired(&mut self, now: OffsetDateTime) -> bool {
        let before = self.serials.len();
        self.serials.retain(|_, until| until.is_none_or(|until| until >= now.unix_timestamp()));
        self.serials.len() < before
    }

    /// Sets the sequence number of a changed list, which must be higher than before.
    pub(crate) fn renumber(&mut self, sequence: u64) {
        self.sequence = sequence;
    }

    pub(crate) fn denies(&self, id: &SpiffeId, serials: &[String]) -> Option<Denied> {
        let identity = self.identities.iter().find(|pattern| pattern.matches(id)).cloned();
        let serial = || serials.iter().find(|serial| self.has_serial(serial)).cloned();
        identity.map(Denied::Identity).or_else(|| serial().map(Denied::Serial))
    }

    /// Whether one of these serial numbers is denied.
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

    /// Reads a list that this side stores itself, without checking its signature.
    pub(crate) fn reopen(envelope: &[u8]) -> Result<Self, DenyError> {
        let malformed = |what: &dyn fmt::Display| DenyError::Malformed(what.to_string());
        let envelope: Envelope = serde_json::from_slice(envelope).map_err(|e| malformed(&e))?;
        let payload = STANDARD.decode(&envelope.payload).map_err(|e| malformed(&e))?;
        serde_json::from_slice(&payload).map_err(|e| malformed(&e))
    }

    /// Reads a signed list of `domain`. Its signer must be a root of `bundle`, or an authority signed by one of them
    /// and valid at `now`. The list must not be older than the known one, nor be signed by an authority which the
    /// known one denies.
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
            return Err(malformed(&"its payload type is not that of a deny-list"));
        }
        let payload = STANDARD.decode(&envelope.payload).map_err(|e| malformed(&e))?;
        let text = signed_text(&payload);
        let mut signers = envelope.signatures.iter().filter_map(|signature| signature.by(&text, bundle, now));
        // A denied authority must not remove its own entry.
        if !signers.any(|serial| known.is_none_or(|known| !known.has_serial(&serial))) {
            return Err(DenyError::NotSigned(domain.clone()));
        }
        // Parsed only now: an unsigned payload is not parsed at all.
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
    /// The serial number of the signer's certificate, if the signature is valid.
    fn by(&self, text: &[u8], bundle: &Bundle, now: UnixTime) -> Option<String> {
        let signature = STANDARD.decode(&self.sig).ok()?;
        let signer = CertificateDer::from(STANDARD.decode(&self.cert).ok()?);
        let key = EndEntityCert::try_from(&signer).ok()?;
        let verify = |algorithm| key.verify_signature(algorithm, text, &signature).is_ok();
        let is_good =
            is_authority_of(&signer, bundle, now) && crypto::algorithms().all.iter().copied().any(verify);
        is_good.then(|| Facts::read(&signer).ok()).flatten().map(|facts| facts.serial)
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
    // A cross-signed root of another domain may speak for that domain only.
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
