//! Which bundle of its own trust domain an agent offers, and which one each of its peers has acknowledged: the file
//! that agents write and that a root roll-over waits for. Not how an agent learns it.

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

/// Larger than what thousands of peers make of it.
const MAX_FILE: u64 = 16 << 20;

/// What an agent knows of its peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {
    /// The agent's cluster.
    pub cluster: String,
    /// Its trust domain, whose bundle this is about.
    pub trust_domain: TrustDomain,
    /// The bundle that it offers now.
    pub offered: Option<Edition>,
    /// Every cluster of another trust domain that is its peer, heard or not.
    pub peers: BTreeMap<String, PeerWord>,
}

/// What one peer has said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerWord {
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// The last bundle that it took; none if it has never taken one.
    pub acknowledged: Option<Taken>,
}

/// A bundle that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Which.
    #[serde(flatten)]
    pub edition: Edition,
    /// When it was taken first, to the second.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// One bundle, by what tells it from others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edition {
    /// Its number.
    pub sequence: u64,
    /// The fingerprints of its roots.
    pub roots: BTreeSet<String>,
}

impl Taken {
    /// A bundle that is taken at some time.
    #[must_use]
    pub fn new(edition: Edition, at: SystemTime) -> Self {
        let at = OffsetDateTime::from(at);
        Self { edition, at: at.replace_nanosecond(0).unwrap_or(at) }
    }
}

impl Edition {
    /// Of a bundle.
    #[must_use]
    pub fn of(bundle: &Bundle) -> Self {
        Self { sequence: bundle.sequence, roots: bundle.roots().iter().map(fingerprint).collect() }
    }
}

impl Acknowledged {
    /// Reads a file.
    ///
    /// # Errors
    /// It is not there, not readable, or no such file.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_str(&input::read_text(path, MAX_FILE)?)?)
    }

    /// Writes it in place of what is there.
    ///
    /// # Errors
    /// The system does not let us.
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
    fn is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acknowledged.json");
        let domain = TrustDomain::new("east.example").unwrap();
        let root = Authority::generate(domain.clone()).unwrap();
        let edition = Edition::of(&Bundle::new(&domain, 7, [root.certificate()]).unwrap());
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
