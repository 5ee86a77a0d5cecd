//! Whether somebody who was let in by a handshake would be let in still. A connection that lasts for days outlives
//! certificates, roots and deny-lists; who keeps one asks here. Nothing is ended here.

use rustls::pki_types::{CertificateDer, UnixTime};

use super::Peer;
use crate::bundle::{Role, VerifyError};
use crate::trust::Trust;

/// The chain that a peer has shown, judged again as trust and time go on.
#[derive(Debug)]
pub struct Standing {
    trust: Trust,
    peer: Peer,
    role: Role,
    chain: Vec<CertificateDer<'static>>,
    /// Under which trust it was judged last, and until when that holds.
    judged: Option<(u64, u64)>,
}

impl Standing {
    pub(super) fn new(trust: Trust, peer: Peer, role: Role, chain: &[CertificateDer<'_>]) -> Self {
        let chain = chain.iter().map(|one| one.clone().into_owned()).collect();
        Self { trust, peer, role, chain, judged: None }
    }

    /// Judges it, if the trust has changed or its time is over since it was judged last; it costs nothing
    /// otherwise.
    ///
    /// # Errors
    /// Why it would not be let in.
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
