//! The deny-lists in an authority's directory: its own, which it signs, and those of federated domains, which it passes
//! on.

use std::path::PathBuf;

use rustls::pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;

use super::bundles::next_sequence;
use super::{Home, HomeError, is_there, read};
use crate::authority::Authority;
use crate::bundle::Bundle;
use crate::deny::DenyList;
use crate::facts::Facts;
use crate::files::{self, PUBLIC};
use crate::spiffe::TrustDomain;

impl Home {
    /// The directory with the deny-lists, by trust domain.
    pub fn deny_folder(&self) -> PathBuf {
        self.folder.join("deny")
    }

    pub(super) fn deny_file(&self, domain: &TrustDomain) -> PathBuf {
        self.deny_folder().join(format!("{domain}.json"))
    }

    /// The stored deny-list of a domain; an empty one if there is none.
    pub fn deny_list(&self, domain: &TrustDomain) -> Result<DenyList, HomeError> {
        let path = self.deny_file(domain);
        if !is_there(&path)? {
            return Ok(DenyList::new(domain.clone()));
        }
        // The signature was checked when the list was accepted; its signer may have been renewed since.
        DenyList::reopen(read(&path)?.as_bytes()).map_err(|cause| HomeError::Deny { path, cause })
    }

    fn open_deny_list(
        &self,
        domain: &TrustDomain,
        bundle: &Bundle,
        at: UnixTime,
    ) -> Result<DenyList, HomeError> {
        let path = self.deny_file(domain);
        DenyList::open(read(&path)?.as_bytes(), domain, bundle, at, None)
            .map_err(|cause| HomeError::Deny { path, cause })
    }

    /// Changes the own deny-list; if `change` returns true, signs it with the next sequence number.
    pub fn change_deny_list(
        &mut self,
        change: impl FnOnce(&mut DenyList) -> bool,
    ) -> Result<DenyList, HomeError> {
        let mut list = self.deny_list(&self.state.trust_domain)?;
        if change(&mut list) {
            list.renumber(next_sequence(Some(list.sequence()), OffsetDateTime::now_utc()));
            self.write_deny_list(&list)?;
        }
        Ok(list)
    }

    /// Accepts the signed list of another domain. A list older than the known one is refused.
    pub fn take_deny_list(&mut self, domain: &TrustDomain, envelope: &str) -> Result<DenyList, HomeError> {
        if *domain == self.state.trust_domain {
            return Err(HomeError::Own(domain.clone()));
        }
        let path = self.deny_file(domain);
        let refused = |cause| HomeError::Deny { path: path.clone(), cause };
        let bundle = self.bundle(domain)?;
        let known = self.deny_list(domain)?;
        let list = DenyList::open(envelope.as_bytes(), domain, &bundle, UnixTime::now(), Some(&known));
        let list = list.map_err(refused)?;
        files::make_folder(&self.deny_folder())?;
        files::write(&path, envelope, PUBLIC)?;
        Ok(list)
    }

    fn write_deny_list(&self, list: &DenyList) -> Result<(), HomeError> {
        files::make_folder(&self.deny_folder())?;
        let envelope = list.sign(&self.deny_signer(list)?)?;
        Ok(files::write(&self.deny_file(list.trust_domain()), &(envelope + "\n"), PUBLIC)?)
    }

    /// The signing root; if its key is stored elsewhere, an intermediate that is not itself denied.
    fn deny_signer(&self, list: &DenyList) -> Result<Authority, HomeError> {
        match self.root(self.state.root) {
            Err(HomeError::KeyAway(path)) => {
                let intermediates = self.state.clusters.iter().map(|cluster| self.intermediate(cluster));
                let is_denied = |one: &Authority| {
                    Facts::read(one.certificate()).is_ok_and(|facts| list.has_serial(&facts.serial))
                };
                let mut usable = intermediates.flatten().filter(|one| !is_denied(one));
                usable.next().ok_or(HomeError::KeyAway(path))
            }
            root => root,
        }
    }

    /// Signs the own list again if its signature would not outlast the next step of a roll-over, and drops expired
    /// entries. Returns whether it was signed.
    pub(super) fn see_to_deny_list(&mut self, now: OffsetDateTime) -> Result<bool, HomeError> {
        let domain = self.state.trust_domain.clone();
        if !is_there(&self.deny_file(&domain))? {
            return Ok(false);
        }
        let at = |time: OffsetDateTime| {
            let seconds = u64::try_from(time.unix_timestamp()).unwrap_or_default();
            UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
        };
        let bundle_of = |roots: &[CertificateDer<'static>]| Bundle::new(&domain, 0, roots);
        let signing = bundle_of(&[self.root_certificate(self.state.root)?])?;
        let lasts = self.open_deny_list(&domain, &signing, at(now + self.state.overlap)).is_ok();
        let mut list = self.deny_list(&domain)?;
        let shorter = list.forget_expired(now);
        if shorter {
            list.renumber(next_sequence(Some(list.sequence()), now));
        }
        if shorter || !lasts {
            self.write_deny_list(&list)?;
        }
        Ok(shorter || !lasts)
    }
}
