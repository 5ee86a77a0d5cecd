//! The files that trust is loaded from, and what makes them good: the key is the leaf's, the chain verifies
//! against this side's own bundle, no number goes back, every list is signed by its domain.

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
use crate::pem::{self, PemError};
use crate::spiffe::{SpiffeId, SpiffeIdError, TrustDomain};
use crate::spiffe_bundle::{self, FormatError};

/// Larger is no certificate, no bundle and no list.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// Where this side's identity and its trust stand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TrustFiles {
    /// The chain, leaf first, PEM.
    pub certificate: PathBuf,
    /// The key, PEM.
    pub key: PathBuf,
    /// A directory with a bundle for each trust domain: `DOMAIN.json` (SPIFFE) or `DOMAIN.pem` (roots).
    pub bundles: PathBuf,
    /// A directory with the deny-lists of some of them: `DOMAIN.json`.
    pub deny: Option<PathBuf>,
    /// A directory with revocation lists of some of them: `DOMAIN.pem` or `DOMAIN.crl`.
    pub crls: Option<PathBuf>,
    /// What is done with a stale revocation list.
    pub stale_crl: StaleCrl,
    /// How long a publisher of revocation lists may be away: each list must live longer.
    #[serde(with = "crate::span")]
    pub outage_budget: Duration,
}

/// A file that is not used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct LoadError {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub cause: Box<LoadCause>,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum LoadCause {
    /// It is not there, or not readable.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is far too large.
    #[error("is larger than {} MiB; is it the right file?", MAX_FILE >> 20)]
    TooLarge,
    /// It is no PEM.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// It is no identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its own side would not believe it, so nobody would.
    #[error("is not used: {0}")]
    Unbelievable(#[from] VerifyError),
    /// Its name is not a trust domain's.
    #[error("must be named TRUST-DOMAIN.json or TRUST-DOMAIN.pem: {0}")]
    Name(#[from] SpiffeIdError),
    /// Two files speak for the same trust domain.
    #[error("is there beside {}; remove one of them", .0.display())]
    Twice(PathBuf),
    /// It is no SPIFFE bundle.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A root of it cannot be one.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Older than what is known.
    #[error("has sequence {found}, but {known} is known; an old bundle never replaces a newer one")]
    OldBundle {
        /// The number it has.
        found: u64,
        /// The number already seen.
        known: u64,
    },
    /// It is no deny-list of its domain.
    #[error(transparent)]
    Deny(#[from] DenyError),
    /// A deny-list or revocation list for a domain without a bundle.
    #[error("is for {0}, which has no bundle here; add its bundle, or remove this")]
    NoBundle(TrustDomain),
    /// It is no usable revocation list.
    #[error(transparent)]
    Crl(#[from] CrlError),
    /// It is of somebody else than before.
    #[error("is of {found}, but this side is {known}; another identity needs a restart")]
    OtherIdentity {
        /// Whose it is.
        found: SpiffeId,
        /// Who this side is.
        known: SpiffeId,
    },
}

impl TrustFiles {
    /// Loads only the bundles and what belongs to them, for judging others without showing anything.
    pub fn bundles_only(&self) -> Result<TrustBundles, LoadError> {
        let mut load = Load { files: self, old: None, now: UnixTime::now(), refused: Vec::new() };
        let bundles = load.bundles();
        match load.refused.into_iter().next() {
            Some(refused) => Err(refused),
            None => Ok(bundles),
        }
    }

    /// Loads all, of which the first that is wrong is the error.
    pub(super) fn load(&self, now: UnixTime) -> Result<Trusted, LoadError> {
        let mut load = Load { files: self, old: None, now, refused: Vec::new() };
        let bundles = load.bundles();
        let identity = load.identity(&bundles);
        match (identity, load.refused.into_iter().next()) {
            (Some(identity), None) => Ok(Trusted { identity, bundles: Arc::new(bundles), epoch: 0 }),
            (_, Some(refused)) => Err(refused),
            (None, None) => Err(at(&self.certificate, PemError::NoCertificate)),
        }
    }

    /// Loads what is good and keeps the old of what is not.
    pub(super) fn reload(&self, old: &Trusted, now: UnixTime) -> (Option<Trusted>, Vec<LoadError>) {
        let mut load = Load { files: self, old: Some(old), now, refused: Vec::new() };
        let bundles = load.bundles();
        let identity = load.identity(&bundles).unwrap_or_else(|| Arc::clone(&old.identity));
        let is_new = identity.chain() != old.identity.chain() || bundles != *old.bundles;
        let new = Trusted { identity, bundles: Arc::new(bundles), epoch: old.epoch };
        (is_new.then_some(new), load.refused)
    }

    /// Everything that is looked at, for telling whether it changed.
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
        let mut bundles = TrustBundles::new();
        let files = self.files;
        for (domain, path) in self.domains(&files.bundles) {
            let known = self.old.and_then(|old| old.bundles.get(&domain));
            let read = read_bundle(&path, &domain).and_then(|bundle| match known {
                Some(known) if bundle.sequence < known.sequence => {
                    Err(LoadCause::OldBundle { found: bundle.sequence, known: known.sequence })
                }
                _ => Ok(bundle),
            });
            match read {
                Ok(bundle) => bundles.insert(domain, bundle),
                Err(cause) => {
                    self.refused.push(at(&path, cause));
                    if let Some(known) = known {
                        bundles.insert(domain, known.clone());
                    }
                }
            }
        }
        self.denied(&mut bundles);
        self.crls(&mut bundles);
        bundles
    }

    fn denied(&mut self, bundles: &mut TrustBundles) {
        // A list that is gone from its place is still known: only its domain takes a denial back.
        for (domain, _) in self.old.iter().flat_map(|old| old.bundles.iter()) {
            let known = self.old.and_then(|old| old.bundles.denied(domain));
            if let (Some(list), Some(_)) = (known, bundles.get(domain)) {
                bundles.deny(list.clone());
            }
        }
        let Some(folder) = &self.files.deny else { return };
        for (domain, path) in self.domains(folder) {
            match self.read_denied(&path, &domain, bundles) {
                Ok(list) => bundles.deny(list),
                Err(cause) => self.refused.push(at(&path, cause)),
            }
        }
    }

    fn read_denied(
        &self,
        path: &Path,
        domain: &TrustDomain,
        bundles: &TrustBundles,
    ) -> Result<DenyList, LoadCause> {
        let bundle = bundles.get(domain).ok_or_else(|| LoadCause::NoBundle(domain.clone()))?;
        let list = DenyList::open(&read(path)?, domain, bundle, self.now)?;
        match bundles.denied(domain) {
            Some(known) if list.sequence() < known.sequence() => Err(DenyError::Older {
                domain: domain.clone(),
                found: list.sequence(),
                known: known.sequence(),
            })?,
            _ => Ok(list),
        }
    }

    fn crls(&mut self, bundles: &mut TrustBundles) {
        let Some(folder) = &self.files.crls else { return };
        for (domain, path) in self.domains(folder) {
            let known = self.old.and_then(|old| old.bundles.crls(&domain)).cloned();
            let lists = match bundles.get(&domain) {
                None => Err(LoadCause::NoBundle(domain.clone())),
                Some(_) => read(&path).and_then(|bytes| {
                    Ok(Crls::read(&bytes, self.files.stale_crl, self.files.outage_budget)?)
                }),
            };
            match lists {
                Ok(lists) => bundles.revoke(domain, lists),
                Err(cause) => {
                    self.refused.push(at(&path, cause));
                    known.into_iter().for_each(|known| bundles.revoke(domain.clone(), known));
                }
            }
        }
    }

    fn identity(&mut self, bundles: &TrustBundles) -> Option<Arc<Identity>> {
        let read = self.read_identity().and_then(|identity| {
            self.believable(&identity, bundles).map_err(|cause| at(&self.files.certificate, cause))?;
            Ok(identity)
        });
        read.map(Arc::new).map_err(|refused| self.refused.push(refused)).ok()
    }

    fn read_identity(&self) -> Result<Identity, LoadError> {
        let [chain, key] = [&self.files.certificate, &self.files.key]
            .map(|path| text(path).map_err(|cause| at(path, cause)));
        Identity::from_pem(&chain?, &key?).map_err(|cause| match cause {
            IdentityError::OtherKey | IdentityError::Pem(PemError::Key) => at(&self.files.key, cause),
            _ => at(&self.files.certificate, cause),
        })
    }

    fn believable(&self, identity: &Identity, bundles: &TrustBundles) -> Result<(), LoadCause> {
        if let Some(old) = self.old
            && old.identity.id() != identity.id()
        {
            let [found, known] = [identity, &old.identity].map(|identity| identity.id().clone());
            return Err(LoadCause::OtherIdentity { found, known });
        }
        // Some leaves are for one use only.
        bundles
            .verify(identity.chain(), Role::Server, self.now)
            .or_else(|_| bundles.verify(identity.chain(), Role::Client, self.now))?;
        Ok(())
    }

    fn domains(&mut self, folder: &Path) -> BTreeMap<TrustDomain, PathBuf> {
        let mut found: BTreeMap<TrustDomain, PathBuf> = BTreeMap::new();
        let files = files_in(folder).unwrap_or_else(|error| {
            self.refused.push(at(folder, error));
            Vec::new()
        });
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
        found
    }
}

fn read_bundle(path: &Path, domain: &TrustDomain) -> Result<Bundle, LoadCause> {
    let content = text(path)?;
    if path.extension().is_some_and(|extension| extension == "json") {
        return Ok(spiffe_bundle::read(domain, &content)?);
    }
    Ok(Bundle::new(domain, 0, &pem::certificates(&content)?)?)
}

/// The files of a folder in the order of their names, without hidden ones, which are no parts of it yet.
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
    if fs::metadata(path)?.len() > MAX_FILE {
        return Err(LoadCause::TooLarge);
    }
    Ok(fs::read(path)?)
}

fn text(path: &Path) -> Result<String, LoadCause> {
    let bytes = read(path)?;
    String::from_utf8(bytes).map_err(|_| PemError::NoCertificate.into())
}

fn at(path: &Path, cause: impl Into<LoadCause>) -> LoadError {
    LoadError { path: path.to_owned(), cause: Box::new(cause.into()) }
}
