//! Trust bundles: the trusted roots of each trust domain. A chain is verified only against the bundle of the domain
//! that its leaf claims, so that federated domains cannot speak for each other. Beside its roots a domain may have a
//! deny-list and certificate revocation lists. Who may connect is decided by `tls::Peer`.

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

/// The bundle, deny-list and revocation lists of each trust domain, side by side and never pooled.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TrustBundles(BTreeMap<TrustDomain, DomainTrust>);

#[derive(Debug, Clone, Default, PartialEq)]
struct DomainTrust {
    bundle: Bundle,
    denied: Option<DenyList>,
    /// The deny-list as its domain signed it.
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
    /// Its expiry, in seconds since 1970; webpki does not check it.
    not_after: u64,
}

/// Why a certificate cannot be a root of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not an X.509 certificate.
    #[error("the root of {domain} cannot be read: {cause}; get the file again")]
    Malformed {
        /// The trust domain of the bundle.
        domain: TrustDomain,
        /// The cause.
        cause: String,
    },
    /// The certificate is a leaf.
    #[error("the certificate given as a root of {0} is not an authority; give the root, not a leaf")]
    NotAuthority(TrustDomain),
    /// The root names another trust domain.
    #[error("the certificate given as a root of {domain} says that it is of {found}; is it the right file?")]
    OtherDomain {
        /// The trust domain of the bundle.
        domain: TrustDomain,
        /// The URI name of the root.
        found: String,
    },
}

impl Bundle {
    /// Makes a bundle of these roots of `domain`.
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
        let facts = Facts::read(root).map_err(|e| malformed(e.to_string()))?;
        // webpki accepts any certificate as an anchor.
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

    /// The roots that have not expired, as webpki anchors.
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

    /// The roots, in the order in which they were added.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }
}

impl TrustBundles {
    /// Trusts no domain.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a trusted root of `domain`; it vouches for no other domain.
    pub fn add_root(&mut self, domain: TrustDomain, root: &CertificateDer<'_>) -> Result<(), BundleError> {
        let mut bundle = self.get(&domain).cloned().unwrap_or_default();
        bundle.add(&domain, root)?;
        self.insert(domain, bundle);
        Ok(())
    }

    /// Sets the bundle of `domain`, replacing the previous one.
    pub fn insert(&mut self, domain: TrustDomain, bundle: Bundle) {
        self.0.entry(domain).or_default().bundle = bundle;
    }

    /// Sets the deny-list of its domain, replacing the previous one.
    pub fn deny(&mut self, list: DenyList) {
        let entry = self.0.entry(list.trust_domain().clone()).or_default();
        (entry.denied, entry.envelope) = (Some(list), None);
    }

    /// [`TrustBundles::deny`] that also keeps the signed envelope of the list, to pass it on.
    pub fn deny_signed(&mut self, list: DenyList, envelope: &str) {
        let entry = self.0.entry(list.trust_domain().clone()).or_default();
        (entry.denied, entry.envelope) = (Some(list), Some(envelope.into()));
    }

    /// Copies the deny-list and the revocation lists of `domain` from another set, replacing those here.
    pub(crate) fn inherit(&mut self, domain: &TrustDomain, from: &Self) {
        let Some(DomainTrust { bundle: _, denied, envelope, crls }) = from.0.get(domain).cloned() else {
            return;
        };
        let entry = self.0.entry(domain.clone()).or_default();
        (entry.denied, entry.envelope, entry.crls) = (denied, envelope, crls);
    }

    /// Sets the revocation lists of `domain`.
    pub fn revoke(&mut self, domain: TrustDomain, crls: Crls) {
        self.0.entry(domain).or_default().crls = Some(crls);
    }

    /// The bundle of a domain.
    pub fn get(&self, domain: &TrustDomain) -> Option<&Bundle> {
        self.0.get(domain).map(|entry| &entry.bundle)
    }

    /// The deny-list of a domain.
    pub fn denied(&self, domain: &TrustDomain) -> Option<&DenyList> {
        self.0.get(domain)?.denied.as_ref()
    }

    /// The signed envelope of a domain's deny-list, if it came from one.
    pub fn envelope(&self, domain: &TrustDomain) -> Option<&str> {
        self.0.get(domain)?.envelope.as_deref()
    }

    /// The revocation lists of a domain.
    pub fn crls(&self, domain: &TrustDomain) -> Option<&Crls> {
        self.0.get(domain)?.crls.as_ref()
    }

    /// All bundles, by domain.
    pub fn iter(&self) -> impl Iterator<Item = (&TrustDomain, &Bundle)> {
        self.0.iter().map(|(domain, entry)| (domain, &entry.bundle))
    }
}
