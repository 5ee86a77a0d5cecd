//! Reads the SPIFFE ID that a leaf certificate claims, by the rules of the X.509-SVID standard. It proves nothing:
//! `bundle` verifies the claim.

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::spiffe::{SpiffeId, SpiffeIdError};

/// The tag of a URI among general names, for URIs that are not valid text.
const URI_TAG: u32 = 6;

/// Why a certificate is not the leaf of a SPIFFE identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// The peer presented none.
    #[error("no certificate; the peer must present one with a SPIFFE ID")]
    NoCertificate,
    /// Not an X.509 certificate, or an extension occurs twice.
    #[error("the certificate cannot be read: {0}; issue a new one")]
    Malformed(String),
    /// No URI name, or several.
    #[error("the certificate has {0} URI names; it must have exactly one, its SPIFFE ID")]
    UriNames(usize),
    /// The URI name is not a SPIFFE ID.
    #[error("the certificate's URI name is not a SPIFFE ID: {0}")]
    Id(SpiffeIdError),
    /// The ID has no path.
    #[error("the certificate claims {0}, a whole trust domain; a leaf's SPIFFE ID needs a path")]
    NoPath(SpiffeId),
    /// An authority, or a key that may sign certificates.
    #[error("the certificate is an authority; a leaf must not be able to sign certificates")]
    Authority,
    /// Key usage without digital signature.
    #[error("the certificate's key usage lacks digitalSignature; TLS needs it")]
    KeyUsage,
}

/// The SPIFFE ID that the first certificate of a chain claims.
///
/// Give it only chains that a handshake has verified (`peer_certificates()` of a connection made with this
/// crate's configurations): it checks the leaf's form, not who signed it.
pub fn peer_id(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, SvidError> {
    let leaf = chain.first().ok_or(SvidError::NoCertificate)?;
    let malformed = |e: &dyn std::error::Error| SvidError::Malformed(e.to_string());
    let (rest, leaf) = X509Certificate::from_der(leaf).map_err(|e| malformed(&e))?;
    if !rest.is_empty() {
        return Err(SvidError::Malformed("bytes follow it".to_owned()));
    }
    if leaf.basic_constraints().map_err(|e| malformed(&e))?.is_some_and(|b| b.value.ca) {
        return Err(SvidError::Authority);
    }
    // webpki leaves key usage to us.
    if let Some(usage) = leaf.key_usage().map_err(|e| malformed(&e))? {
        if usage.value.key_cert_sign() || usage.value.crl_sign() {
            return Err(SvidError::Authority);
        }
        if !usage.value.digital_signature() {
            return Err(SvidError::KeyUsage);
        }
    }
    let names = leaf.subject_alternative_name().map_err(|e| malformed(&e))?;
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let id = SpiffeId::parse(only_uri(names)?).map_err(SvidError::Id)?;
    if id.path().is_empty() {
        return Err(SvidError::NoPath(id));
    }
    Ok(id)
}

fn only_uri<'a>(names: &[GeneralName<'a>]) -> Result<&'a str, SvidError> {
    let uris: Vec<_> = names.iter().filter(|name| is_uri(name)).collect();
    match uris.as_slice() {
        [GeneralName::URI(uri)] => Ok(uri),
        [_] => Err(SvidError::Malformed("its URI name is not ASCII text".to_owned())),
        _ => Err(SvidError::UriNames(uris.len())),
    }
}

fn is_uri(name: &GeneralName<'_>) -> bool {
    match name {
        GeneralName::URI(_) => true,
        GeneralName::Invalid(tag, _) => tag.0 == URI_TAG,
        _ => false,
    }
}
