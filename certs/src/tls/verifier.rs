//! Judges a peer's chain by the trust bundles: chain, deny-list, and whether the peer is an accepted one.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};

use super::Peer;
use super::chain::ChainJudge;
use super::sessions::Lifetime;
use crate::bundle::{Proven, Role, TrustBundles, VerifyError};

#[derive(Debug)]
pub(super) struct PeerJudge {
    pub(super) bundles: Arc<TrustBundles>,
    pub(super) peer: Peer,
    /// Limits how long sessions verified here can be resumed.
    pub(super) lifetime: Arc<Lifetime>,
}

impl PeerJudge {
    /// Verifies a chain that must have a SPIFFE ID, and returns what it proves.
    pub(super) fn prove(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<Proven, VerifyError> {
        let proven = self.peer.prove(&self.bundles, chain, role, now)?;
        self.lifetime.not_past(proven.until);
        Ok(proven)
    }
}

impl ChainJudge for PeerJudge {
    fn judge(&self, chain: &[CertificateDer<'_>], role: Role, now: UnixTime) -> Result<(), rustls::Error> {
        self.lifetime.not_past(self.peer.judge(&self.bundles, chain, role, now)?);
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
            _ => self.prove(bundles, chain, role, now).map(|proven| proven.until),
        }
    }

    fn prove(
        &self,
        bundles: &TrustBundles,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<Proven, VerifyError> {
        let proven = bundles.verify(chain, role, now)?;
        self.admit(&proven)?;
        Ok(proven)
    }
}
