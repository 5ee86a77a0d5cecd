//! The certificate verifier for rustls, in both directions: chain, bundle, deny-list, and whether the peer is an
//! accepted one.

use std::sync::Arc;

use rustls::DistinguishedName;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};

use super::Peer;
use super::sessions::Lifetime;
use crate::bundle::{Role, TrustBundles, VerifyError};
use crate::crypto::signatures_are_checked;

#[derive(Debug)]
pub(super) struct PeerVerifier {
    pub(super) bundles: Arc<TrustBundles>,
    pub(super) peer: Peer,
    /// Limits how long sessions verified here can be resumed.
    pub(super) lifetime: Arc<Lifetime>,
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
        self.lifetime.not_past(self.peer.judge(&self.bundles, &chain, role, now)?);
        Ok(())
    }
}

impl Peer {
    /// Verifies a chain and returns when that expires, in seconds since 1970.
    pub(super) fn judge(
        &self,
        bundles: &TrustBundles,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<u64, VerifyError> {
        match (self, role, chain) {
            (Self::Name { domain, name }, Role::Server, [leaf, intermediates @ ..]) => {
                bundles.verify_name(domain, name, leaf, intermediates, now)
            }
            _ => {
                let proven = bundles.verify(chain, role, now)?;
                self.admit(&proven)?;
                Ok(proven.until)
            }
        }
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

    signatures_are_checked!();
}

impl ClientCertVerifier for PeerVerifier {
    /// None: hints would disclose the trusted domains, and make some clients send no certificate.
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

    signatures_are_checked!();
}
