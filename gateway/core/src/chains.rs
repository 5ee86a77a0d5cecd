//! The certificate chains that the peers of live connections have proven. Connections of one peer share its chain, and
//! it is verified once after each change of trust.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use isthmus_certs::trust::Trusted;
use isthmus_certs::{Role, VerifyError};
use rustls::pki_types::{CertificateDer, UnixTime};

/// Chains between two removals of those that are not in use.
const AT_ONCE: usize = 1_024;

/// All chains in use.
#[derive(Debug, Default)]
pub(crate) struct Chains {
    hasher: RandomState,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By the hash of role and chain.
    chains: HashMap<u64, Weak<Chain>>,
    /// Number of chains after the last removal.
    kept: usize,
}

/// One chain.
#[derive(Debug)]
pub(crate) struct Chain {
    certificates: Box<[CertificateDer<'static>]>,
    role: Role,
    /// When it was accepted in a handshake.
    accepted: UnixTime,
    /// The epoch of the trust at the last verification, and its outcome.
    judged: Mutex<Option<(u64, Result<(), VerifyError>)>>,
}

impl Chains {
    /// Returns the chain of a peer that has just been accepted in this role.
    pub(crate) fn intern(&self, role: Role, chain: &[CertificateDer<'_>]) -> Arc<Chain> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = self.hasher.hash_one((role == Role::Client, chain));
        let same = known.chains.get(&key).and_then(Weak::upgrade);
        if let Some(same) = same.filter(|same| same.role == role && *same.certificates == *chain) {
            return same;
        }
        let made = Arc::new(Chain {
            certificates: chain.iter().map(|one| one.clone().into_owned()).collect(),
            role,
            accepted: UnixTime::now(),
            judged: Mutex::default(),
        });
        known.chains.insert(key, Arc::downgrade(&made));
        if known.chains.len() > known.kept + AT_ONCE {
            known.chains.retain(|_, chain| chain.strong_count() > 0);
            known.kept = known.chains.len();
        }
        made
    }
}

impl Chain {
    /// Verifies it against a trust, once for each epoch. A certificate that has expired since it was accepted stays
    /// accepted: time alone ends no connection.
    ///
    /// # Errors
    /// Why the peer is not trusted any more.
    pub(crate) fn check(&self, trust: &Trusted, now: UnixTime) -> Result<(), VerifyError> {
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, outcome)) = judged.as_ref().filter(|(epoch, _)| *epoch == trust.epoch) {
            return outcome.clone();
        }
        let verify = |at| trust.bundles.verify(&self.certificates, self.role, at).map(drop);
        let outcome = verify(now).or_else(|_| verify(self.accepted));
        *judged = Some((trust.epoch, outcome.clone()));
        outcome
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isthmus_certs::{
        Authority, DenyList, IdPattern, Identity, SpiffeId, Trust, TrustBundles, TrustDomain,
    };

    use super::*;

    struct World {
        authority: Authority,
        trust: Trust,
        peer: Identity,
    }

    fn world() -> World {
        let authority = Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap();
        let id = |name: &str| SpiffeId::workload(authority.trust_domain(), "a", name).unwrap();
        let issue = |name: &str| authority.issue(&id(name), &[], Duration::from_secs(3600)).unwrap();
        let mut bundles = TrustBundles::new();
        bundles.add_root(authority.trust_domain().clone(), authority.certificate()).unwrap();
        let (trust, peer) = (Trust::new(issue("gateway"), bundles), issue("peer"));
        World { authority, trust, peer }
    }

    fn later(hours: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + hours * 3600))
    }

    #[test]
    fn chain_outlives_its_expiry_and_not_its_trust() {
        let World { authority, trust, peer } = world();
        let chain = Chains::default().intern(Role::Client, peer.chain());
        assert_eq!(chain.check(&trust.current(), later(2)), Ok(()), "its leaf has expired");
        let identity = Arc::clone(&trust.current().identity);
        let mut denying = TrustBundles::clone(&trust.current().bundles);
        let mut list = DenyList::new(authority.trust_domain().clone());
        list.add_identity(IdPattern::Exactly(peer.id().clone()));
        denying.deny(list);
        let before = Arc::clone(&trust.current().bundles);
        trust.replace(Arc::clone(&identity), denying);
        for hours in [0, 2] {
            assert_eq!(chain.check(&trust.current(), later(hours)).unwrap_err().reason(), "denied");
        }
        trust.replace(Arc::clone(&identity), before);
        assert_eq!(chain.check(&trust.current(), later(0)), Ok(()));
        trust.replace(identity, TrustBundles::new());
        assert_eq!(chain.check(&trust.current(), later(2)).unwrap_err().reason(), "no_bundle");
    }

    #[test]
    fn chains_are_shared_and_forgotten() {
        let World { authority, peer, .. } = world();
        let chains = Chains::default();
        let one = chains.intern(Role::Client, peer.chain());
        assert!(Arc::ptr_eq(&one, &chains.intern(Role::Client, peer.chain())));
        assert!(!Arc::ptr_eq(&one, &chains.intern(Role::Server, peer.chain())));
        let other = authority.issue(peer.id(), &[], Duration::from_secs(3600)).unwrap();
        assert!(!Arc::ptr_eq(&one, &chains.intern(Role::Client, other.chain())));
        for index in 0..2 * AT_ONCE {
            let chain = [CertificateDer::from(index.to_be_bytes().to_vec())];
            chains.intern(Role::Client, &chain);
        }
        assert!(chains.known.lock().unwrap().chains.len() <= AT_ONCE + 2);
    }
}
