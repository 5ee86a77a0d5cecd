//! PEM files: certificates in order, and nothing quietly skipped that somebody meant. Keys are read by
//! what uses them.

use std::path::Path;

use ::pem::{EncodeConfig, LineEnding, Pem};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{Error, PemObject as _};

use crate::facts::Facts;
use crate::files::{self, PUBLIC, WriteError};

/// Why a text is not the PEM that was expected.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// A block that does not decode.
    #[error("a PEM block cannot be read: {0}; get the file again from where it was made")]
    Malformed(Error),
    /// No block of certificates.
    #[error("there is no certificate in it; it must hold -----BEGIN CERTIFICATE----- blocks")]
    NoCertificate,
    /// No private key.
    #[error(
        "there is no private key in it that can be used; it must hold one -----BEGIN PRIVATE KEY----- block"
    )]
    Key,
}

/// The certificates of a PEM text, in its order; at least one.
pub fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match all {
        Ok(all) if all.is_empty() => Err(PemError::NoCertificate),
        Ok(all) => Ok(all),
        Err(error) => Err(PemError::Malformed(error)),
    }
}

/// Certificates as PEM, in their order.
pub fn encode(certificates: &[CertificateDer<'_>]) -> String {
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    let blocks = certificates.iter().map(|der| Pem::new("CERTIFICATE", der.to_vec()));
    blocks.map(|block| ::pem::encode_config(&block, config)).collect()
}

/// Certificates as PEM, each a text of its own.
pub fn encode_each(certificates: &[CertificateDer<'_>]) -> Vec<String> {
    certificates.iter().map(|one| encode(std::slice::from_ref(one))).collect()
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
