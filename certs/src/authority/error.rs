//! The errors of authorities: why one cannot be loaded, or did not sign.

use std::time::Duration;

use time::OffsetDateTime;

use crate::bundle::VerifyError;
use crate::facts::Unreadable;
use crate::pem::PemError;
use crate::spiffe::{SpiffeId, TrustDomain};

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The ID belongs to another trust domain.
    #[error("{id} is not of trust domain {own}; ask the authority of {}", id.trust_domain())]
    ForeignId {
        /// The ID asked for.
        id: SpiffeId,
        /// The domain this authority speaks for.
        own: TrustDomain,
    },
    /// The ID names a trust domain, not a workload.
    #[error("{0} has no path; a leaf's identity needs one, such as /ns/NAMESPACE/sa/ACCOUNT")]
    NoPath(SpiffeId),
    /// Not a DNS name.
    #[error("{0:?} is not a DNS name; write one such as web.example or *.web.example")]
    DnsName(String),
    /// Zero, or longer than the authority's own certificate lives.
    #[error(
        "a lifetime of {} is not possible: it must be at least 1 s and end before the authority expires, at {until}; request a shorter one (--ttl) or renew the authority",
        humantime::format_duration(*.lifetime)
    )]
    Lifetime {
        /// The lifetime requested.
        lifetime: Duration,
        /// When the authority expires.
        until: OffsetDateTime,
    },
    /// Only a root signs intermediates; an intermediate signs leaves only.
    #[error("this authority is an intermediate of {0}, which cannot sign intermediates; use its root")]
    NotRoot(TrustDomain),
    /// The signer is not an authority, or its key does not match its certificate.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The key or the certificate could not be generated.
    #[error("cannot generate the certificate")]
    Generate(#[from] rcgen::Error),
    /// The system has no random numbers.
    #[error("cannot get random numbers from the system")]
    Random,
    /// The signed chain does not verify against this side's bundle.
    #[error("the certificate just signed does not verify here and is discarded: {0}")]
    Unbelieved(#[source] VerifyError),
    /// An external authority refused to sign, or is unreachable.
    #[error("the external authority did not sign the certificate")]
    External(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why a certificate and a key are not an authority.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The chain is not PEM certificates.
    #[error(transparent)]
    Chain(PemError),
    /// The key is not PEM, or cannot sign.
    #[error(transparent)]
    Key(PemError),
    /// The chain is empty.
    #[error("the chain has no certificate; give the authority's own certificate first")]
    Empty,
    /// Not X.509.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// A leaf.
    #[error("the certificate of {0} is not an authority; give the certificate of the signer")]
    NotAuthority(TrustDomain),
    /// The key of another certificate.
    #[error("the private key does not match the certificate; both must be of the same authority")]
    OtherKey,
    /// The certificate belongs to another trust domain.
    #[error("the certificate is an authority of {found}, not of {expected}")]
    OtherDomain {
        /// The trust domain in its URI name.
        found: String,
        /// The trust domain it should have.
        expected: TrustDomain,
    },
}
