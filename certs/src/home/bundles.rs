//! The bundles in an authority's directory: its own, which follows its roots, and those of federated domains.

use std::fs;
use std::io;
use std::path::PathBuf;

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{Home, HomeError, is_there, read};
use crate::bundle::Bundle;
use crate::files::{self, PUBLIC};
use crate::spiffe::TrustDomain;
use crate::spiffe_bundle;

impl Home {
    /// The directory with a bundle for each trust domain.
    pub fn bundle_folder(&self) -> PathBuf {
        self.folder.join("bundles")
    }

    fn bundle_file(&self, domain: &TrustDomain) -> PathBuf {
        self.bundle_folder().join(format!("{domain}.json"))
    }

    /// Brings the own bundle to the trusted roots. Returns whether it changed.
    pub(super) fn publish_bundle(&self, now: OffsetDateTime) -> Result<bool, HomeError> {
        let domain = &self.state.trust_domain;
        let roots = self.trusted_certificates()?;
        let path = self.bundle_file(domain);
        let known = read(&path).ok().and_then(|text| spiffe_bundle::read(domain, &text).ok());
        if known.as_ref().is_some_and(|known| known.roots() == roots) {
            return Ok(false);
        }
        let bundle = Bundle::new(domain, next_sequence(known.map(|known| known.sequence), now), &roots)?;
        self.write_bundle(domain, &bundle)?;
        Ok(true)
    }

    /// The certificates of the trusted roots.
    pub(super) fn trusted_certificates(&self) -> Result<Vec<CertificateDer<'static>>, HomeError> {
        self.state.trusted().into_iter().map(|number| self.root_certificate(number)).collect()
    }

    fn write_bundle(&self, domain: &TrustDomain, bundle: &Bundle) -> Result<(), HomeError> {
        files::make_folder(&self.bundle_folder())?;
        let path = self.bundle_file(domain);
        let text =
            spiffe_bundle::write(bundle).map_err(|cause| HomeError::Bundle { path: path.clone(), cause })?;
        Ok(files::write(&path, &text, PUBLIC)?)
    }

    /// Trusts the bundle of another domain. A lower sequence number than the known one is refused.
    pub fn federate(&mut self, domain: &TrustDomain, bundle: &Bundle) -> Result<(), HomeError> {
        if *domain == self.state.trust_domain {
            return Err(HomeError::Own(domain.clone()));
        }
        match self.bundle(domain) {
            Ok(known) if bundle.sequence < known.sequence => Err(HomeError::OldBundle {
                domain: domain.clone(),
                found: bundle.sequence,
                known: known.sequence,
            }),
            _ => self.write_bundle(domain, bundle),
        }
    }

    /// No longer trusts another domain.
    pub fn defederate(&mut self, domain: &TrustDomain) -> Result<(), HomeError> {
        if *domain == self.state.trust_domain {
            return Err(HomeError::Own(domain.clone()));
        }
        // A deny-list cannot be verified without its bundle.
        let denied = self.deny_file(domain);
        match fs::remove_file(&denied) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                return Err(HomeError::Read { path: denied, cause });
            }
            _ => {}
        }
        let path = self.bundle_file(domain);
        fs::remove_file(&path).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => HomeError::NoBundle(domain.clone()),
            _ => HomeError::Read { path, cause },
        })
    }

    /// The bundle of a domain.
    pub fn bundle(&self, domain: &TrustDomain) -> Result<Bundle, HomeError> {
        let path = self.bundle_file(domain);
        if !is_there(&path)? {
            return Err(HomeError::NoBundle(domain.clone()));
        }
        spiffe_bundle::read(domain, &read(&path)?).map_err(|cause| HomeError::Bundle { path, cause })
    }

    /// The domains with a bundle, the own one first.
    pub fn domains(&self) -> Result<Vec<TrustDomain>, HomeError> {
        let own = &self.state.trust_domain;
        let folder = self.bundle_folder();
        let unread = |cause| HomeError::Read { path: folder.clone(), cause };
        let mut others = Vec::new();
        for entry in fs::read_dir(&folder).map_err(unread)? {
            let path = entry.map_err(unread)?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            others.extend(TrustDomain::new(stem).ok().filter(|domain| domain != own));
        }
        others.sort();
        Ok(std::iter::once(own.clone()).chain(others).collect())
    }
}

/// The next sequence number: higher than the known one, and at least the time in seconds since 1970, so that it does
/// not go back if the known one is lost.
pub(super) fn next_sequence(known: Option<u64>, now: OffsetDateTime) -> u64 {
    let now = u64::try_from(now.unix_timestamp()).unwrap_or_default();
    known.map_or(now, |known| now.max(known.saturating_add(1)))
}
