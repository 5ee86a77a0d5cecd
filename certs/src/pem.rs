//! Reads PEM files: certificates, keys, certificate requests and revocation lists. Nothing that looks like a block is
//! skipped in silence. `blocks` finds the blocks; verification is elsewhere.

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

/// Why a text is not the expected PEM. Of the text it quotes only the labels of blocks, never content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// One line is wrong.
    #[error("line {line}: {flaw}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        flaw: Flaw,
    },
    /// The expected content in another format.
    #[error("it is {form}, not PEM; convert it: {}", form.remedy(*.wanted))]
    Form {
        /// The format found.
        form: Form,
        /// The expected content.
        wanted: Wanted,
    },
    /// No block of the expected kind.
    #[error("there is no {wanted} in it{}; it must hold {}", Instead(.found.as_deref()), wanted.block())]
    Absent {
        /// The expected content.
        wanted: Wanted,
        /// The label of a block that is there instead.
        found: Option<String>,
    },
    /// The key is encrypted.
    #[error(
        "the private key is encrypted, which is not supported; decrypt it: `openssl pkey -in FILE -out NEW`"
    )]
    Encrypted,
    /// A key that TLS cannot use.
    #[error("the private key cannot be used; it must be P-256, P-384, Ed25519 or RSA")]
    UnusableKey,
}

/// What is wrong at a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Hyphens are missing, or letters are not upper case.
    #[error(
        "a BEGIN or END line is damaged; it must have five hyphens on each side, as in `-----BEGIN CERTIFICATE-----`"
    )]
    Marker,
    /// Text precedes a BEGIN.
    #[error(
        "other text precedes a BEGIN; put it on a line of its own, or start the line with # to disable it"
    )]
    Behind,
    /// The text ends, or the next block begins, before the END.
    #[error("the block that begins here has no END line; is the file truncated?")]
    NoEnd,
    /// An END without BEGIN.
    #[error("an END has no BEGIN; is the file truncated?")]
    NoBegin,
    /// Invalid characters in a block.
    #[error("a block has characters that are not base64; get the file from its source again")]
    Base64,
    /// Invalid base64 in a block.
    #[error("the block that begins here cannot be decoded; get the file from its source again")]
    Damaged,
    /// OpenSSL's own format, whose restrictions would be lost.
    #[error("TRUSTED CERTIFICATE is a format of OpenSSL only; convert it: `openssl x509 -in FILE -out NEW`")]
    Trusted,
    /// Certificates in a container.
    #[error("{0} is a container; extract its certificates: `openssl pkcs7 -in FILE -print_certs -out NEW`")]
    Container(String),
    /// An unknown label.
    #[error("{0:?} is not a known kind of block; correct its label, or remove the block")]
    Unknown(String),
    /// A second block where one is expected.
    #[error("a second {0} begins here; keep only one in the file")]
    Second(Wanted),
}

impl Flaw {
    fn at(self, line: usize) -> PemError {
        PemError::Line { line, flaw: self }
    }
}

/// The expected content of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Certificates.
    Certificate,
    /// One private key.
    Key,
    /// Revocation lists.
    RevocationList,
    /// One certificate request.
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

    /// The OpenSSL command that converts it.
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

/// The format of a text without PEM blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The binary encoding.
    Der,
    /// Key and certificates in one file.
    Pkcs12,
    /// UTF-16, as some editors save.
    Utf16,
}

impl Form {
    fn detect(text: &[u8]) -> Option<Self> {
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

/// The certificates of a PEM text, in their order; at least one.
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

/// The blocks of the expected kind; at least one. Blocks of other known kinds are ignored.
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
    match (all.is_empty(), instead, Form::detect(text)) {
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
        // The second label is that of old OpenSSL versions.
        "CERTIFICATE" | "X509 CERTIFICATE" => Some(Wanted::Certificate),
        "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" | "ENCRYPTED PRIVATE KEY" => Some(Wanted::Key),
        "X509 CRL" => Some(Wanted::RevocationList),
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => Some(Wanted::Request),
        _ => None,
    }
}

/// Whether a block of this label may accompany the expected ones.
fn is_known(label: &str) -> bool {
    kind_of(label).is_some()
        || ["PUBLIC KEY", "PARAMETERS", "PRIVATE KEY"].iter().any(|end| label.ends_with(end))
        || matches!(label, "TRUSTED CERTIFICATE" | "PKCS7" | "CMS" | "PKCS #7 SIGNED DATA")
}

/// The content of a block, decoded under this label.
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

/// Certificates as PEM, one text for each.
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

/// Writes certificates or bundles to a world-readable file, atomically.
pub fn write(path: &Path, text: &str) -> Result<(), WriteError> {
    files::write(path, text, PUBLIC)
}

/// A chain as it is sent: without self-issued certificates at the end, which are roots.
pub(crate) fn without_root(mut chain: Vec<CertificateDer<'static>>) -> Vec<CertificateDer<'static>> {
    while chain.last().is_some_and(|last| Facts::read(last).is_ok_and(|facts| facts.is_self_issued())) {
        chain.pop();
    }
    chain
}
