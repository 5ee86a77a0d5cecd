//! Loads and checks the files of a trust: the key must match the leaf, the chain must verify against this side's own
//! bundle, no sequence number may go back, and every deny-list must be signed by its domain.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::UnixTime;
use serde::Serialize;

use super::Trusted;
use crate::bundle::{Bundle, BundleError, Role, TrustBundles, VerifyError};
use crate::crl::{CrlError, Crls, StaleCrl};
use crate::deny::{DenyError, DenyList};
use crate::identity::{Identity, IdentityError};
use crate::input;
use crate::pem::{self, PemError};
use crate::spiffe::{SpiffeId, SpiffeIdError, TrustDomain};
use crate::spiffe_bundle::{self, FormatError};

/// No certificate, bundle or list is larger.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// The files with this side's identity, bundles and lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TrustFiles {
    /// The chain, leaf first, PEM.
    pub certificate: PathBuf,
    /// The key, PEM.
    pub key: PathBuf,
    /// A directory with a bundle for each trust domain: `DOMAIN.json` (SPIFFE) or `DOMAIN.pem` (roots).
    pub bundles: PathBuf,
    /// A directory with deny-lists of some trust domains: `DOMAIN.json`.
    pub deny: Option<PathBuf>,
    /// A directory with revocation lists of some trust domains: `DOMAIN.pem` or `DOMAIN.crl`.
    pub crls: Option<PathBuf>,
    /// The policy for a stale revocation list.
    pub stale_crl: StaleCrl,
    /// The publisher outage to survive: each revocation list must be valid for longer.
    #[serde(with = "crate::span")]
    pub outage_budget: Duration,
}

/// A file that was refused.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct LoadError {
    /// The file.
    pub path: PathBuf,
    /// The cause.
    #[source]
    pub cause: Box<LoadCause>,
}

/// Why a file was refused.
#[derive(Debug, thiserror::Error)]
pub enum LoadCause {
    /// The file is missing or unreadable.
    #[error("cannot be read: {0}; it must exist and be readable by this user")]
    Read(#[from] io::Error),
    /// A directory, a pipe or a device.
    #[error("is not a regular file; replace it with one")]
    NoFile,
    /// The file is too large.
    #[error("is larger than {} MiB; is it the right file?", MAX_FILE >> 20)]
    TooLarge,
    /// Not valid PEM.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// Not a valid identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// This side's own bundles do not verify it, so peers would refuse it too.
    #[error("is not used: {0}")]
    Unverified(#[from] VerifyError),
    /// The file name is not a trust domain.
    #[error("must be named TRUST-DOMAIN.json or TRUST-DOMAIN.pem: {0}")]
    Name(#[from] SpiffeIdError),
    /// Two files for the same trust domain.
    #[error("is for the same trust domain as {}; remove one of them", .0.display())]
    Twice(PathBuf),
    /// Not a valid SPIFFE bundle.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A certificate in it cannot be a root.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The bundle is older than the one in use.
    #[error("has sequence {found}, but {known} is known; an old bundle never replaces a newer one")]
    OldBundle {
        /// The sequence number of the file.
        found: u64,
        /// The sequence number in use.
        known: u64,
    },
    /// Not a valid deny-list of its domain.
    #[error(transparent)]
    Deny(#[from] DenyError),
    /// A deny-list or revocation list for a domain without a bundle.
    #[error("is for {0}, which has no bundle here; add its bundle, or remove this file")]
    NoBundle(TrustDomain),
    /// Not a valid revocation list.
    #[error(transparent)]
    Crl(#[from] CrlError),
    /// The identity differs from the one in use.
    #[error("is of {found}, but this process is {known}; restart it to change its identity")]
    OtherIdentity {
        /// The identity in the file.
        found: SpiffeId,
        /// The identity in use.
        known: SpiffeId,
    },
}

impl TrustFiles {
    /// Loads only bundles, deny-lists and revocation lists, to verify peers without an identity of its own.
    pub fn bundles_only(&self) -> Result<TrustBundles, LoadError> {
        let mut load = Load { files: self, old: None, now: UnixTime::now(), refused: Vec::new() };
        let bundles = load.bundles();
        match load.refused.into_iter().next() {
            Some(refused) => Err(refused),
            None => Ok(bundles),
        }
    }

    /// Loads all files. The first invalid one is the error.
    pub(super) fn load(&self, now: UnixTime) -> Result<Trusted, LoadError> {
        let mut load = Load { files: self, old: None, now, refused: Vec::new() };
        let bundles = load.bundles();
        let identity = load.identity(&bundles);
        match (identity, load.refused.into_iter().next()) {
            (Some(identity), None) => Ok(Trusted { identity, bundles: Arc::new(bundles), epoch: 0 }),
            (_, Some(refused)) => Err(refused),
            (None, None) => Err(at(&self.certificate, IdentityError::OtherKey)),
        }
    }

    /// Loads the valid files, and keeps the previous content of invalid ones.
    pub(super) fn reload(&self, old: &Trusted, now: UnixTime) -> (Option<Trusted>, Vec<LoadError>) {
        let mut load = Load { files: self, old: Some(old), now, refused: Vec::new() };
        let bundles = load.bundles();
        let identity = load.identity(&bundles).unwrap_or_else(|| Arc::clone(&old.identity));
        let is_new = identity.chain() != old.identity.chain() || bundles != *old.bundles;
        let new = Trusted { identity, bundles: Arc::new(bundles), epoch: old.epoch };
        (is_new.then_some(new), load.refused)
    }

    /// Every file to watch for changes.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        let folders = [Some(&self.bundles), self.deny.as_ref(), self.crls.as_ref()];
        let inside = folders.into_iter().flatten().flat_map(|folder| files_in(folder).unwrap_or_default());
        [&self.certificate, &self.key].into_iter().cloned().chain(inside).collect()
    }
}

struct Load<'a> {
    files: &'a TrustFiles,
    old: Option<&'a Trusted>,
    now: UnixTime,
    refused: Vec<LoadError>,
}

impl Load<'_> {
    fn bundles(&mut self) -> TrustBundles {
        let mut bundles = self.roots();
        // A removed list file still counts: removing it must not undo a denial.
        let old = self.old.map(|old| Arc::clone(&old.bundles)).unwrap_or_default();
        for (domain, _) in old.iter().filter(|(domain, _)| bundles.get(domain).is_some()).collect::<Vec<_>>()
        {
            bundles.inherit(domain, &old);
        }
        let files = self.files;
        let deny = files.deny.as_ref().and_then(|folder| self.domains(folder));
        for (domain, path) in deny.unwrap_or_default() {
            match self.read_denied(&path, &domain, &bundles) {
                Ok((list, envelope)) => bundles.deny_signed(list, &envelope),
                Err(cause) => self.refused.push(at(&path, cause)),
            }
        }
        let crls = files.crls.as_ref().and_then(|folder| self.domains(folder));
        for (domain, path) in crls.unwrap_or_default() {
            match self.read_crls(&path, &domain, &bundles) {
                Ok(lists) => bundles.revoke(domain, lists),
                Err(cause) => self.refused.push(at(&path, cause)),
            }
        }
        bundles
    }

    /// The bundles alone. A domain whose file is gone is no longer trusted; if the directory is unreadable, all bundles
    /// stay.
    fn roots(&mut self) -> TrustBundles {
        let mut bundles = TrustBundles::new();
        let files = self.files;
        let Some(found) = self.domains(&files.bundles) else {
            let old = self.old.iter().flat_map(|old| old.bundles.iter());
            old.for_each(|(domain, bundle)| bundles.insert(domain.clone(), bundle.clone()));
            return bundles;
        };
        for (domain, path) in found {
            let known = self.old.and_then(|old| old.bundles.get(&domain));
            match read_bundle(&path, &domain).and_then(|bundle| not_older(bundle, known)) {
                Ok(bundle) => bundles.insert(domain, bundle),
                Err(cause) => {
                    self.refused.push(at(&path, cause));
                    known.into_iter().for_each(|known| bundles.insert(domain.clone(), known.clone()));
                }
            }
        }
        bundles
    }

    fn read_denied(
        &self,
        path: &Path,
        domain: &TrustDomain,
        bundles: &TrustBundles,
    ) -> Result<(DenyList, String), LoadCause> {
        let bundle = bundles.get(domain).ok_or_else(|| LoadCause::NoBundle(domain.clone()))?;
        let envelope =
            String::from_utf8(read(path)?).map_err(|error| DenyError::Malformed(error.to_string()))?;
        let list = DenyList::open(envelope.as_bytes(), domain, bundle, self.now, bundles.denied(domain))?;
        Ok((list, envelope))
    }

    fn read_crls(
        &self,
        path: &Path,
        domain: &TrustDomain,
        bundles: &TrustBundles,
    ) -> Result<Crls, LoadCause> {
        bundles.get(domain).ok_or_else(|| LoadCause::NoBundle(domain.clone()))?;
        Ok(Crls::read(&read(path)?, self.files.stale_crl, self.files.outage_budget)?)
    }

    fn identity(&mut self, bundles: &TrustBundles) -> Option<Arc<Identity>> {
        let read = self.read_identity().and_then(|identity| {
            self.check_identity(&identity, bundles).map_err(|cause| at(&self.files.certificate, cause))?;
            Ok(identity)
        });
        read.map(Arc::new).map_err(|refused| self.refused.push(refused)).ok()
    }

    fn read_identity(&self) -> Result<Identity, LoadError> {
        let [chain, key] = [&self.files.certificate, &self.files.key]
            .map(|path| read(path).map_err(|cause| at(path, cause)));
        Identity::from_pem(chain?, key?).map_err(|cause| match cause {
            IdentityError::OtherKey | IdentityError::Key(_) => at(&self.files.key, cause),
            _ => at(&self.files.certificate, cause),
        })
    }

    fn check_identity(&self, identity: &Identity, bundles: &TrustBundles) -> Result<(), LoadCause> {
        if let Some(old) = self.old
            && old.identity.id() != identity.id()
        {
            let [found, known] = [identity, &old.identity].map(|identity| identity.id().clone());
            return Err(LoadCause::OtherIdentity { found, known });
        }
        // A leaf may be for clients only, or for servers only.
        bundles
            .verify(identity.chain(), Role::Server, self.now)
            .or_else(|_| bundles.verify(identity.chain(), Role::Client, self.now))?;
        Ok(())
    }

    /// The files of a folder by the trust domain in their name; none if the folder is unreadable.
    fn domains(&mut self, folder: &Path) -> Option<BTreeMap<TrustDomain, PathBuf>> {
        let mut found: BTreeMap<TrustDomain, PathBuf> = BTreeMap::new();
        let files = files_in(folder).map_err(|error| self.refused.push(at(folder, error))).ok()?;
        for path in files {
            let name = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
            match (TrustDomain::new(name), path) {
                (Err(error), path) => self.refused.push(at(&path, error)),
                (Ok(domain), path) => match found.get(&domain) {
                    Some(first) => self.refused.push(at(&path, LoadCause::Twice(first.clone()))),
                    None => _ = found.insert(domain, path),
                },
            }
        }
        Some(found)
    }
}

fn not_older(bundle: Bundle, known: Option<&Bundle>) -> Result<Bundle, LoadCause> {
    match known {
        Some(known) if bundle.sequence < known.sequence => {
            Err(LoadCause::OldBundle { found: bundle.sequence, known: known.sequence })
        }
        _ => Ok(bundle),
    }
}

fn read_bundle(path: &Path, domain: &TrustDomain) -> Result<Bundle, LoadCause> {
    let content = read(path)?;
    if path.extension().is_some_and(|extension| extension == "json") {
        return Ok(spiffe_bundle::read(domain, &content)?);
    }
    Ok(Bundle::new(domain, 0, &pem::certificates(&content)?)?)
}

/// The files of a folder, sorted by name, without hidden (incomplete) ones.
fn files_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries: io::Result<Vec<_>> = fs::read_dir(folder)?.collect();
    let mut paths: Vec<_> = entries?
        .into_iter()
        .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
        .map(|entry| entry.path())
        .filter(|path| ["json", "pem", "crl"].iter().any(|known| path.extension() == Some(OsStr::new(known))))
        .collect();
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<Vec<u8>, LoadCause> {
    input::read(path, MAX_FILE).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => LoadCause::NoFile,
        io::ErrorKind::FileTooLarge => LoadCause::TooLarge,
        _ => error.into(),
    })
}

fn at(path: &Path, cause: impl Into<LoadCause>) -> LoadError {
    LoadError { path: path.to_owned(), cause: Box::new(cause.into()) }
}
