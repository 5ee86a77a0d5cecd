//! Where a gateway's identity and trust are, after every check: the part of the settings that is not read at start
//! alone. Not loading them.

use std::path::PathBuf;
use std::time::Duration;

use isthmus_certs::crl::StaleCrl;
use isthmus_certs::{SpiffeId, TrustFiles};
use isthmus_model::units;
use isthmus_trust::enrolment::Folder;
use isthmus_trust::join::Token;
use serde::Serialize;

/// Where a gateway's identity and trust are.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Trusts {
    /// In files that somebody else keeps.
    Files(TrustFiles),
    /// In a directory that this gateway keeps.
    ManagedTrust(ManagedTrust),
}

/// A directory in which a gateway keeps a certificate that its agents, or a control plane, issue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ManagedTrust {
    /// Which.
    pub directory: PathBuf,
    /// A directory with bundles, where a control plane issues; agents give theirs with the certificate.
    pub bundles: Option<PathBuf>,
    /// A directory with deny-lists.
    pub deny: Option<PathBuf>,
    /// A directory with revocation lists.
    pub crls: Option<PathBuf>,
    /// What is done with a stale one.
    pub stale_crl: StaleCrl,
    /// How long their publisher may be away.
    #[serde(serialize_with = "units::duration")]
    pub outage_budget: Duration,
    /// What the first certificate is got by.
    #[serde(skip)]
    pub token: FirstToken,
}

/// What a first certificate is got by. It is good once, and taking it out of the file changes nothing in a gateway
/// that runs: any two are equal.
#[derive(Clone, Debug)]
pub enum FirstToken {
    /// Nothing: the directory has a certificate.
    None,
    /// A token, and the gateway that it is for.
    Token(Box<Token>, SpiffeId),
    /// A file with one.
    File(PathBuf),
}

impl PartialEq for FirstToken {
    fn eq(&self, _other: &FirstToken) -> bool {
        true
    }
}

impl Eq for FirstToken {}

impl ManagedTrust {
    /// Its directory.
    #[must_use]
    pub fn folder(&self) -> Folder {
        Folder::new(&self.directory)
    }
}

impl Trusts {
    /// The files, whoever keeps them.
    #[must_use]
    pub fn files(&self) -> TrustFiles {
        match self {
            Trusts::Files(files) => files.clone(),
            Trusts::ManagedTrust(kept) => {
                let files = kept.folder().files(TrustFiles {
                    deny: kept.deny.clone(),
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
