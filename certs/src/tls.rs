//! rustls configurations in which both ends show a certificate and each verifies the other's SPIFFE ID
//! before any application byte. Not for plain web TLS: a server's DNS names are not looked at.
//!
//! Resumption is off: a resumed session would skip the check of a peer that is no longer trusted.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig,
    SignatureScheme,
};

use crate::bundle::{Role, TrustBundles, VerifyError};
use crate::crypto;
use crate::identity::Identity;
use crate::spiffe::{SpiffeId, TrustDomain};

/// Whom to talk to, among those whose chains verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Every identity of one trust domain.
    Domain(TrustDomain),
    /// These identities only, compared exactly. An empty list allows nobody.
    Ids(Vec<SpiffeId>),
}

/// A configuration could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a TLS configuration for {id}; its certificate and key must belong together")]
pub struct ConfigError {
    id: SpiffeId,
    #[source]
    cause: rustls::Error,
}

/// A server that shows `identity` and demands a client certificate of an `allowed` peer (TLS 1.2 and 1.3).
///
/// ALPN is the caller's to set, in `alpn_protocols`.
pub fn server_config(
    identity: &Identity,
    bundles: Arc<TrustBundles>,
    allowed: Peer,
) -> Result<ServerConfig, ConfigError> {
    let verifier = Arc::new(PeerVerifier { bundles, peer: allowed });
    let made = ServerConfig::builder_with_provider(crypto::provider())
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_client_cert_verifier(verifier)
                .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        });
    let mut config = made.map_err(|cause| ConfigError { id: identity.id.clone(), cause })?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A client that shows `identity` and accepts only servers that prove to be `expected` (TLS 1.2 and 1.3).
///
/// The name given when connecting is sent as SNI and is otherwise without meaning.
pub fn client_config(
    identity: &Identity,
    bundles: Arc<TrustBundles>,
    expected: Peer,
) -> Result<ClientConfig, ConfigError> {
    let verifier = Arc::new(PeerVerifier { bundles, peer: expected });
    let made = ClientConfig::builder_with_provider(crypto::provider())
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
        });
    let mut config = made.map_err(|cause| ConfigError { id: identity.id.clone(), cause })?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

impl VerifyError {
    /// Why this side refused the peer, where that is what a TLS error is about.
    ///
    /// An `io::Error` of tokio-rustls holds the TLS error: `e.get_ref()?.downcast_ref::<rustls::Error>()`.
    pub fn of(error: &rustls::Error) -> Option<&Self> {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(why))) => {
                why.downcast_ref::<Self>()
            }
            _ => None,
        }
    }
}

/// What [`client_config`] verifies servers with, for clients that are put together otherwise.
#[must_use]
pub fn server_verifier(bundles: Arc<TrustBundles>, expected: Peer) -> Arc<dyn ServerCertVerifier> {
    Arc::new(PeerVerifier { bundles, peer: expected })
}

impl From<VerifyError> for rustls::Error {
    fn from(why: VerifyError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
    }
}

impl Peer {
    fn admits(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Domain(domain) => id.trust_domain() == domain,
            Self::Ids(ids) => ids.contains(id),
        }
    }
}

#[derive(Debug)]
struct PeerVerifier {
    bundles: Arc<TrustBundles>,
    peer: Peer,
}

impl PeerVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), VerifyError> {
        let chain: Vec<_> = std::iter::once(leaf).chain(intermediates).cloned().collect();
        let id = self.bundles.verify(&chain, role, now)?;
        if self.peer.admits(&id) { Ok(()) } else { Err(VerifyError::Unexpected(id)) }
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, Role::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &crypto::algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &crypto::algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto::algorithms().supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    /// None: a hint would tell strangers which domains are trusted, and make some clients send nothing.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, Role::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &crypto::algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &crypto::algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto::algorithms().supported_schemes()
    }
}

#[cfg(test)]
mod tests;
