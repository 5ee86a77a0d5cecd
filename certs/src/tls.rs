//! rustls configurations for mutual TLS: both ends present a certificate and verify each other's SPIFFE ID before any
//! application byte. Not for plain web TLS: DNS names of a server are checked only for [`Peer::Name`]. Keys are never
//! logged.

mod chain;
mod gate;
mod live;
mod sessions;
mod standing;
mod verifier;

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::DnsName;
use rustls::server::NoServerSessionStorage;
use rustls::{CertificateError, ClientConfig, OtherError, ServerConfig};

use crate::bundle::{Proven, TrustBundles, VerifyError};
use crate::crypto;
use crate::identity::Identity;
use crate::key::KeyPin;
use crate::spiffe::{IdPattern, SpiffeId, TrustDomain};
use verifier::PeerJudge;

pub use chain::{ChainJudge, ChainVerifier};
pub use gate::{Gate, behind};
pub use live::{Client, Server};
pub use standing::Standing;

/// The peers to accept, among those whose chains verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Every identity of every domain with a bundle: for a server that checks each identity itself.
    Trusted,
    /// Every identity of one trust domain.
    Domain(TrustDomain),
    /// These identities only, compared exactly. An empty list accepts no peer.
    Ids(Vec<SpiffeId>),
    /// Identities that match one of these patterns.
    Matching(Vec<IdPattern>),
    /// A peer signed by the intermediate with this key. For clusters under a shared root, where each intermediate can
    /// sign every identity.
    Pinned {
        /// The pin of the intermediate's key.
        issuer: KeyPin,
        /// The peers to accept among those that it signed.
        peer: Box<Self>,
    },
    /// A server verified by its DNS name alone, such as istiod, without a SPIFFE ID. Accepts no client.
    Name {
        /// The trust domain whose roots must have signed it.
        domain: TrustDomain,
        /// The name, which is also sent as SNI.
        name: DnsName<'static>,
    },
}

/// Why a TLS configuration could not be built.
#[derive(Debug, thiserror::Error)]
#[error("cannot build a TLS configuration for {id}; its certificate and key must match")]
pub struct ConfigError {
    id: SpiffeId,
    #[source]
    cause: rustls::Error,
}

/// A server that presents `identity` and requires a client certificate of an `allowed` peer (TLS 1.2 and 1.3).
///
/// The caller sets ALPN in `alpn_protocols`. Sessions are not resumed; those of [`Server`] are.
pub fn server_config(
    identity: &Identity,
    bundles: Arc<TrustBundles>,
    allowed: Peer,
) -> Result<ServerConfig, ConfigError> {
    server_with(identity, PeerJudge { bundles, peer: allowed, lifetime: Arc::default() })
}

/// A client that presents `identity` and accepts only `expected` servers (TLS 1.2 and 1.3).
///
/// The name given when connecting is sent as SNI and has no other effect. Sessions are not resumed; those of [`Client`]
/// are.
pub fn client_config(
    identity: &Identity,
    bundles: Arc<TrustBundles>,
    expected: Peer,
) -> Result<ClientConfig, ConfigError> {
    client_with(identity, PeerJudge { bundles, peer: expected, lifetime: Arc::default() })
}

/// The certificate verifier of [`client_config`], for clients with a configuration of their own.
#[must_use]
pub fn server_verifier(bundles: Arc<TrustBundles>, expected: Peer) -> Arc<dyn ServerCertVerifier> {
    Arc::new(ChainVerifier(PeerJudge { bundles, peer: expected, lifetime: Arc::default() }))
}

fn server_with(identity: &Identity, judge: impl ChainJudge + 'static) -> Result<ServerConfig, ConfigError> {
    let made = ServerConfig::builder_with_provider(crypto::provider())
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_client_cert_verifier(Arc::new(ChainVerifier(judge)))
                .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        });
    let mut config = made.map_err(|cause| ConfigError::new(&identity.id, cause))?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_with(identity: &Identity, judge: PeerJudge) -> Result<ClientConfig, ConfigError> {
    let made = ClientConfig::builder_with_provider(crypto::provider())
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(ChainVerifier(judge)))
                .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
        });
    let mut config = made.map_err(|cause| ConfigError::new(&identity.id, cause))?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

impl ConfigError {
    fn new(id: &SpiffeId, cause: rustls::Error) -> Self {
        Self { id: id.clone(), cause }
    }
}

impl VerifyError {
    /// Why this side refused the peer, if that caused the TLS error.
    ///
    /// An `io::Error` of tokio-rustls holds the TLS error: `e.get_ref()?.downcast_ref::<rustls::Error>()`.
    pub fn find_in(error: &rustls::Error) -> Option<&Self> {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(why))) => {
                why.downcast_ref::<Self>()
            }
            _ => None,
        }
    }
}

impl From<VerifyError> for rustls::Error {
    fn from(why: VerifyError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
    }
}

impl Peer {
    /// Whether to accept this peer, and if not, why.
    pub fn admit(&self, proven: &Proven) -> Result<(), VerifyError> {
        let id = &proven.id;
        let admits = match self {
            Self::Trusted => true,
            Self::Domain(domain) => id.trust_domain() == domain,
            Self::Ids(ids) => ids.contains(id),
            Self::Matching(patterns) => patterns.iter().any(|pattern| pattern.matches(id)),
            Self::Pinned { issuer, peer } if proven.issuers.contains(issuer) => return peer.admit(proven),
            Self::Pinned { issuer, .. } => {
                return Err(VerifyError::Pin { id: id.clone(), pin: *issuer });
            }
            Self::Name { .. } => false,
        };
        if admits { Ok(()) } else { Err(VerifyError::Unexpected(id.clone())) }
    }
}

#[cfg(test)]
mod bad;
#[cfg(test)]
mod resume;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;
