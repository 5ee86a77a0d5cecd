//! The directory of an authority: its roots, the intermediates of its clusters, the leaves that it renews, the bundles
//! of all domains and the deny-lists. One process at a time works on it. `authority.json` says what it should hold;
//! `rotate` brings the files to that, whatever state a crash left them in.

mod awaiting;
mod bundles;
mod denying;
mod error;
mod issuing;
mod renewal;
mod rotate;
mod state;

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::authority::{Authority, INTERMEDIATE_LIFETIME, ROOT_LIFETIME, Unusable};
use crate::files::{self, PUBLIC, SECRET};
use crate::input;
use crate::key::KeyKind;
use crate::pem;
use crate::spiffe::TrustDomain;

pub use awaiting::{Awaited, Missing};
pub use error::HomeError;
pub use renewal::renew_at;
pub use rotate::{Done, Pass, Standing};
pub use state::{LeafRecord, OVERLAP, Rollover, State, Step};

const STATE: &str = "authority.json";
const LOCK: &str = ".lock";
const ROOT_CERTIFICATE: &str = "root-cert.pem";
const ROOT_KEY: &str = "root-key.pem";
/// Longest wait for the lock: work on a directory takes a moment.
const PATIENCE: Duration = Duration::from_secs(10);
const PACE: Duration = Duration::from_millis(20);
/// No file of an authority is larger.
const LARGEST: u64 = 16 << 20;
/// The time between making a root and what it signs.
const MOMENT: Duration = Duration::from_secs(1);
/// The directories that `init --force` removes; nothing else is touched.
const OWN: [&str; 5] = ["roots", "clusters", "leaves", "bundles", "deny"];

/// The directory of an authority, locked for this process.
#[derive(Debug)]
pub struct Home {
    folder: PathBuf,
    state: State,
    _lock: File,
}

/// The settings of a new authority.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The trust domain of the authority.
    pub trust_domain: TrustDomain,
    /// The type of its keys.
    pub key: KeyKind,
    /// The lifetime of roots.
    pub root_lifetime: Duration,
    /// The lifetime of intermediates.
    pub intermediate_lifetime: Duration,
    /// The shortest wait of each step of a root roll-over.
    pub overlap: Duration,
}

impl Plan {
    /// Checks the settings by making a root and an intermediate in memory.
    pub fn check(&self) -> Result<(), HomeError> {
        let root = Authority::root(self.trust_domain.clone(), self.key, self.root_lifetime)?;
        let lifetime = self.intermediate_lifetime.min(self.root_lifetime.saturating_sub(MOMENT));
        root.intermediate("tried", self.key, lifetime)?;
        Ok(())
    }

    /// The defaults: P-256, ten years, one year, seven days.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            key: KeyKind::P256,
            root_lifetime: ROOT_LIFETIME,
            intermediate_lifetime: INTERMEDIATE_LIFETIME,
            overlap: OVERLAP,
        }
    }
}

impl Home {
    /// Makes a new authority in a directory that has none.
    pub fn create(folder: &Path, plan: &Plan) -> Result<Self, HomeError> {
        files::make_folder(folder)?;
        let lock = lock(folder)?;
        for name in [STATE, "clusters", "leaves"].map(|name| folder.join(name)) {
            if is_there(&name)? {
                return Err(HomeError::Present(folder.to_owned()));
            }
        }
        let plan = plan.clone();
        let state = State {
            trust_domain: plan.trust_domain,
            key: plan.key,
            root_lifetime: plan.root_lifetime,
            intermediate_lifetime: plan.intermediate_lifetime,
            overlap: plan.overlap,
            root: 1,
            issued_until: OffsetDateTime::UNIX_EPOCH,
            rollover: None,
            acknowledged: Vec::new(),
            clusters: Default::default(),
            leaves: Default::default(),
        };
        let home = Self { folder: folder.to_owned(), state, _lock: lock };
        home.begin_root()?;
        files::make_folder(&home.deny_folder())?;
        home.publish_bundle(OffsetDateTime::now_utc())?;
        home.save()?;
        Ok(home)
    }

    /// Deletes the authority of a directory, with every key. Other files stay.
    pub fn destroy(folder: &Path) -> Result<(), HomeError> {
        if !is_there(&folder.join(STATE))? && !is_there(&folder.join("roots"))? {
            return Ok(());
        }
        let _lock = lock(folder)?;
        let gone = |path: PathBuf, removed: io::Result<()>| match removed {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(HomeError::Read { path, cause }),
            _ => Ok(()),
        };
        for own in OWN.map(|name| folder.join(name)) {
            let removed = fs::remove_dir_all(&own);
            gone(own, removed)?;
        }
        let state = folder.join(STATE);
        let removed = fs::remove_file(&state);
        gone(state, removed)
    }

    /// Opens the authority of a directory.
    pub fn open(folder: &Path) -> Result<Self, HomeError> {
        Self::peek(folder)?;
        let lock = lock(folder)?;
        files::sweep(folder)?;
        let state = Self::peek(folder)?;
        Ok(Self { folder: folder.to_owned(), state, _lock: lock })
    }

    /// Reads the state of a directory without locking it.
    pub fn peek(folder: &Path) -> Result<State, HomeError> {
        let path = folder.join(STATE);
        if !is_there(&path)? {
            return Err(HomeError::Absent(folder.to_owned()));
        }
        serde_json::from_str(&read(&path)?).map_err(|cause| HomeError::State { path, cause })
    }

    /// The state: what the directory should hold.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The directory.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn save(&self) -> Result<(), HomeError> {
        let path = self.folder.join(STATE);
        let text = serde_json::to_string_pretty(&self.state);
        let text = text.map_err(|cause| HomeError::State { path: path.clone(), cause })?;
        Ok(files::write(&path, &(text + "\n"), PUBLIC)?)
    }

    fn root_folder(&self, number: u64) -> PathBuf {
        self.folder.join("roots").join(number.to_string())
    }

    /// The directory of a cluster's intermediate.
    pub fn cluster_folder(&self, cluster: &str) -> PathBuf {
        self.folder.join("clusters").join(cluster)
    }

    /// Makes the first root, or uses the one left by an interrupted `create`: a key is never overwritten.
    fn begin_root(&self) -> Result<(), HomeError> {
        let folder = self.folder.join("roots");
        let mut others = Vec::new();
        if is_there(&folder)? {
            let entries = fs::read_dir(&folder).map_err(|cause| HomeError::Read { path: folder, cause })?;
            others.extend(entries.flatten().map(|entry| entry.file_name()).filter(|name| name != "1"));
        }
        let is_made = is_there(&self.root_folder(1).join(ROOT_CERTIFICATE))?;
        if !others.is_empty() || (is_made && self.root(1).is_err()) {
            return Err(HomeError::Present(self.folder.clone()));
        }
        if is_made { Ok(()) } else { self.make_root(1) }
    }

    fn make_root(&self, number: u64) -> Result<(), HomeError> {
        let state = &self.state;
        let root = Authority::root(state.trust_domain.clone(), state.key, state.root_lifetime)?;
        let key = root.key_pem().unwrap_or_default();
        let folder = self.root_folder(number);
        files::make_folder(&folder)?;
        // The key first: a root exists once its certificate does.
        files::write(&folder.join(ROOT_KEY), key, SECRET)?;
        files::write(&folder.join(ROOT_CERTIFICATE), &root.certificate_pem(), PUBLIC)?;
        Ok(())
    }

    /// A root with its key.
    pub fn root(&self, number: u64) -> Result<Authority, HomeError> {
        let folder = self.root_folder(number);
        self.authority(&folder.join(ROOT_CERTIFICATE), &folder.join(ROOT_KEY))
    }

    /// The intermediate of a cluster.
    pub fn intermediate(&self, cluster: &str) -> Result<Authority, HomeError> {
        if !self.state.clusters.contains(cluster) {
            return Err(HomeError::UnknownCluster(cluster.to_owned()));
        }
        let folder = self.cluster_folder(cluster);
        self.authority(&folder.join("ca-cert.pem"), &folder.join("ca-key.pem"))
    }

    fn authority(&self, certificate: &Path, key: &Path) -> Result<Authority, HomeError> {
        let chain = read_bytes(certificate)?;
        let secret = match input::read(key, LARGEST) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(HomeError::KeyAway(key.to_owned()));
            }
            read => read.map_err(|cause| HomeError::Read { path: key.to_owned(), cause })?,
        };
        Authority::from_pem(self.state.trust_domain.clone(), chain, secret).map_err(|cause| {
            let path = if matches!(cause, Unusable::Key(_)) { key } else { certificate };
            HomeError::Unusable { path: path.to_owned(), cause }
        })
    }

    fn root_certificate(&self, number: u64) -> Result<CertificateDer<'static>, HomeError> {
        let path = self.root_folder(number).join(ROOT_CERTIFICATE);
        let roots = pem::certificates(read_bytes(&path)?).map_err(Unusable::Chain);
        let first = roots.and_then(|roots| roots.into_iter().next().ok_or(Unusable::Empty));
        first.map_err(|cause| HomeError::Unusable { path, cause })
    }

    /// The certificates of the roots that are trusted now, as PEM.
    fn trusted_roots(&self) -> Result<String, HomeError> {
        Ok(pem::encode(&self.trusted_certificates()?))
    }
}

fn lock(folder: &Path) -> Result<File, HomeError> {
    let path = folder.join(LOCK);
    let failed = |cause| HomeError::Read { path: path.clone(), cause };
    // Links are not followed: another user may have placed one.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = File::options();
    options.write(true).create(true).truncate(false).mode(SECRET).custom_flags(flags);
    let lock = options.open(&path).map_err(failed)?;
    let patience = Instant::now() + PATIENCE;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if Instant::now() < patience => thread::sleep(PACE),
            Err(TryLockError::WouldBlock) => return Err(HomeError::Busy(folder.to_owned())),
            Err(TryLockError::Error(cause)) => return Err(failed(cause)),
        }
    }
}

fn read(path: &Path) -> Result<String, HomeError> {
    input::read_text(path, LARGEST).map_err(|cause| HomeError::Read { path: path.to_owned(), cause })
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, HomeError> {
    input::read(path, LARGEST).map_err(|cause| HomeError::Read { path: path.to_owned(), cause })
}

/// Whether a file exists. An inaccessible file is an error, not a missing one.
fn is_there(path: &Path) -> Result<bool, HomeError> {
    path.try_exists().map_err(|cause| HomeError::Read { path: path.to_owned(), cause })
}

/// Checks the name of a cluster or leaf, which is also the name of a directory.
fn check_name(name: &str) -> Result<(), HomeError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && name.chars().all(allowed) && name.len() <= 200 {
        Ok(())
    } else {
        Err(HomeError::Name(name.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests;
