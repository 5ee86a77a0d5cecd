//! The intermediate that an agent signs with: its files, followed while they change. One that would sign what nobody
//! believes is never used; the last good one signs on, and why is known. Not who may have a certificate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use isthmus_certs::authority::Unusable;
use isthmus_certs::facts::Facts;
use isthmus_certs::issuer::Signing;
use isthmus_certs::{Authority, Csr, IssueError, Issuer, Leaf, Role, SpiffeId, Trust, VerifyError, input};
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
    held: RwLock<LoadedIntermediate>,
}

#[derive(Debug)]
struct LoadedIntermediate {
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
            held: RwLock::new(LoadedIntermediate { authority, read: Some(read), problem: None }),
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
                let held =
                    LoadedIntermediate { authority: Arc::new(authority), read: Some(read), problem: None };
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

    fn held(&self) -> std::sync::RwLockReadGuard<'_, LoadedIntermediate> {
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
    let one = |path: &Path| input::read(path, MAX_FILE).map_err(|cause| at(path, cause));
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
        let authority = Authority::from_pem(own.trust_domain().clone(), certificate, key)?;
        if Facts::of(authority.certificate()).is_ok_and(|facts| facts.is_root()) {
            return Err(IntermediateCause::Root);
        }
        let trial = trial(&authority, own)?;
        trusted.bundles.verify(&trial, Role::Client, UnixTime::now())?;
        Ok(authority)
    };
    judge().map_err(|cause| match cause {
        IntermediateCause::Unusable(Unusable::Key(_)) => at(&files.key, cause),
        _ => at(&files.certificate, cause),
    })
}

fn at(path: &Path, cause: impl Into<IntermediateCause>) -> IntermediateError {
    IntermediateError { path: path.to_owned(), cause: Box::new(cause.into()) }
}

fn trial(authority: &Authority, id: &SpiffeId) -> Result<Vec<CertificateDer<'static>>, IssueError> {
    Ok(authority.issue(id, &[], TRIAL)?.chain().to_vec())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use isthmus_certs::home::{Home, Plan};
    use isthmus_certs::{KeyKind, Request, TrustBundles, TrustDomain};
    use tempfile::TempDir;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    struct World {
        folder: TempDir,
        trust: Trust,
    }

    fn world() -> World {
        let folder = tempfile::tempdir().unwrap();
        for place in ["own", "other"] {
            let plan = Plan::new(TrustDomain::new("east.example").unwrap());
            let mut home = Home::create(&folder.path().join(place), &plan).unwrap();
            assert!(home.add_cluster("east").unwrap());
        }
        let root = Home::open(&folder.path().join("own")).unwrap().root(1).unwrap();
        let agent = SpiffeId::agent(root.trust_domain(), "east", "a").unwrap();
        let mut bundles = TrustBundles::new();
        bundles.add_root(root.trust_domain().clone(), root.certificate()).unwrap();
        let trust = Trust::new(root.issue(&agent, &[], HOUR).unwrap(), bundles);
        World { folder, trust }
    }

    impl World {
        fn files(&self, certificate: &str, key: &str) -> IntermediateFiles {
            let path = |name: &str| self.folder.path().join(name);
            IntermediateFiles { certificate: path(certificate), key: path(key) }
        }

        fn open(&self, certificate: &str, key: &str) -> Result<Intermediate, IntermediateError> {
            Intermediate::open(self.files(certificate, key), self.trust.clone())
        }
    }

    const OWN: [&str; 2] = ["own/clusters/east/ca-cert.pem", "own/clusters/east/ca-key.pem"];

    #[test]
    fn what_would_sign_what_nobody_believes_is_not_used() {
        let world = world();
        let other = OWN.map(|name| name.replace("own", "other"));
        assert!(world.open(OWN[0], OWN[1]).is_ok());
        for (certificate, key, why) in [
            (OWN[0], other[1].as_str(), "the key is not the one of the certificate"),
            (other[0].as_str(), other[1].as_str(), "what it signs is not believed here"),
            ("own/roots/1/root-cert.pem", "own/roots/1/root-key.pem", "is a root"),
            ("own/nothing.pem", OWN[1], "cannot be read"),
            ("own", OWN[1], "not a regular file"),
            (OWN[1], OWN[1], "no certificate"),
        ] {
            let error = world.open(certificate, key).unwrap_err().to_string();
            assert!(
                error.contains(why) && error.contains("own") | error.contains("other"),
                "{certificate}: {error}"
            );
        }
    }

    #[test]
    fn files_are_followed_and_what_is_bad_leaves_the_last_good_one() {
        let world = world();
        let intermediate = world.open(OWN[0], OWN[1]).unwrap();
        let first = intermediate.current().certificate().clone();
        assert!(!intermediate.look() && intermediate.problem().is_none());
        let key = world.folder.path().join(OWN[1]);
        let good = fs::read(&key).unwrap();
        fs::remove_file(&key).unwrap();
        fs::write(&key, "no key").unwrap();
        assert!(!intermediate.look());
        assert!(intermediate.problem().unwrap().contains("no private key"));
        assert_eq!(intermediate.current().certificate(), &first);
        fs::write(&key, good).unwrap();
        assert!(intermediate.look() && intermediate.problem().is_none());
    }

    #[test]
    fn nothing_outlives_what_signs_it() {
        let world = world();
        let intermediate = world.open(OWN[0], OWN[1]).unwrap();
        let request = Request::generate(KeyKind::P256).unwrap();
        let csr = Csr::parse(request.to_pem().unwrap().as_bytes()).unwrap();
        let id = SpiffeId::parse("spiffe://east.example/ns/db/sa/mysql").unwrap();
        let leaf = Leaf { id, dns: Vec::new(), ips: Vec::new(), lifetime: HOUR * 24 * 3_650 };
        let chain = intermediate.certify(&csr, &leaf).unwrap();
        let [leaf, above] = [0, 1].map(|place| Facts::of(&chain[place]).unwrap().not_after);
        assert!(leaf <= above, "{leaf} {above}");
    }
}
