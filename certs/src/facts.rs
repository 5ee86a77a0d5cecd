//! Reads the content of a certificate, for display, renewal and metrics. It proves nothing: `bundle` verifies chains.

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use crate::key::KeyPin;
use crate::printable::excerpt;

/// Longest text taken from a certificate, which anyone may have written.
pub(crate) const MAX_TEXT: usize = 256;

/// The content of a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// The subject, as in RFC 4514; empty in leaves issued by this crate.
    pub subject: String,
    /// The issuer named in it.
    pub issuer: String,
    /// The serial number, hexadecimal, lower case.
    pub serial: String,
    /// Start of its validity.
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    /// End of its validity.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
    /// URI names; one for a leaf, its SPIFFE ID.
    pub uris: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ips: Vec<IpAddr>,
    /// It may sign certificates.
    pub is_authority: bool,
    /// How many intermediates may be below it.
    pub path_length: Option<u32>,
    /// The key type, such as `ECDSA 256` or `RSA 2048`.
    pub key: String,
    /// The pin of its key.
    pub pin: KeyPin,
    /// SHA-256 of the whole certificate, hexadecimal.
    pub fingerprint: String,
    /// Its SubjectPublicKeyInfo, DER.
    #[serde(skip)]
    pub public_key: Vec<u8>,
    #[serde(skip)]
    issuer_name: Vec<u8>,
    #[serde(skip)]
    pub(crate) subject_name: Vec<u8>,
}

/// Not a readable certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the certificate cannot be read: {0}")]
pub struct Unreadable(String);

impl Facts {
    /// Reads a certificate.
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, Unreadable> {
        let unreadable = |error: &dyn std::fmt::Display| Unreadable(error.to_string());
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|e| unreadable(&e))?;
        let names = parsed.subject_alternative_name().map_err(|e| unreadable(&e))?;
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let constraints = parsed.basic_constraints().map_err(|e| unreadable(&e))?;
        let constraints = constraints.map(|constraints| constraints.value);
        let validity = parsed.validity();
        let public_key = parsed.public_key();
        Ok(Self {
            subject: excerpt(&parsed.subject().to_string(), MAX_TEXT),
            issuer: excerpt(&parsed.issuer().to_string(), MAX_TEXT),
            serial: serial_of(&parsed),
            not_before: validity.not_before.to_datetime(),
            not_after: validity.not_after.to_datetime(),
            uris: texts(names, |name| match name {
                GeneralName::URI(uri) => Some(uri),
                _ => None,
            }),
            dns: texts(names, |name| match name {
                GeneralName::DNSName(dns) => Some(dns),
                _ => None,
            }),
            ips: names.iter().filter_map(address).collect(),
            is_authority: constraints.is_some_and(|constraints| constraints.ca),
            path_length: constraints.and_then(|constraints| constraints.path_len_constraint),
            key: key_name(&public_key.parsed().map_err(|e| unreadable(&e))?),
            pin: KeyPin::new(public_key.raw),
            fingerprint: fingerprint(certificate),
            public_key: public_key.raw.to_vec(),
            issuer_name: parsed.issuer().as_raw().to_vec(),
            subject_name: parsed.subject().as_raw().to_vec(),
        })
    }

    /// Whether it is a self-issued authority.
    pub fn is_root(&self) -> bool {
        self.is_authority && self.is_self_issued()
    }

    /// Whether subject and issuer are equal, as in a root.
    pub(crate) fn is_self_issued(&self) -> bool {
        self.issuer_name == self.subject_name
    }
}

/// SHA-256 of a whole certificate, hexadecimal.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex(&Sha256::digest(certificate))
}

fn texts<'a>(
    names: &'a [GeneralName<'a>],
    of: impl Fn(&'a GeneralName<'a>) -> Option<&'a str>,
) -> Vec<String> {
    names.iter().filter_map(of).map(|text| excerpt(text, MAX_TEXT)).collect()
}

fn address(name: &GeneralName<'_>) -> Option<IpAddr> {
    let GeneralName::IPAddress(bytes) = name else { return None };
    let v4 = || <[u8; 4]>::try_from(*bytes).ok().map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from);
    v4().or_else(v6)
}

fn key_name(key: &PublicKey<'_>) -> String {
    match key {
        PublicKey::RSA(_) => format!("RSA {}", key.key_size()),
        PublicKey::EC(_) => format!("ECDSA {}", key.key_size()),
        PublicKey::Unknown(raw) if raw.len() == 32 => "Ed25519".to_owned(),
        _ => "unknown".to_owned(),
    }
}

/// Whether `certificate` is signed by the key of `issuer` and names it as its issuer.
pub(crate) fn is_signed_by(certificate: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> bool {
    let parsed = (X509Certificate::from_der(certificate), X509Certificate::from_der(issuer));
    let (Ok((_, certificate)), Ok((_, issuer))) = parsed else { return false };
    certificate.issuer().as_raw() == issuer.subject().as_raw()
        && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

/// The serial number as OpenSSL prints it, but in lower case: without a leading zero byte that only makes it positive.
pub(crate) fn serial_of(certificate: &X509Certificate<'_>) -> String {
    match certificate.raw_serial() {
        [0, rest @ ..] if !rest.is_empty() => hex(rest),
        all => hex(all),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
