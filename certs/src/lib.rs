//! Certificates for SPIFFE identities: an authority that issues them, trust bundles kept apart per
//! trust domain, and TLS configurations in which each end verifies the other's identity.
//! Not here yet: the command line, rotation, reloading from files, intermediates, revocation.

pub mod authority;
pub mod bundle;
mod crypto;
pub mod identity;
pub mod spiffe;
pub mod svid;
pub mod tls;

pub use authority::{Authority, IssueError};
pub use bundle::{BundleError, Role, TrustBundles, VerifyError};
pub use identity::{Identity, IdentityFiles, WriteError};
pub use spiffe::{SpiffeId, SpiffeIdError, TrustDomain};
pub use svid::{SvidError, peer_id};
pub use tls::{ConfigError, Peer, client_config, server_config, server_verifier};
