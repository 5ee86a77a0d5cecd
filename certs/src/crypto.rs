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
