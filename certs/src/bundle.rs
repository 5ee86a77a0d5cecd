//! Trust bundles: whom we believe about which trust domain. A chain is verified only against the bundle
//! of the domain its leaf claims, so that federated domains cannot speak for each other.
//! Not about who may connect (`tls::Peer`), and not about revocation, which comes later.

use std::collections::BTreeMap;

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::crypto;
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::svid::{SvidError, peer_id};

/// The roots of each trust domain, side by side and never pooled.
#[derive(Debug, Clone, Default)]
pub struct TrustBundles(BTreeMap<TrustDomain, Vec<TrustAnchor<'static>>>);

/// What a peer shows its certificate as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It opened the connection.
    Client,
    /// It accepted the connection.
    Server,
}

/// Why a certificate cannot be a root of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not DER, not X.509.
    #[error("the root of {domain} cannot be read: {cause}")]
    Malformed {
        /// The bundle it was meant for.
        domain: TrustDomain,
        /// What is wrong with it.
        cause: webpki::Error,
    },
    /// A leaf, perhaps the wrong file.
    #[error("the certificate given as a root of {0} is not an authority's; give the root, not a leaf")]
    NotAuthority(TrustDomain),
}

/// Why a chain does not prove an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The leaf is not the leaf of a SPIFFE identity.
    #[error(transparent)]
    Svid(#[from] SvidError),
    /// Nobody is trusted about that domain.
    #[error("{id} is of a trust domain without a bundle here; add the bundle of {domain}", id = .0, domain = .0.trust_domain())]
    NoBundle(SpiffeId),
    /// The chain does not lead to a root of the claimed domain, is out of its time, or is for another use.
    #[error("the chain of {id} does not verify against the bundle of {}: {cause}", id.trust_domain())]
    Chain {
        /// The identity claimed.
        id: SpiffeId,
        /// What is wrong with the chain.
        cause: webpki::Error,
    },
    /// Proven, but not whom we want here.
    #[error("the peer is {0}, which is not expected here; check the address, or allow this identity")]
    Unexpected(SpiffeId),
}

impl TrustBundles {
    /// No domain is trusted yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts one more root about `domain`, and about no other.
    pub fn add_root(&mut self, domain: TrustDomain, root: &CertificateDer<'_>) -> Result<(), BundleError> {
        let anchor = match anchor_from_trusted_cert(root) {
            Ok(anchor) => anchor.to_owned(),
            Err(cause) => return Err(BundleError::Malformed { domain, cause }),
        };
        // webpki takes any certificate as an anchor.
        if !X509Certificate::from_der(root).is_ok_and(|(_, root)| root.is_ca()) {
            return Err(BundleError::NotAuthority(domain));
        }
        self.0.entry(domain).or_default().push(anchor);
        Ok(())
    }

    /// Verifies a chain, leaf first, as shown by a peer in `role` at `now`, and returns who it is.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<SpiffeId, VerifyError> {
        let (leaf, intermediates) = chain.split_first().ok_or(SvidError::NoCertificate)?;
        let id = peer_id(chain)?;
        let Some(roots) = self.0.get(id.trust_domain()) else {
            return Err(VerifyError::NoBundle(id));
        };
        let usage = match role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        let algorithms = crypto::algorithms().all;
        let verified = EndEntityCert::try_from(leaf).and_then(|leaf| {
            leaf.verify_for_usage(algorithms, roots, intermediates, now, usage, None, None).map(|_| ())
        });
        match verified {
            Ok(()) => Ok(id),
            Err(cause) => Err(VerifyError::Chain { id, cause }),
        }
    }
}
