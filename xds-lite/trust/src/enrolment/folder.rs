//! Stores an issued certificate: `tls.crt`, `tls.key` and `ca.crt` are swapped together through a symbolic
//! link, the domain's bundle is in `bundles/`, and `issuer.json` names the agent that renews it.

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
const DENY: &str = "deny";
/// Size limit of a bundle or of `issuer.json`.
const LARGEST: u64 = 16 << 20;

/// A directory with one certificate.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

/// The agent that renews a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Its address.
    pub address: Target,
    /// Its cluster.
    pub cluster: Cluster,
}

#[derive(Serialize, Deserialize)]
struct Written {
    agent: String,
    cluster: String,
}

/// The content of a directory.
#[derive(Debug)]
pub enum Standing {
    /// A valid certificate.
    Good(Trust),
    /// No certificate.
    Absent,
    /// An unusable certificate, such as an expired one.
    Bad(LoadError),
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The directory cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The bundle cannot be written.
    #[error("cannot write the bundle: {0}")]
    Bundle(#[from] FormatError),
    /// `issuer.json` is missing or invalid.
    #[error("{}: {cause}; remove the directory, and enrol with a new token", path.display())]
    Issuer {
        /// The path of the file.
        path: PathBuf,
        /// The error in it.
        cause: String,
    },
}

impl Folder {
    /// A directory, which need not exist yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Folder {
        Folder(path.into())
    }

    /// The path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The trust files of this directory; `beside` names the files that are elsewhere, such as deny-lists.
    #[must_use]
    pub fn files(&self, beside: TrustFiles) -> TrustFiles {
        TrustFiles {
            certificate: self.0.join(CERTIFICATE),
            key: self.0.join(KEY),
            bundles: self.0.join(BUNDLES),
            ..beside
        }
    }

    /// Checks the certificate in the directory.
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

    /// The agent that renews the certificate.
    ///
    /// # Errors
    /// `issuer.json` is missing or invalid.
    pub fn origin(&self) -> Result<Origin, FolderError> {
        let path = self.0.join(ISSUER);
        let read = || -> Result<Origin, String> {
            let text = input::read_text(&path, LARGEST).map_err(|error| error.to_string())?;
            let Written { agent, cluster } =
                serde_json::from_str(&text).map_err(|error| error.to_string())?;
            let address = agent
                .parse::<Target>()
                .map_err(|wrong| format!("the address of the agent {}", wrong.what))?;
            Ok(Origin { address, cluster: cluster.parse().map_err(|_| "invalid cluster name".to_owned())? })
        };
        read().map_err(|cause| FolderError::Issuer { path: path.clone(), cause })
    }

    /// Creates the directory, so that a failure shows before a token is used.
    ///
    /// # Errors
    /// Foreign files are in the way, or the directory cannot be written.
    pub fn prepare(&self) -> Result<(), FolderError> {
        files::check_unoccupied(&self.0, &NAMES)?;
        Ok(files::make_folder(&self.0.join(BUNDLES))?)
    }

    /// The directory of the deny-lists that an agent publishes to its gateways.
    #[must_use]
    pub fn deny(&self) -> PathBuf {
        self.0.join(DENY)
    }

    /// Stores a certificate in place of the previous one. The bundle is written first, so that the
    /// certificate in place always verifies under the bundle in place.
    ///
    /// # Errors
    /// The previous certificate is unchanged.
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
        let [certificate, key, roots] = entries(granted);
        let entries = [certificate, key, roots, Entry::public(ISSUER, issuer + "\n")];
        Ok(files::publish(&self.0, &entries)?)
    }

    /// Stores a certificate in place of the previous one, where the bundles are elsewhere.
    ///
    /// # Errors
    /// The previous certificate is unchanged.
    pub fn put_alone(&self, granted: &Granted) -> Result<(), FolderError> {
        Ok(files::publish(&self.0, &entries(granted))?)
    }

    /// The stored bundle of a trust domain.
    #[must_use]
    pub fn bundle(&self, domain: &TrustDomain) -> Option<Bundle> {
        let text = input::read_text(&self.bundle_file(domain), LARGEST).ok()?;
        spiffe_bundle::read(domain, &text).ok()
    }

    fn bundle_file(&self, domain: &TrustDomain) -> PathBuf {
        self.0.join(BUNDLES).join(format!("{domain}.json"))
    }
}

fn entries(granted: &Granted) -> [Entry; 3] {
    let Granted { identity, bundle } = granted;
    [
        Entry::public(CERTIFICATE, identity.chain_pem()),
        Entry::secret(KEY, identity.key_pem()),
        Entry::public(ROOTS, pem::encode(bundle.roots())),
    ]
}

impl Origin {
    /// The agent that a token names.
    #[must_use]
    pub fn new(address: Target, party: &Party) -> Origin {
        Origin { address, cluster: party.cluster.clone() }
    }
}
