//! The crypto provider of this crate. It is passed to each configuration and never installed for the whole process:
//! that is not for a library to decide.

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, GetRandomFailed, WebPkiSupportedAlgorithms, aws_lc_rs};

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}

pub(crate) fn algorithms() -> WebPkiSupportedAlgorithms {
    PROVIDER.signature_verification_algorithms
}

/// Sixteen unpredictable bytes.
pub(crate) fn random() -> Result<[u8; 16], GetRandomFailed> {
    let mut bytes = [0; 16];
    PROVIDER.secure_random.fill(&mut bytes)?;
    Ok(bytes)
}

/// The three methods for handshake signatures that rustls requires of every verifier: whatever a verifier accepts, the
/// holder of the certificate must have its key.
macro_rules! signatures_are_checked {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &rustls::pki_types::CertificateDer<'_>,
            dss: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls12_signature(message, cert, dss, &crate::crypto::algorithms())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &rustls::pki_types::CertificateDer<'_>,
            dss: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls13_signature(message, cert, dss, &crate::crypto::algorithms())
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            crate::crypto::algorithms().supported_schemes()
        }
    };
}

pub(crate) use signatures_are_checked;
