//! Why an agent does not start, or ends.

use std::io;
use std::net::SocketAddr;

use isthmus_certs::trust::LoadError;
use isthmus_certs::{ConfigError, IdPattern, SpiffeId, TrustDomain};
use isthmus_trust::issuing::IntermediateError;
use tokio::task::JoinError;

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The identity or the bundles cannot be loaded.
    #[error("trust: {0}")]
    Trust(#[from] LoadError),
    /// The certificate is not an agent's of this cluster.
    #[error(
        "trust: the certificate is of {found}, but the agent of this cluster is {expected}; issue it with `isthmus-certs issue --spiffe {expected}`"
    )]
    Identity {
        /// The certificate's identity.
        found: SpiffeId,
        /// The identity that it must have.
        expected: String,
    },
    /// A gateway's name is not valid in an identity.
    #[error("gateways: {0}")]
    Gateway(#[from] isthmus_certs::SpiffeIdError),
    /// A gateway has too many identities.
    #[error("gateways: identities: {0}")]
    Granted(#[from] isthmus_model::binding::GrantedError),
    /// A caller has an identity of another trust domain.
    #[error(
        "callers: {identity} is of another trust domain than this agent, whose is {domain}; write an identity of {domain}"
    )]
    Caller {
        /// The identity.
        identity: SpiffeId,
        /// The agent's trust domain.
        domain: TrustDomain,
    },
    /// A gateway's workload is of another trust domain.
    #[error(
        "gateways: {gateway} has identities of another trust domain: {pattern}; remove it: this agent issues certificates of {domain} only"
    )]
    ForeignWorkload {
        /// The gateway.
        gateway: String,
        /// The workloads.
        pattern: IdPattern,
        /// The agent's own domain.
        domain: TrustDomain,
    },
    /// No TLS configuration can be built from the identity.
    #[error(transparent)]
    Tls(#[from] ConfigError),
    /// An address cannot be bound.
    #[error("cannot listen on {address}: {cause}; is another process there? check with `ss -ltnp`")]
    Bind {
        /// The configured address.
        address: SocketAddr,
        /// The system's error.
        #[source]
        cause: io::Error,
    },
    /// A thread cannot start.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The intermediate cannot be used.
    #[error("issuing: {0}")]
    Issuing(#[from] IntermediateError),
    /// The settings for joining are incomplete or of no use to other clusters.
    #[error("join: {0}")]
    Join(String),
    /// The admin server failed.
    #[error("admin: {0}")]
    Admin(io::Error),
    /// The DNS server failed.
    #[error("dns: {0}")]
    Dns(io::Error),
    /// A task of the agent panicked or was cancelled.
    #[error("a task of the agent ended: {0}; this is a bug, please report it")]
    Broken(JoinError),
}
