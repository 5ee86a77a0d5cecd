//! This side's identity and trust bundles as they are now: loaded from files, checked before use, and replaced when the
//! files change. Established connections are unaffected; new handshakes use the new state.

mod files;
mod watch;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::pki_types::{CertificateDer, UnixTime};
use serde::Serialize;
use time::OffsetDateTime;

use crate::bundle::TrustBundles;
use crate::facts::Facts;
use crate::identity::Identity;

pub use files::{LoadError, TrustFiles};
pub use watch::Watch;

/// An identity and the bundles that verify its peers. Clones share the current state.
#[derive(Clone)]
pub struct Trust(Arc<Inner>);

struct Inner {
    current: ArcSwap<Trusted>,
    /// The files refused at the last reload.
    refused: Mutex<Vec<String>>,
    /// Called after each change.
    followers: Mutex<Vec<Box<dyn Fn() + Send + Sync>>>,
}

/// The state between two changes.
#[derive(Debug, Clone)]
pub struct Trusted {
    /// The identity that this side presents.
    pub identity: Arc<Identity>,
    /// The bundles that verify its peers.
    pub bundles: Arc<TrustBundles>,
    /// Grows with each change.
    pub epoch: u64,
}

/// The expiry of a certificate in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Expiry {
    /// The kind of certificate.
    pub kind: Kind,
    /// The leaf's SPIFFE ID, or the trust domain.
    pub name: String,
    /// The serial number, hexadecimal.
    pub serial: String,
    /// When it expires.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
}

/// The role of a certificate in a trust.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The leaf that this side presents.
    Leaf,
    /// An intermediate sent with the leaf.
    Intermediate,
    /// A trusted root.
    Root,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leaf => "leaf",
            Self::Intermediate => "intermediate",
            Self::Root => "root",
        })
    }
}

impl Expiry {
    /// Seconds until it expires; negative once it has expired.
    pub fn left(&self, now: SystemTime) -> f64 {
        (self.not_after - OffsetDateTime::from(now)).as_seconds_f64()
    }
}

impl Trust {
    /// Trust that is not loaded from files; [`Trust::replace`] changes it.
    pub fn new(identity: impl Into<Arc<Identity>>, bundles: impl Into<Arc<TrustBundles>>) -> Self {
        Self::from_trusted(Trusted { identity: identity.into(), bundles: bundles.into(), epoch: 0 })
    }

    /// Loads files, all of which must be valid.
    pub fn load(files: &TrustFiles) -> Result<Self, LoadError> {
        files.load(UnixTime::now()).map(Self::from_trusted)
    }

    fn from_trusted(trusted: Trusted) -> Self {
        Self(Arc::new(Inner {
            current: ArcSwap::from_pointee(trusted),
            refused: Mutex::default(),
            followers: Mutex::default(),
        }))
    }

    /// The current state.
    pub fn current(&self) -> Arc<Trusted> {
        self.0.current.load_full()
    }

    /// Replaces the state, from the next handshake on.
    pub fn replace(&self, identity: impl Into<Arc<Identity>>, bundles: impl Into<Arc<TrustBundles>>) {
        let (identity, bundles) = (identity.into(), bundles.into());
        self.0.current.rcu(|old| Trusted {
            identity: Arc::clone(&identity),
            bundles: Arc::clone(&bundles),
            epoch: old.epoch + 1,
        });
        let followers = self.0.followers.lock().unwrap_or_else(PoisonError::into_inner);
        followers.iter().for_each(|call| call());
    }

    /// Has this called after each change, for as long as the trust lives.
    pub fn on_change(&self, call: impl Fn() + Send + Sync + 'static) {
        self.0.followers.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(call));
    }

    /// Reads the files again. Each valid file replaces its part of the state; an invalid one leaves the previous part
    /// in use and is listed in [`Trust::refused`]. Returns whether anything was replaced.
    pub fn reload(&self, files: &TrustFiles) -> bool {
        // One at a time: an older read must not replace a newer one.
        let mut known = self.0.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.current();
        let (new, refused) = files.reload(&old, UnixTime::now());
        *known = refused.iter().map(ToString::to_string).collect();
        match new {
            Some(new) => {
                self.replace(new.identity, new.bundles);
                true
            }
            None => false,
        }
    }

    /// The files refused at the last reload, each with its reason and remedy.
    pub fn refused(&self) -> Vec<String> {
        self.0.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The expiry of each certificate in use: the leaf, its intermediates, and every root.
    pub fn expiries(&self) -> Vec<Expiry> {
        let now = self.current();
        let domain = now.identity.id().trust_domain();
        let chain = now.identity.chain().iter().enumerate().map(|(place, der)| match place {
            0 => expiry(Kind::Leaf, now.identity.id().to_string(), der),
            _ => expiry(Kind::Intermediate, domain.to_string(), der),
        });
        let roots = now.bundles.iter().flat_map(|(domain, bundle)| {
            bundle.roots().iter().map(|root| expiry(Kind::Root, domain.to_string(), root))
        });
        chain.chain(roots).flatten().collect()
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.current().fmt(f)
    }
}

fn expiry(kind: Kind, name: String, der: &CertificateDer<'_>) -> Option<Expiry> {
    let facts = Facts::read(der).ok()?;
    Some(Expiry { kind, name, serial: facts.serial, not_after: facts.not_after })
}

#[cfg(test)]
mod tests;
