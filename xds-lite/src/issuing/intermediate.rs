//! The intermediate that an agent signs with: its files, followed while they change. One that would sign what nobody
//! believes is never used; the last good one signs on, and why is known. Not who may have a certificate.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use isthmus_certs::authority::Unusable;
use isthmus_certs::facts::Facts;
use isthmus_certs::issuer::Signing;
use isthmus_certs::{Authority, Csr, IssueError, Issuer, Leaf, Role, SpiffeId, Trust, VerifyError};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

/// Larger is no certificate and no key.
const MAX_FILE: u64 = 1 << 20;
/// What is signed to see whether it would be believed.
const TRIAL: Duration = Duration::from_secs(1);

/// Where an intermediate stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntermediateFiles {
    /// Its certificate, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

/// Why an intermediate is not used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct IntermediateError {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    pub cause: Box<IntermediateCause>,
}

/// Why an intermediate is not used.
#[derive(Debug, thiserror::Error)]
pub enum IntermediateCause {
    /// It is not there, or not readable.
    #[error("cannot be read: {0}; it must be there, and readable by this user")]
    Read(#[from] io::Error),
    /// It cannot sign.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// A root's key belongs nowhere near a network.
    #[error(
        "is a root; an agent signs with an intermediate: make one with `isthmus-certs intermediate --cluster CLUSTER`"
    )]
    Root,
    /// It does not sign.
    #[error(transparent)]
    Sign(#[from] IssueError),
    /// This side would not believe what it signs, so nobody would.
    #[error("what it signs is not believed here: {0}")]
    Unbelieved(#[from] VerifyError),
}

/// An intermediate that follows its files.
#[derive(Debug)]
pub struct Intermediate {
    files: IntermediateFiles,
    trust: Trust,
    held: RwLock<Held>,
}

#[derive(Debug)]
struct Held {
    authority: Arc<Authority>,
    /// What was read last, good or not.
    read: Option<[Vec<u8>; 2]>,
    problem: Option<String>,
}

impl Intermediate {
    /// Reads it; `trust` judges what it signs, now and later.
    ///
    /// # Errors
    /// Why it is not used.
    pub fn open(files: IntermediateFiles, trust: Trust) -> Result<Intermediate, IntermediateError> {
        let read = read(&files)?;
        let authority = Arc::new(good(&files, &read, &trust)?);
        Ok(Intermediate {
            files,
            trust,
            held: RwLock::new(Held { authority, read: Some(read), problem: None }),
        })
    }

    /// Looks at the files again. Says whether another one signs now.
    pub fn look(&self) -> bool {
        let read = match read(&self.files) {
            Ok(read) if self.held().read.as_ref() == Some(&read) => return false,
            Ok(read) => read,
            Err(error) => return self.refuse(None, &error),
        };
        match good(&self.files, &read, &self.trust) {
            Ok(authority) => {
                tracing::info!(until = %authority.not_after(), "another intermediate signs from now on");
                let held = Held { authority: Arc::new(authority), read: Some(read), problem: None };
                *self.held.write().unwrap_or_else(PoisonError::into_inner) = held;
                true
            }
            Err(error) => self.refuse(Some(read), &error),
        }
    }

    fn refuse(&self, read: Option<[Vec<u8>; 2]>, error: &IntermediateError) -> bool {
        let problem = error.to_string();
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        if held.problem.as_ref() != Some(&problem) {
            tracing::warn!("issuing: {problem}; the old one signs on");
        }
        // Both files are replaced together or one after the other: what was half done is looked at again.
        held.read = read.filter(|_| held.problem.as_ref() == Some(&problem));
        held.problem = Some(problem);
        false
    }

    /// What was wrong with the files at the last look, while the old one signs.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.held().problem.clone()
    }

    /// The one that signs now.
    #[must_use]
    pub fn current(&self) -> Arc<Authority> {
        Arc::clone(&self.held().authority)
    }

    fn held(&self) -> std::sync::RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn certify(&self, csr: &Csr, leaf: &Leaf) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        let authority = self.current();
        // Shorter than it was asked for, rather than none, near the end of what signs it.
        let leaf = Leaf { lifetime: leaf.lifetime.min(authority.longest()), ..leaf.clone() };
        let chain = authority.certify(csr.key(), &leaf)?;
        // What is denied, or signed by what is no longer believed, is of no use to anybody.
        self.trust
            .current()
            .bundles
            .verify(&chain, Role::Client, UnixTime::now())
            .map_err(IssueError::Unbelieved)?;
        Ok(chain)
    }
}

impl Issuer for Intermediate {
    fn sign<'a>(&'a self, csr: &'a Csr, leaf: &'a Leaf) -> Signing<'a> {
        Box::pin(std::future::ready(self.certify(csr, leaf)))
    }
}

fn read(files: &IntermediateFiles) -> Result<[Vec<u8>; 2], IntermediateError> {
    let one = |path: &Path| {
        let read = || {
            // Not waited for, were it no file but a pipe.
            let facts = fs::metadata(path)?;
            match facts.is_file() && facts.len() <= MAX_FILE {
                true => fs::read(path),
                false => Err(io::Error::other("it is no file, or far too large")),
            }
        };
        read().map_err(|cause| at(path, cause))
    };
    Ok([one(&files.certificate)?, one(&files.key)?])
}

/// The authority that was read, if what it signs is believed.
fn good(
    files: &IntermediateFiles,
    [certificate, key]: &[Vec<u8>; 2],
    trust: &Trust,
) -> Result<Authority, IntermediateError> {
    let judge = || -> Result<Authority, IntermediateCause> {
        let trusted = trust.current();
        let own = trusted.identity.id();
        let (chain, key) = (String::from_utf8_lossy(certificate), String::from_utf8_lossy(key));
        let authority = Authority::from_pem(own.trust_domain().clone(), &chain, &key)?;
        if Facts::of(authority.certificate()).is_ok_and(|facts| facts.is_root()) {
            return Err(IntermediateCause::Root);
        }
        let trial = trial(&authority, own)?;
        trusted.bundles.verify(&trial, Role::Client, UnixTime::now())?;
        Ok(authority)
    };
    judge().map_err(|cause| at(&files.certificate, cause))
}

fn at(path: &Path, cause: impl Into<IntermediateCause>) -> IntermediateError {
    IntermediateError { path: path.to_owned(), cause: Box::new(cause.into()) }
}

fn trial(authority: &Authority, id: &SpiffeId) -> Result<Vec<CertificateDer<'static>>, IssueError> {
    Ok(authority.issue(id, &[], TRIAL)?.chain().to_vec())
}
