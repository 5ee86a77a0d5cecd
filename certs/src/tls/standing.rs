//! Checks whether the peer of an established connection would still be accepted. A connection that lasts for days
//! outlives certificates, roots and deny-lists; its owner asks here, and closes it.

use rustls::pki_types::{CertificateDer, UnixTime};

use super::Peer;
use crate::bundle::{Role, VerifyError};
use crate::trust::Trust;

/// The chain that a peer presented, verified again as trust and time change.
#[derive(Debug)]
pub struct Standing {
    trust: Trust,
    peer: Peer,
    role: Role,
    chain: Vec<CertificateDer<'static>>,
    /// The epoch of the last verification, and when that expires.
    judged: Option<(u64, u64)>,
}

impl Standing {
    pub(super) fn new(trust: Trust, peer: Peer, role: Role, chain: &[CertificateDer<'_>]) -> Self {
        let chain = chain.iter().map(|one| one.clone().into_owned()).collect();
        Self { trust, peer, role, chain, judged: None }
    }

    /// Verifies the chain again if the trust has changed or the last verification has expired; otherwise free.
    ///
    /// # Errors
    /// Why the peer would be refused now.
    pub fn check(&mut self, now: UnixTime) -> Result<(), VerifyError> {
        let trusted = self.trust.current();
        if self.judged.is_some_and(|(epoch, until)| epoch == trusted.epoch && now.as_secs() <= until) {
            return Ok(());
        }
        let until = self.peer.judge(&trusted.bundles, &self.chain, self.role, now)?;
        self.judged = Some((trusted.epoch, until));
        Ok(())
    }
}
