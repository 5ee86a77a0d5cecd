//! The directory of a certificate that an agent gave: `tls.crt`, `tls.key` and `ca.crt` swapped together, by a link,
//! the domain's bundle in `bundles/`, and in `issuer.json` who renews it. Not the asking.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use isthmus_certs::files::{self, Entry, PUBLIC, WriteError};
use isthmus_certs::spiffe_bundle::{self, FormatError};
use isthmus_certs::trust::LoadError;
use isthmus_certs::{Bundle, Trust, TrustDomain, TrustFiles, input, pem};
use serde::{Deserialize, Serialize};

use super::Granted;
use crate::join::Party;
use isthmus_model::address::Target;
use isthmus_model::slice::Cluster;

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOTS: &str = "ca.crt";
const ISSUER: &str = "issuer.json";
const NAMES: [&str; 4] = [CERTIFICATE, KEY, ROOTS, ISSUER];
const BUNDLES: &str = "bundles";
/// Larger is neither a bundle nor the name of an agent.
const LARGEST: u64 = 16 << 20;

/// A directory with one certificate.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

/// Who renews it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Where the agent is.
    pub address: Target,
    /// Whose agent it is.
    pub cluster: Cluster,
}

#[derive(Serialize, Deserialize)]
struct Written {
    agent: String,
    cluster: String,
}

/// What a directory has.
#[derive(Debug)]
pub enum Standing {
    /// A certificate that is good now.
    Good(Trust),
    /// Nothing yet.
    Absent,
    /// Something that is of no use, such as a certificate that has expired.
    Bad(LoadError),
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The bundle cannot be written.
    #[error("the bundle: {0}")]
    Bundle(#[from] FormatError),
    /// It does not say who renews.
    #[error("{}: {cause}; remove the directory, and enrol with a new token", path.display())]
    Issuer {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
}

impl Folder {
    /// A directory, which need not be there yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Folder {
        Folder(path.into())
    }

    /// Which it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Its files, as trust is loaded from them; `beside` says what is elsewhere: lists of what was taken back.
    #[must_use]
    pub fn files(&self, beside: TrustFiles) -> TrustFiles {
        TrustFiles {
            certificate: self.0.join(CERTIFICATE),
            key: self.0.join(KEY),
            bundles: self.0.join(BUNDLES),
            ..beside
        }
    }

    /// What it has.
    #[must_use]
    pub fn standing(&self, files: &TrustFiles) -> Standing {
        match fs::symlink_metadata(self.0.join(CERTIFICATE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Standing::Absent,
            _ => match Trust::load(files) {
                Ok(trust) => Standing::Good(trust),
                Err(error) => Standing::Bad(error),
            },
        }
    }

    /// Who renews it.
    ///
    /// # Errors
    /// It does not say.
    pub fn origin(&self) -> Result<Origin, FolderError> {
        let path = self.0.join(ISSUER);
        let read = || -> Result<Origin, String> {
            let text = input::read_text(&path, LARGEST).map_err(|error| error.to_string())?;
            let Written { agent, cluster } =
                serde_json::from_str(&text).map_err(|error| error.to_string())?;
            let address = agent.parse::<Target>().map_err(|wrong| format!("the agent {}", wrong.what))?;
            Ok(Origin { address, cluster: cluster.parse().map_err(|_| "it names no cluster".to_owned())? })
        };
        read().map_err(|cause| FolderError::Issuer { path: path.clone(), cause })
    }

    /// Makes the directory, so that what cannot be kept is known before anything is asked for.
    ///
    /// # Errors
    /// It is not there for us: somebody else's files are in the way, or it cannot be written.
    pub fn prepare(&self) -> Result<(), FolderError> {
        files::check_unoccupied(&self.0, &NAMES)?;
        Ok(files::make_folder(&self.0.join(BUNDLES))?)
    }

    /// Keeps a certificate in place of the one before. The bundle comes first: at every moment what is there is
    /// believed by what is there.
    ///
    /// # Errors
    /// What was there before is there still.
    pub fn put(&self, granted: &Granted, origin: &Origin) -> Result<(), FolderError> {
        let Granted { identity, bundle } = granted;
        let domain = identity.id().trust_domain();
        if self.bundle(domain).as_ref() != Some(bundle) {
            files::make_folder(&self.0.join(BUNDLES))?;
            files::write(&self.bundle_file(domain), &spiffe_bundle::write(bundle)?, PUBLIC)?;
        }
        let Origin { address, cluster } = origin;
        let written = Written { agent: address.to_string(), cluster: cluster.to_string() };
        let issuer = serde_json::to_string_pretty(&written).map_err(FormatError::from)?;
        let [certificate, key, roots] = shown(granted);
        let entries = [certificate, key, roots, Entry::public(ISSUER, issuer + "\n")];
        Ok(files::publish(&self.0, &entries)?)
    }

    /// Keeps a certificate in place of the one before, where the bundles are elsewhere.
    ///
    /// # Errors
    /// What was there before is there still.
    pub fn put_alone(&self, granted: &Granted) -> Result<(), FolderError> {
        Ok(files::publish(&self.0, &shown(granted))?)
    }

    /// What is known of a domain.
    #[must_use]
    pub fn bundle(&self, domain: &TrustDomain) -> Option<Bundle> {
        let text = input::read_text(&self.bundle_file(domain), LARGEST).ok()?;
        spiffe_bundle::read(domain, &text).ok()
    }

    fn bundle_file(&self, domain: &TrustDomain) -> PathBuf {
        self.0.join(BUNDLES).join(format!("{domain}.json"))
    }
}

fn shown(granted: &Granted) -> [Entry; 3] {
    let Granted { identity, bundle } = granted;
    [
        Entry::public(CERTIFICATE, identity.chain_pem()),
        Entry::secret(KEY, identity.key_pem()),
        Entry::public(ROOTS, pem::encode(bundle.roots())),
    ]
}

impl Origin {
    /// The agent that a token leads to.
    #[must_use]
    pub fn of(address: Target, party: &Party) -> Origin {
        Origin { address, cluster: party.cluster.clone() }
    }
}
