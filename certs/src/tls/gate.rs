//! Refuses clients within the handshake, by rules that the chain does not tell: a refused client gets the alert
//! access_denied instead of a closed connection.

use std::fmt::Debug;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, ServerConfig};

use super::ConfigError;
use super::chain::{ChainJudge, ChainVerifier};
use super::verifier::PeerJudge;
use crate::bundle::{Role, VerifyError};
use crate::crypto;
use crate::spiffe::SpiffeId;
use crate::svid::peer_id;

/// Decides about one client whose chain has verified.
///
/// A resumed session does not ask it: the caller must decide again once the handshake is complete.
pub trait Gate: Debug + Send + Sync {
    /// Whether the client may enter.
    fn admits(&self, client: &SpiffeId) -> bool;
}

/// A judge of chains with a gate behind it.
#[derive(Debug)]
struct Gated {
    judge: PeerJudge,
    gate: Arc<dyn Gate>,
}

impl ChainJudge for Gated {
    fn judge(&self, chain: &[CertificateDer<'_>], role: Role, now: UnixTime) -> Result<(), rustls::Error> {
        self.judge.judge(chain, role, now)?;
        let client = peer_id(chain).map_err(VerifyError::from)?;
        if self.gate.admits(&client) {
            Ok(())
        } else {
            // The only error that becomes the alert access_denied.
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }
}

/// The configuration of one handshake: as `shared`, with a gate. It shares the sessions, so that they can be resumed.
pub(super) fn gated(
    shared: &ServerConfig,
    judge: PeerJudge,
    gate: Arc<dyn Gate>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(crypto::provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(ChainVerifier(Gated { judge, gate })))
        .with_cert_resolver(Arc::clone(&shared.cert_resolver));
    config.alpn_protocols.clone_from(&shared.alpn_protocols);
    config.session_storage = Arc::clone(&shared.session_storage);
    config.send_tls13_tickets = shared.send_tls13_tickets;
    Ok(config)
}

impl ConfigError {
    pub(super) fn new(id: &SpiffeId, cause: rustls::Error) -> Self {
        Self { id: id.clone(), cause }
    }
}
