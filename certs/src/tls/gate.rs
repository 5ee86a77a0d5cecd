//! Refuses clients within the handshake, by rules that the chain does not tell: a refused client gets the alert
//! access_denied instead of a closed connection.

use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::Arc;

use rustls::CertificateError;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::chain::ChainJudge;
use super::verifier::PeerJudge;
use crate::bundle::Role;
use crate::spiffe::SpiffeId;

thread_local! {
    /// The gate of the handshake that this thread makes a step of.
    static GATE: RefCell<Option<Arc<dyn Gate>>> = const { RefCell::new(None) };
}

/// Decides about one client whose chain has verified.
///
/// A resumed session does not ask it: the caller must decide again once the handshake is complete.
pub trait Gate: Debug + Send + Sync {
    /// Whether the client may enter.
    fn admits(&self, client: &SpiffeId) -> bool;
}

/// Makes a step of a handshake of [`Server::gated`](super::Server::gated), in which `gate` decides about the client.
///
/// A verifier belongs to a configuration, which handshakes share, and does not learn whose handshake it is asked in.
pub fn behind<T>(gate: &Arc<dyn Gate>, step: impl FnOnce() -> T) -> T {
    struct Leaving;
    impl Drop for Leaving {
        fn drop(&mut self) {
            GATE.set(None);
        }
    }
    GATE.set(Some(Arc::clone(gate)));
    let _leaving = Leaving;
    step()
}

/// A judge of chains with a gate behind it. Without one nobody is admitted.
#[derive(Debug)]
pub(super) struct Gated(pub(super) PeerJudge);

impl ChainJudge for Gated {
    fn judge(&self, chain: &[CertificateDer<'_>], role: Role, now: UnixTime) -> Result<(), rustls::Error> {
        let proven = self.0.prove(chain, role, now)?;
        let gate = GATE.with_borrow(Clone::clone);
        if gate.is_some_and(|gate| gate.admits(&proven.id)) {
            Ok(())
        } else {
            // The only error that becomes the alert access_denied.
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use rustls::AlertDescription::AccessDenied;
    use rustls::Error::{AlertReceived, InvalidCertificate};

    use super::super::world::{Outcome, World, connect};
    use super::super::{Peer, Server};
    use super::*;
    use crate::{Identity, Trust};

    /// Admits these clients, and records who asked.
    #[derive(Debug)]
    struct List(Vec<SpiffeId>, Mutex<Vec<SpiffeId>>);

    impl Gate for List {
        fn admits(&self, client: &SpiffeId) -> bool {
            self.1.lock().unwrap().push(client.clone());
            self.0.contains(client)
        }
    }

    fn assert_denied(outcome: Outcome) {
        outcome.assert_silent();
        assert_eq!(outcome.client.unwrap_err(), AlertReceived(AccessDenied));
        let denied = InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        assert_eq!(outcome.server.unwrap_err(), denied);
    }

    #[test]
    fn gate_decides_about_the_client_of_its_own_handshake() {
        let world = World::new();
        let identity = Identity::from_pem(world.server.chain_pem(), world.server.key_pem()).unwrap();
        let trust = Trust::new(identity, Arc::clone(&world.bundles));
        let server = Server::gated(trust, Peer::Trusted, &[]).unwrap();
        let hands = || connect(world.client_config(&world.client), server.config());
        let id = world.client.id().clone();
        let open = Arc::new(List(vec![id.clone()], Mutex::default()));
        let closed: Arc<dyn Gate> = Arc::new(List(Vec::new(), Mutex::default()));
        let gate: Arc<dyn Gate> = Arc::<List>::clone(&open);
        assert!(behind(&gate, hands).server.is_ok());
        assert_eq!(*open.1.lock().unwrap(), [id]);
        assert_denied(behind(&closed, hands));
        // Outside of any gate: the one before is forgotten.
        assert!(behind(&gate, hands).server.is_ok());
        assert_denied(hands());
    }
}
