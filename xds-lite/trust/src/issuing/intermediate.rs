//! The intermediate certificate that the agent signs with, reloaded when its files change. An intermediate
//! whose leaves would not verify is never used; the last good one keeps signing, and the problem is reported.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use isthmus_certs::authority::Unusable;
use isthmus_certs::facts::Facts;
use isthmus_certs::issuer::Signing;
use isthmus_certs::{Authority, Csr, IssueError, Issuer, Leaf, Role, SpiffeId, Trust, VerifyError, input};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

/// Size limit of a certificate or key file.
const MAX_FILE: u64 = 1 << 20;
/// Lifetime of the leaf that is signed to test an intermediate.
const TRIAL: Duration = Duration::from_secs(1);

/// The files of an intermediate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntermediateFiles {
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// The key, PEM.
    pub key: PathBuf,
}

/// An intermediate cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct IntermediateError {
    /// The path of the file.
    pub path: PathBuf,
    /// The reason.
    pub cause: Box<IntermediateCause>,
}

/// Why an intermediate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IntermediateCause {
    /// The file is missing or unreadable.
    #[error("cannot be read: {0}; it must exist and be readable by this user")]
    Read(#[from] io::Error),
    /// The certificate or key is not usable for signing.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// It is a root, whose key must stay offline.
    #[error(
        "is a root; an agent signs with an intermediate: make one with `isthmus-certs intermediate --cluster CLUSTER`"
    )]
    Root,
    /// Signing failed.
    #[error(transparent)]
    Sign(#[from] IssueError),
    /// A leaf that it signs does not verify under the loaded bundles.
    #[error("certificates that it signs do not verify here: {0}")]
    Unbelieved(#[from] VerifyError),
}

/// An intermediate that is reloaded when its files change.
#[derive(Debug)]
pub struct Intermediate {
    files: IntermediateFiles,
    trust: Trust,
    held: RwLock<LoadedIntermediate>,
}

#[derive(Debug)]
struct LoadedIntermediate {
    authority: Arc<Authority>,
    /// The content of the files at the last reload, valid or not.
    read: Option<[Vec<u8>; 2]>,
    problem: Option<String>,
}

impl Intermediate {
    /// Loads it; `trust` verifies its leaves now and later.
    ///
    /// # Errors
    /// The intermediate cannot be used.
    pub fn open(files: IntermediateFiles, trust: Trust) -> Result<Intermediate, IntermediateError> {
        let read = read(&files)?;
        let authority = Arc::new(good(&files, &read, &trust)?);
        Ok(Intermediate {
            files,
            trust,
            held: RwLock::new(LoadedIntermediate { authority, read: Some(read), problem: None }),
        })
    }

    /// Reloads the files. Returns whether another intermediate signs now.
    pub fn poll(&self) -> bool {
        let read = match read(&self.files) {
            Ok(read) if self.held().read.as_ref() == Some(&read) => return false,
            Ok(read) => read,
            Err(error) => return self.refuse(None, &error),
        };
        match good(&self.files, &read, &self.trust) {
            Ok(authority) => {
                tracing::info!(until = %authority.not_after(), "signing with a new intermediate");
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
            tracing::warn!("issuing: {problem}; keeping the previous intermediate");
        }
        // The two files may be replaced one after the other: retry a half-done replacement.
        held.read = read.filter(|_| held.problem.as_ref() == Some(&problem));
        held.problem = Some(problem);
        false
    }

    /// The error of the last reload, while the previous intermediate signs.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.held().problem.clone()
    }

    /// The intermediate in use.
    #[must_use]
    pub fn current(&self) -> Arc<Authority> {
        Arc::clone(&self.held().authority)
    }

    fn held(&self) -> std::sync::RwLockReadGuard<'_, LoadedIntermediate> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn certify(&self, csr: &Csr, leaf: &Leaf) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        let authority = self.current();
        // Near the end of the intermediate: a shorter lifetime than requested rather than no certificate.
        let leaf = Leaf { lifetime: leaf.lifetime.min(authority.longest()), ..leaf.clone() };
        let chain = authority.certify(csr.key(), &leaf)?;
        // A leaf that is denied, or signed by an untrusted intermediate, is useless.
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

/// The authority, if the leaves that it signs verify.
fn good(
    files: &IntermediateFiles,
    [certificate, key]: &[Vec<u8>; 2],
    trust: &Trust,
) -> Result<Authority, IntermediateError> {
    let judge = || -> Result<Authority, IntermediateCause> {
        let trusted = trust.current();
        let own = trusted.identity.id();
        let authority = Authority::from_pem(own.trust_domain().clone(), certificate, key)?;
        if Facts::read(authority.certificate()).is_ok_and(|facts| facts.is_root()) {
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
    fn intermediate_whose_leaves_do_not_verify_is_not_used() {
        let world = world();
        let other = OWN.map(|name| name.replace("own", "other"));
        assert!(world.open(OWN[0], OWN[1]).is_ok());
        for (certificate, key, why) in [
            (OWN[0], other[1].as_str(), "the private key does not match the certificate"),
            (other[0].as_str(), other[1].as_str(), "certificates that it signs do not verify here"),
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
    fn intermediate_files_are_reloaded_and_bad_ones_keep_the_last_good_one() {
        let world = world();
        let intermediate = world.open(OWN[0], OWN[1]).unwrap();
        let first = intermediate.current().certificate().clone();
        assert!(!intermediate.poll() && intermediate.problem().is_none());
        let key = world.folder.path().join(OWN[1]);
        let good = fs::read(&key).unwrap();
        fs::remove_file(&key).unwrap();
        fs::write(&key, "no key").unwrap();
        assert!(!intermediate.poll());
        assert!(intermediate.problem().unwrap().contains("no private key"));
        assert_eq!(intermediate.current().certificate(), &first);
        fs::write(&key, good).unwrap();
        assert!(intermediate.poll() && intermediate.problem().is_none());
    }

    #[test]
    fn leaf_does_not_outlive_its_intermediate() {
        let world = world();
        let intermediate = world.open(OWN[0], OWN[1]).unwrap();
        let request = Request::generate(KeyKind::P256).unwrap();
        let csr = Csr::parse(request.to_pem().unwrap().as_bytes()).unwrap();
        let id = SpiffeId::parse("spiffe://east.example/ns/db/sa/mysql").unwrap();
        let leaf = Leaf { id, dns: Vec::new(), ips: Vec::new(), lifetime: HOUR * 24 * 3_650 };
        let chain = intermediate.certify(&csr, &leaf).unwrap();
        let [leaf, above] = [0, 1].map(|place| Facts::read(&chain[place]).unwrap().not_after);
        assert!(leaf <= above, "{leaf} {above}");
    }
}
