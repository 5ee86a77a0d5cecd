//! Certificates for SPIFFE identities: authorities that issue them, one trust bundle for each trust domain, mutual TLS
//! that verifies both identities, and rotation of all of it. `isthmus-certs` is a thin command line over this library.

pub mod acknowledged;
pub mod authority;
pub mod bundle;
pub mod causes;
pub mod crl;
pub mod cross;
mod crypto;
pub mod deny;
pub mod facts;
pub mod files;
pub mod home;
pub mod identity;
pub mod input;
pub mod issuer;
pub mod key;
pub mod output;
pub mod pem;
pub mod printable;
pub mod probe;
pub mod request;
pub mod signals;
mod span;
pub mod spiffe;
pub mod spiffe_bundle;
pub mod svid;
pub mod tls;
pub mod trust;

pub use authority::{Authority, IssueError, Leaf};
pub use bundle::{Bundle, BundleError, Proven, Role, TrustBundles, VerifyError};
pub use deny::DenyList;
pub use files::WriteError;
pub use identity::{Identity, IdentityError, IdentityFiles};
pub use issuer::{Csr, Issuer, Policy};
pub use key::{KeyKind, KeyPin};
pub use request::Request;
pub use spiffe::{IdPattern, SpiffeId, SpiffeIdError, TrustDomain};
pub use svid::{SvidError, peer_id};
pub use tls::{
    ChainJudge, ChainVerifier, Client, ConfigError, Gate, Peer, Server, Standing, behind, client_config,
    server_config, server_verifier,
};
pub use trust::{Trust, TrustFiles};
