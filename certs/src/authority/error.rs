//! Why an authority did not sign, or is none.

use std::time::Duration;

use time::OffsetDateTime;

use crate::bundle::VerifyError;
use crate::facts::Unreadable;
use crate::pem::PemError;
use crate::spiffe::{SpiffeId, TrustDomain};

/// Why a certificate was not made.
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
    /// A DNS name that is none.
    #[error("{0:?} is not a DNS name; write one such as web.example or *.web.example")]
    DnsName(String),
    /// Zero, or past the authority's own end.
    #[error(
        "a lifetime of {} is not possible; it must be 1 s at least and end before the authority does, at {until}; ask for less (--ttl), or give that authority more",
        humantime::format_duration(*.lifetime)
    )]
    Lifetime {
        /// What was asked for.
        lifetime: Duration,
        /// When the authority ends.
        until: OffsetDateTime,
    },
    /// Only a root signs intermediates, and those sign leaves only.
    #[error("this authority is an intermediate of {0}; intermediates are signed by its root")]
    NotRoot(TrustDomain),
    /// What should sign is not an authority, or its key is another's.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The key or the certificate could not be made.
    #[error("cannot make the certificate")]
    Generate(#[from] rcgen::Error),
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// It would be of no use.
    #[error("what was signed is not believed here, and not given away: {0}")]
    Unbelieved(#[source] VerifyError),
    /// An external authority refused or was not reached.
    #[error("the external authority did not sign")]
    External(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why a certificate and a key make no authority.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The certificates are not PEM, or not what they should be.
    #[error(transparent)]
    Chain(PemError),
    /// The key is not PEM, or none that can sign.
    #[error(transparent)]
    Key(PemError),
    /// Not one certificate.
    #[error("an authority needs its certificate; give the chain, its own first")]
    Empty,
    /// Not X.509.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// A leaf.
    #[error("the certificate of {0} is not an authority's; give the one that signs")]
    NotAuthority(TrustDomain),
    /// The key of another certificate.
    #[error("the key is not the one of the certificate; both must be of the same authority")]
    OtherKey,
    /// It says that it is of another domain.
    #[error("the certificate is an authority of {found}, not of {expected}")]
    OtherDomain {
        /// What its URI name says.
        found: String,
        /// What it was to be.
        expected: TrustDomain,
    },
}
