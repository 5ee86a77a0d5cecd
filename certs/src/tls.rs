//! rustls configurations in which both ends show a certificate and each verifies the other's SPIFFE ID
//! before any application byte. Not for plain web TLS: a server's DNS names are looked at only where it is known
//! by one alone ([`Peer::Name`]).
//! Keys are never logged.

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
use verifier::PeerVerifier;

pub use live::{Client, Server};
pub use standing::Standing;

/// Whom to talk to, among those whose chains verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Every identity of every domain that there is a bundle of: for a server that looks at each identity itself.
    Trusted,
    /// Every identity of one trust domain.
    Domain(TrustDomain),
    /// These identities only, compared exactly. An empty list allows nobody.
    Ids(Vec<SpiffeId>),
    /// Identities that one of these patterns means.
    Matching(Vec<IdPattern>),
    /// One of those, vouched for by an intermediate with this key: among clusters under a shared root,
    /// where each can sign every identity, this one and no other.
    Pinned {
        /// The intermediate's key.
        issuer: KeyPin,
        /// Whom, of those it vouches for.
        peer: Box<Self>,
    },
    /// A server that is known by a DNS name alone, such as istiod; no SPIFFE ID is asked of it. Nobody, where a
    /// client is judged.
    Name {
        /// Whose roots must have signed for it.
        domain: TrustDomain,
        /// The name, which is sent as SNI, too.
        name: DnsName<'static>,
    },
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
/// ALPN is the caller's to set, in `alpn_protocols`. No session is resumed; [`Server`] does that.
pub fn server_config(
    identity: &Identity,
    bundles: Arc<TrustBundles>,
    allowed: Peer,
) -> Result<ServerConfig, ConfigError> {
    server_with(identity, PeerVerifier { bundles, peer: allowed, lifetime: Arc::default() })
}

/// A client that shows `identity` and accepts only servers that prove to be `expected` (TLS 1.2 and 1.3).
///
/// The name given when connecting is sent as SNI and is otherwise without meaning. No session is resumed;
/// [`Client`] does that.
pub fn client_config(
    identity: &Identity,
    bundles: Arc<TrustBundles>,
    expected: Peer,
) -> Result<ClientConfig, ConfigError> {
    client_with(identity, PeerVerifier { bundles, peer: expected, lifetime: Arc::default() })
}

/// What [`client_config`] verifies servers with, for clients that are put together otherwise.
#[must_use]
pub fn server_verifier(bundles: Arc<TrustBundles>, expected: Peer) -> Arc<dyn ServerCertVerifier> {
    Arc::new(PeerVerifier { bundles, peer: expected, lifetime: Arc::default() })
}

fn server_with(identity: &Identity, verifier: PeerVerifier) -> Result<ServerConfig, ConfigError> {
    let made = ServerConfig::builder_with_provider(crypto::provider())
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_client_cert_verifier(Arc::new(verifier))
                .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        });
    let mut config = made.map_err(|cause| ConfigError { id: identity.id.clone(), cause })?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_with(identity: &Identity, verifier: PeerVerifier) -> Result<ClientConfig, ConfigError> {
    let made = ClientConfig::builder_with_provider(crypto::provider())
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
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

impl From<VerifyError> for rustls::Error {
    fn from(why: VerifyError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
    }
}

impl Peer {
    /// Whether this is somebody to talk to, and if not, why.
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
