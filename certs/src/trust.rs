//! What this side shows and whom it believes, as it is now: loaded from files, checked before it is used,
//! and replaced when the files change. Connections that stand are not touched; new handshakes take the new.

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

/// An identity and the bundles it judges others by. Clones share what is current.
#[derive(Clone)]
pub struct Trust(Arc<Inner>);

struct Inner {
    current: ArcSwap<Trusted>,
    /// What was refused at the last look at the files.
    refused: Mutex<Vec<String>>,
}

/// What is trusted between two changes.
#[derive(Debug, Clone)]
pub struct Trusted {
    /// What this side shows.
    pub identity: Arc<Identity>,
    /// Whom it believes.
    pub bundles: Arc<TrustBundles>,
    /// Grows with each change.
    pub epoch: u64,
}

/// When one of the certificates in use ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Expiry {
    /// What it is.
    pub kind: Kind,
    /// The leaf's SPIFFE ID, or the trust domain.
    pub name: String,
    /// The serial number, hexadecimal.
    pub serial: String,
    /// Its end.
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
}

/// A certificate's place in what is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// What this side shows.
    Leaf,
    /// What it sends with the leaf.
    Intermediate,
    /// Whom it believes.
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
    /// Seconds until its end; negative once it has ended.
    pub fn left(&self, now: SystemTime) -> f64 {
        (self.not_after - OffsetDateTime::from(now)).as_seconds_f64()
    }
}

impl Trust {
    /// Trust that comes from no file; [`Trust::replace`] changes it.
    pub fn new(identity: impl Into<Arc<Identity>>, bundles: impl Into<Arc<TrustBundles>>) -> Self {
        Self::of(Trusted { identity: identity.into(), bundles: bundles.into(), epoch: 0 })
    }

    /// Loads files, all of which must be good.
    pub fn load(files: &TrustFiles) -> Result<Self, LoadError> {
        files.load(UnixTime::now()).map(Self::of)
    }

    fn of(trusted: Trusted) -> Self {
        Self(Arc::new(Inner { current: ArcSwap::from_pointee(trusted), refused: Mutex::default() }))
    }

    /// What is trusted now.
    pub fn current(&self) -> Arc<Trusted> {
        self.0.current.load_full()
    }

    /// Trusts this from the next handshake on.
    pub fn replace(&self, identity: impl Into<Arc<Identity>>, bundles: impl Into<Arc<TrustBundles>>) {
        let (identity, bundles) = (identity.into(), bundles.into());
        self.0.current.rcu(|old| Trusted {
            identity: Arc::clone(&identity),
            bundles: Arc::clone(&bundles),
            epoch: old.epoch + 1,
        });
    }

    /// Looks at the files again. What is good replaces what there was, part by part; what is not leaves the
    /// old one in place and is named in [`Trust::refused`]. Says whether anything was replaced.
    pub fn reload(&self, files: &TrustFiles) -> bool {
        // One at a time: what one has read does not come after what another one read later.
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

    /// What was refused at the last look at the files, while the old one serves: file, reason and remedy.
    pub fn refused(&self) -> Vec<String> {
        self.0.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// When each certificate in use ends: the leaf, what is sent with it, and every root.
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
    let facts = Facts::of(der).ok()?;
    Some(Expiry { kind, name, serial: facts.serial, not_after: facts.not_after })
}

#[cfg(test)]
mod tests;
