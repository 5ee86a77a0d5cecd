//! Defines where a gateway's identity and trust files are, after validation. `enrol` loads them.

use std::path::PathBuf;
use std::time::Duration;

use isthmus_certs::crl::StaleCrl;
use isthmus_certs::{SpiffeId, TrustFiles};
use isthmus_model::units;
use isthmus_trust::enrolment::Folder;
use isthmus_trust::join::Token;
use serde::Serialize;

/// Location of a gateway's identity and trust.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Trusts {
    /// In files managed by another program.
    Files(TrustFiles),
    /// In a directory managed by this gateway.
    ManagedTrust(ManagedTrust),
}

/// A directory for the certificate that the agents or a control plane issue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ManagedTrust {
    /// The directory.
    pub directory: PathBuf,
    /// Directory of bundles, with a control plane; agents send theirs with the certificate.
    pub bundles: Option<PathBuf>,
    /// Directory of deny-lists. With agents, `deny` in the directory by default: they send theirs.
    pub deny: Option<PathBuf>,
    /// Directory of revocation lists.
    pub crls: Option<PathBuf>,
    /// How a stale revocation list is treated.
    pub stale_crl: StaleCrl,
    /// How long the publisher of revocation lists may be unavailable.
    #[serde(serialize_with = "units::duration")]
    pub outage_budget: Duration,
    /// How the first certificate is obtained.
    #[serde(skip)]
    pub token: FirstToken,
}

/// How the first certificate is obtained. A token is good once; removing it from the file changes nothing in a running
/// gateway, so any two values are equal.
#[derive(Clone, Debug)]
pub enum FirstToken {
    /// No token: the directory has a certificate.
    None,
    /// A token and the gateway it is for.
    Token(Box<Token>, SpiffeId),
    /// A file with a token.
    File(PathBuf),
}

impl PartialEq for FirstToken {
    fn eq(&self, _other: &FirstToken) -> bool {
        true
    }
}

impl Eq for FirstToken {}

impl ManagedTrust {
    /// Returns the directory.
    #[must_use]
    pub fn folder(&self) -> Folder {
        Folder::new(&self.directory)
    }

    /// Returns the directory of the deny-lists that agents send, which the gateway makes itself.
    #[must_use]
    pub fn agents_lists(&self) -> Option<PathBuf> {
        (self.bundles.is_none() && self.deny.is_none()).then(|| self.folder().deny())
    }
}

impl Trusts {
    /// Returns the trust files.
    #[must_use]
    pub fn files(&self) -> TrustFiles {
        match self {
            Trusts::Files(files) => files.clone(),
            Trusts::ManagedTrust(kept) => {
                let files = kept.folder().files(TrustFiles {
                    deny: kept.deny.clone().or_else(|| kept.agents_lists()),
                    crls: kept.crls.clone(),
                    stale_crl: kept.stale_crl,
                    outage_budget: kept.outage_budget,
                    ..TrustFiles::default()
                });
                let bundles = kept.bundles.clone().unwrap_or_else(|| files.bundles.clone());
                TrustFiles { bundles, ..files }
            }
        }
    }
}
