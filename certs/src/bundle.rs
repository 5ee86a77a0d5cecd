//! Trust bundles: whom we believe about which trust domain. A chain is verified only against the bundle
//! of the domain its leaf claims, so that federated domains cannot speak for each other. Beside its roots a
//! domain has what it took back: a deny-list and certificate revocation lists.
//! Not about who may connect (`tls::Peer`).

mod cause;
mod verify;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::anchor_from_trusted_cert;

use crate::crl::Crls;
use crate::deny::DenyList;
use crate::facts::Facts;
use crate::spiffe::TrustDomain;

pub use verify::{Proven, Role, VerifyError};

/// What is believed about each trust domain, side by side and never pooled.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TrustBundles(BTreeMap<TrustDomain, Believed>);

#[derive(Debug, Clone, Default, PartialEq)]
struct Believed {
    bundle: Bundle,
    denied: Option<DenyList>,
    /// That list as its domain signed it.
    envelope: Option<Arc<str>>,
    crls: Option<Crls>,
}

/// The roots of one trust domain, with the number that grows each time its owner changes them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bundle {
    /// Grows with each change; a lower one is older.
    pub sequence: u64,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<Anchor>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Anchor {
    anchor: TrustAnchor<'static>,
    /// Its end, in seconds since 1970; webpki does not look at it.
    not_after: u64,
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
        cause: String,
    },
    /// A leaf, perhaps the wrong file.
    #[error("the certificate given as a root of {0} is not an authority's; give the root, not a leaf")]
    NotAuthority(TrustDomain),
    /// A root that says to be another domain's.
    #[error("the certificate given as a root of {domain} says that it is of {found}; is it the right file?")]
    OtherDomain {
        /// The bundle it was meant for.
        domain: TrustDomain,
        /// What its URI name says.
        found: String,
    },
}

impl Bundle {
    /// A bundle of these roots, each believed about `domain`.
    pub fn new<'a>(
        domain: &TrustDomain,
        sequence: u64,
        roots: impl IntoIterator<Item = &'a CertificateDer<'static>>,
    ) -> Result<Self, BundleError> {
        let mut bundle = Self { sequence, ..Self::default() };
        for root in roots {
            bundle.add(domain, root)?;
        }
        Ok(bundle)
    }

    fn add(&mut self, domain: &TrustDomain, root: &CertificateDer<'_>) -> Result<(), BundleError> {
        let malformed = |cause: String| BundleError::Malformed { domain: domain.clone(), cause };
        let anchor = anchor_from_trusted_cert(root).map_err(|e| malformed(e.to_string()))?.to_owned();
        let facts = Facts::of(root).map_err(|e| malformed(e.to_string()))?;
        // webpki takes any certificate as an anchor.
        if !facts.is_authority {
            return Err(BundleError::NotAuthority(domain.clone()));
        }
        if let Some(found) = facts.uris.iter().find(|uri| **uri != domain.id().to_string()) {
            return Err(BundleError::OtherDomain { domain: domain.clone(), found: found.clone() });
        }
        let root = root.clone().into_owned();
        if !self.roots.contains(&root) {
            self.roots.push(root);
            let not_after = u64::try_from(facts.not_after.unix_timestamp()).unwrap_or_default();
            self.anchors.push(Anchor { anchor, not_after });
        }
        Ok(())
    }

    /// The roots that have not ended, as webpki takes them.
    fn anchors_at(&self, now: UnixTime) -> Result<Vec<TrustAnchor<'static>>, webpki::Error> {
        let standing = self.anchors.iter().filter(|root| now.as_secs() <= root.not_after);
        let anchors: Vec<_> = standing.map(|root| root.anchor.clone()).collect();
        match self.anchors.iter().map(|root| root.not_after).max() {
            Some(last) if anchors.is_empty() => Err(webpki::Error::CertExpired {
                time: now,
                not_after: UnixTime::since_unix_epoch(Duration::from_secs(last)),
            }),
            _ => Ok(anchors),
        }
    }

    /// Its roots, in the order of their addition.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }
}

impl TrustBundles {
    /// No domain is trusted yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts one more root about `domain`, and about no other.
    pub fn add_root(&mut self, domain: TrustDomain, root: &CertificateDer<'_>) -> Result<(), BundleError> {
        let mut bundle = self.get(&domain).cloned().unwrap_or_default();
        bundle.add(&domain, root)?;
        self.insert(domain, bundle);
        Ok(())
    }

    /// Believes this bundle about `domain`, and no other that was there.
    pub fn insert(&mut self, domain: TrustDomain, bundle: Bundle) {
        self.0.entry(domain).or_default().bundle = bundle;
    }

    /// Denies what a list names, in place of the list that its domain had.
    pub fn deny(&mut self, list: DenyList) {
        let believed = self.0.entry(list.trust_domain().clone()).or_default();
        (believed.denied, believed.envelope) = (Some(list), None);
    }

    /// The same, and keeps the envelope that the list was opened from, for handing it on.
    pub fn deny_signed(&mut self, list: DenyList, envelope: &str) {
        let believed = self.0.entry(list.trust_domain().clone()).or_default();
        (believed.denied, believed.envelope) = (Some(list), Some(envelope.into()));
    }

    /// What another one knows of a domain that was taken back, in place of what is known here.
    pub(crate) fn inherit(&mut self, domain: &TrustDomain, from: &Self) {
        let Some(Believed { bundle: _, denied, envelope, crls }) = from.0.get(domain).cloned() else {
            return;
        };
        let believed = self.0.entry(domain.clone()).or_default();
        (believed.denied, believed.envelope, believed.crls) = (denied, envelope, crls);
    }

    /// Reads these revocation lists for certificates of `domain`.
    pub fn revoke(&mut self, domain: TrustDomain, crls: Crls) {
        self.0.entry(domain).or_default().crls = Some(crls);
    }

    /// The bundle of a domain.
    pub fn get(&self, domain: &TrustDomain) -> Option<&Bundle> {
        self.0.get(domain).map(|believed| &believed.bundle)
    }

    /// The deny-list of a domain.
    pub fn denied(&self, domain: &TrustDomain) -> Option<&DenyList> {
        self.0.get(domain)?.denied.as_ref()
    }

    /// The deny-list of a domain as it was signed, where it came from an envelope.
    pub fn envelope(&self, domain: &TrustDomain) -> Option<&str> {
        self.0.get(domain)?.envelope.as_deref()
    }

    /// The revocation lists of a domain.
    pub fn crls(&self, domain: &TrustDomain) -> Option<&Crls> {
        self.0.get(domain)?.crls.as_ref()
    }

    /// All bundles, by domain.
    pub fn iter(&self) -> impl Iterator<Item = (&TrustDomain, &Bundle)> {
        self.0.iter().map(|(domain, believed)| (domain, &believed.bundle))
    }
}
