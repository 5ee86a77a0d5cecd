//! PEM files: certificates, keys, requests and revocation lists, and nothing quietly skipped that somebody meant.
//! Finding the blocks in a text is `blocks`; whether what they hold is to be believed is decided elsewhere.

mod blocks;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;

use ::pem::{EncodeConfig, LineEnding, Pem};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, CertificateSigningRequestDer, PrivateKeyDer,
};

use self::blocks::{Block, blocks};
use crate::facts::Facts;
use crate::files::{self, PUBLIC, WriteError};

/// Why a text is not the PEM that was expected. Nothing of the text is in it but the labels of blocks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// Something is wrong at one place.
    #[error("line {line}: {flaw}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        flaw: Flaw,
    },
    /// Another form of what was wanted.
    #[error("it is {form}, not PEM; convert it: {}", form.remedy(*.wanted))]
    Form {
        /// What it is.
        form: Form,
        /// What it was to hold.
        wanted: Wanted,
    },
    /// No block of the kind that was wanted.
    #[error("there is no {wanted} in it{}; it must hold {}", Instead(.found.as_deref()), wanted.block())]
    Absent {
        /// What it was to hold.
        wanted: Wanted,
        /// The label of a block that it holds instead.
        found: Option<String>,
    },
    /// A key behind a passphrase.
    #[error(
        "the private key is encrypted, and nobody can be asked for its passphrase; decrypt it: `openssl pkey -in FILE -out NEW`"
    )]
    Encrypted,
    /// A key that TLS cannot use.
    #[error("the private key cannot be used; it must be one of P-256, P-384, Ed25519 or RSA")]
    UnusableKey,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Hyphens are missing, or letters are not capitals.
    #[error(
        "a BEGIN or END line is damaged; it must have five hyphens on each side, as `-----BEGIN CERTIFICATE-----`"
    )]
    Marker,
    /// Text before it.
    #[error(
        "a BEGIN stands behind other text; give it a line of its own, or begin the line with # to leave it out"
    )]
    Behind,
    /// The text ends, or the next block begins.
    #[error("the block that begins here has no END line of its own; is the file cut off?")]
    NoEnd,
    /// The beginning is missing.
    #[error("an END has no BEGIN; is the file cut off?")]
    NoBegin,
    /// Other characters in a block.
    #[error("a block holds what is not base64; get the file again from where it was made")]
    Base64,
    /// The base64 does not end well.
    #[error("the block that begins here cannot be decoded; get the file again from where it was made")]
    Damaged,
    /// OpenSSL's form with its own restrictions, which would be lost.
    #[error(
        "TRUSTED CERTIFICATE is a form of OpenSSL alone; write it as a plain one: `openssl x509 -in FILE -out NEW`"
    )]
    Trusted,
    /// Certificates in a container.
    #[error(
        "{0} is a container; take the certificates out of it: `openssl pkcs7 -in FILE -print_certs -out NEW`"
    )]
    Container(String),
    /// A label that nobody knows.
    #[error("{0:?} is no known kind of block; correct its label, or take the block out")]
    Unknown(String),
    /// One is wanted.
    #[error("a second {0} begins here; leave one in the file")]
    Second(Wanted),
}

impl Flaw {
    fn at(self, line: usize) -> PemError {
        PemError::Line { line, flaw: self }
    }
}

/// What a text is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Certificates.
    Certificate,
    /// One private key.
    Key,
    /// Revocation lists.
    RevocationList,
    /// One request for a certificate.
    Request,
}

impl Wanted {
    fn block(self) -> &'static str {
        match self {
            Self::Certificate => "-----BEGIN CERTIFICATE----- blocks",
            Self::Key => "one -----BEGIN PRIVATE KEY----- block",
            Self::RevocationList => "-----BEGIN X509 CRL----- blocks",
            Self::Request => "one -----BEGIN CERTIFICATE REQUEST----- block",
        }
    }

    /// The command of OpenSSL that reads and writes it.
    fn command(self) -> &'static str {
        match self {
            Self::Certificate => "x509",
            Self::Key => "pkey",
            Self::RevocationList => "crl",
            Self::Request => "req",
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate",
            Self::Key => "private key",
            Self::RevocationList => "revocation list",
            Self::Request => "certificate request",
        })
    }
}

/// What a text without blocks is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The same in binary.
    Der,
    /// Key and certificates in one file.
    Pkcs12,
    /// As some editors save.
    Utf16,
}

impl Form {
    fn of(text: &[u8]) -> Option<Self> {
        match text {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [b'-', 0, ..] | [0, b'-', ..] => Some(Self::Utf16),
            [0x30, 0x82, _, _, 2, 1, 3, 0x30, ..] => Some(Self::Pkcs12),
            [0x30, 0x81..=0x83, ..] => Some(Self::Der),
            [0x30, length, rest @ ..] if usize::from(*length) == rest.len() => Some(Self::Der),
            _ => None,
        }
    }

    fn remedy(self, wanted: Wanted) -> String {
        match self {
            Self::Der => format!("`openssl {} -inform DER -in FILE -out NEW`", wanted.command()),
            Self::Pkcs12 => "`openssl pkcs12 -in FILE -nodes -out NEW`".to_owned(),
            Self::Utf16 => "`iconv -f UTF-16 -t UTF-8 FILE > NEW`".to_owned(),
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Der => "DER",
            Self::Pkcs12 => "PKCS#12",
            Self::Utf16 => "UTF-16",
        })
    }
}

struct Instead<'a>(Option<&'a str>);

impl fmt::Display for Instead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |label| write!(f, ", but a {label}"))
    }
}

/// The certificates of a PEM text, in its order; at least one.
pub fn certificates(text: impl AsRef<[u8]>) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let found = found(text.as_ref(), Wanted::Certificate)?;
    found.iter().map(|block| decoded(block, "CERTIFICATE")).collect()
}

/// The one private key of a PEM text.
pub fn key(text: impl AsRef<[u8]>) -> Result<PrivateKeyDer<'static>, PemError> {
    let block = only(text.as_ref(), Wanted::Key)?;
    match block.is_encrypted || block.label == "ENCRYPTED PRIVATE KEY" {
        true => Err(PemError::Encrypted),
        false => decoded(&block, block.label),
    }
}

/// The one request of a PEM text.
pub(crate) fn request(text: &[u8]) -> Result<CertificateSigningRequestDer<'static>, PemError> {
    decoded(&only(text, Wanted::Request)?, "CERTIFICATE REQUEST")
}

/// The revocation lists of a PEM text; at least one.
pub(crate) fn revocation_lists(text: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, PemError> {
    found(text, Wanted::RevocationList)?.iter().map(|block| decoded(block, "X509 CRL")).collect()
}

/// The blocks of the kind that is wanted; at least one. Others of a known kind are for others to read.
fn found(text: &[u8], wanted: Wanted) -> Result<Vec<Block<'_>>, PemError> {
    let mut all = blocks(text)?;
    let instead = all.first().map(|block| block.label.to_owned());
    for block in &all {
        let flaw = match (block.label, wanted) {
            ("TRUSTED CERTIFICATE", Wanted::Certificate) => Flaw::Trusted,
            ("PKCS7" | "CMS" | "PKCS #7 SIGNED DATA", Wanted::Certificate) => {
                Flaw::Container(block.label.to_owned())
            }
            (label, _) if !is_known(label) => Flaw::Unknown(label.to_owned()),
            _ => continue,
        };
        return Err(flaw.at(block.line));
    }
    all.retain(|block| kind_of(block.label) == Some(wanted));
    match (all.is_empty(), instead, Form::of(text)) {
        (false, ..) => Ok(all),
        (true, None, Some(form)) => Err(PemError::Form { form, wanted }),
        (true, found, _) => Err(PemError::Absent { wanted, found }),
    }
}

fn only(text: &[u8], wanted: Wanted) -> Result<Block<'_>, PemError> {
    let mut found = found(text, wanted)?.into_iter();
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (_, Some(second)) => Err(Flaw::Second(wanted).at(second.line)),
        (None, None) => Err(PemError::Absent { wanted, found: None }),
    }
}

fn kind_of(label: &str) -> Option<Wanted> {
    match label {
        // The second is what OpenSSL wrote long ago.
        "CERTIFICATE" | "X509 CERTIFICATE" => Some(Wanted::Certificate),
        "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" | "ENCRYPTED PRIVATE KEY" => Some(Wanted::Key),
        "X509 CRL" => Some(Wanted::RevocationList),
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => Some(Wanted::Request),
        _ => None,
    }
}

/// What may stand beside what is wanted.
fn is_known(label: &str) -> bool {
    kind_of(label).is_some()
        || ["PUBLIC KEY", "PARAMETERS", "PRIVATE KEY"].iter().any(|end| label.ends_with(end))
        || matches!(label, "TRUSTED CERTIFICATE" | "PKCS7" | "CMS" | "PKCS #7 SIGNED DATA")
}

/// What a block holds, read as one with this label.
fn decoded<T: PemObject>(block: &Block<'_>, label: &str) -> Result<T, PemError> {
    if !block.body.len().is_multiple_of(4) {
        return Err(Flaw::Damaged.at(block.line));
    }
    let [begin, end] = ["BEGIN", "END"].map(|word| format!("-----{word} {label}-----\n").into_bytes());
    let alone = [&begin, &block.body, &b"\n"[..], &end].concat();
    T::from_pem_slice(&alone).map_err(|_| Flaw::Damaged.at(block.line))
}

/// Certificates as PEM, in their order.
pub fn encode(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|der| encoded("CERTIFICATE", der)).collect()
}

/// Certificates as PEM, each a text of its own.
pub fn encode_each(certificates: &[CertificateDer<'_>]) -> Vec<String> {
    certificates.iter().map(|one| encode(std::slice::from_ref(one))).collect()
}

/// A private key as PEM.
pub(crate) fn encode_key(key: &PrivateKeyDer<'_>) -> String {
    let label = match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    encoded(label, key.secret_der())
}

fn encoded(label: &str, der: &[u8]) -> String {
    ::pem::encode_config(&Pem::new(label, der), EncodeConfig::new().set_line_ending(LineEnding::LF))
}

/// Writes certificates or bundles to a file that everybody may read: whole, or not at all.
pub fn write(path: &Path, text: &str) -> Result<(), WriteError> {
    files::write(path, text, PUBLIC)
}

/// A chain as it is sent: what is its own issuer at the end is the root, which a peer has or does not trust.
pub(crate) fn without_root(mut chain: Vec<CertificateDer<'static>>) -> Vec<CertificateDer<'static>> {
    while chain.last().is_some_and(|last| Facts::of(last).is_ok_and(|facts| facts.is_self_issued())) {
        chain.pop();
    }
    chain
}
