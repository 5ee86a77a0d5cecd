//! The file `acknowledged.json`, which agents write and root roll-overs wait for: the bundle of its own trust domain
//! that an agent offers, and the one that each of its peers has acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::bundle::Bundle;
use crate::facts::fingerprint;
use crate::files::{self, SECRET, WriteError};
use crate::input;
use crate::spiffe::TrustDomain;

/// Enough for thousands of peers.
const MAX_FILE: u64 = 16 << 20;

/// The acknowledgements that an agent has received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {
    /// The agent's cluster.
    pub cluster: String,
    /// Its trust domain, whose bundle is acknowledged.
    pub trust_domain: TrustDomain,
    /// The bundle that the agent offers now.
    pub offered: Option<Edition>,
    /// Every peer of another trust domain, reachable or not, by cluster.
    pub peers: BTreeMap<String, PeerWord>,
}

/// The acknowledgement of one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerWord {
    /// The trust domain of the peer.
    pub trust_domain: TrustDomain,
    /// The last bundle that the peer acknowledged, if any.
    pub acknowledged: Option<Taken>,
}

/// An acknowledged bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The bundle.
    #[serde(flatten)]
    pub edition: Edition,
    /// When it was first acknowledged, to the second.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// What distinguishes a bundle from others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edition {
    /// The sequence number.
    pub sequence: u64,
    /// The fingerprints of its roots.
    pub roots: BTreeSet<String>,
}

impl Taken {
    /// A bundle acknowledged at a time.
    #[must_use]
    pub fn new(edition: Edition, at: SystemTime) -> Self {
        let at = OffsetDateTime::from(at);
        Self { edition, at: at.replace_nanosecond(0).unwrap_or(at) }
    }
}

impl Edition {
    /// The edition of a bundle.
    #[must_use]
    pub fn from_bundle(bundle: &Bundle) -> Self {
        Self { sequence: bundle.sequence, roots: bundle.roots().iter().map(fingerprint).collect() }
    }
}

impl Acknowledged {
    /// Reads a file.
    ///
    /// # Errors
    /// The file is missing, unreadable or malformed.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_str(&input::read_text(path, MAX_FILE)?)?)
    }

    /// Writes the file, replacing what is there.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), WriteError> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| WriteError::Failed { path: path.to_owned(), cause: error.into() })?;
        files::write(path, &(text + "\n"), SECRET)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::authority::Authority;

    #[test]
    fn acknowledged_round_trips_through_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acknowledged.json");
        let domain = TrustDomain::new("east.example").unwrap();
        let root = Authority::generate(domain.clone()).unwrap();
        let edition = Edition::from_bundle(&Bundle::new(&domain, 7, [root.certificate()]).unwrap());
        let taken = Taken::new(edition.clone(), SystemTime::now());
        let peer = |acknowledged| PeerWord { trust_domain: domain.clone(), acknowledged };
        let written = Acknowledged {
            cluster: "east".to_owned(),
            trust_domain: domain.clone(),
            offered: Some(edition),
            peers: [("west".to_owned(), peer(Some(taken))), ("north".to_owned(), peer(None))].into(),
        };
        written.write(&path).unwrap();
        assert_eq!(Acknowledged::read(&path).unwrap(), written);
        fs::write(&path, "{").unwrap();
        assert!(Acknowledged::read(&path).is_err());
        assert!(Acknowledged::read(dir.path()).unwrap_err().to_string().contains("not a regular file"));
    }
}
