//! Reads the bundle and the deny-list of a trust domain from the agent's trust files: `DOMAIN.json` as the
//! agent writes it, or `DOMAIN.pem` as an operator maintains it.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use isthmus_certs::spiffe_bundle::{self, FormatError};
use isthmus_certs::{Bundle, TrustDomain, input, pem};

use crate::join::disk::{self, ReadError};

/// Size limit of a bundle or deny-list file.
pub(crate) const MAX_FILE: u64 = 16 << 20;

/// The files of one trust domain.
#[derive(Debug)]
pub(crate) struct Known {
    /// The path of a bundle that the agent writes.
    pub(crate) json: PathBuf,
    /// The bundle and the path of its file.
    pub(crate) bundle: Option<(PathBuf, Bundle)>,
    /// The path of the deny-list; `None` if deny-lists are not followed.
    pub(crate) list: Option<PathBuf>,
    /// The deny-list in its signed envelope.
    pub(crate) envelope: Option<String>,
}

/// The files of a trust domain cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum KnownError {
    /// The bundle file is invalid.
    #[error("{} {cause}", path.display())]
    Bundle {
        /// The path of the file.
        path: PathBuf,
        /// The error in the file.
        #[source]
        cause: FormatError,
    },
    /// A file is unreadable.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Known {
    /// Reads the files of a trust domain.
    pub(crate) fn read(
        domain: &TrustDomain,
        bundles: &Path,
        deny: Option<&Path>,
    ) -> Result<Known, KnownError> {
        let json = bundles.join(format!("{domain}.json"));
        let list = deny.map(|folder| folder.join(format!("{domain}.json")));
        let envelope = match &list {
            Some(path) => disk::read(path, MAX_FILE)?,
            None => None,
        };
        Ok(Known { bundle: bundle(domain, bundles, &json)?, json, list, envelope })
    }

    /// The path of a bundle that an operator maintains, which the agent never overwrites.
    pub(crate) fn by_hand(&self) -> Option<&Path> {
        self.bundle.as_ref().map(|(path, _)| path.as_path()).filter(|path| *path != self.json)
    }
}

fn bundle(domain: &TrustDomain, folder: &Path, json: &Path) -> Result<Option<(PathBuf, Bundle)>, KnownError> {
    let roots = folder.join(format!("{domain}.pem"));
    match input::read(&roots, MAX_FILE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        read => {
            let unread = |error: &dyn Display| ReadError::new(&roots, error);
            let known = pem::certificates(read.map_err(|error| unread(&error))?);
            let known = Bundle::new(domain, 0, &known.map_err(|error| unread(&error))?);
            let known = known.map_err(|error| unread(&error))?;
            return Ok(Some((roots, known)));
        }
    }
    let Some(text) = disk::read(json, MAX_FILE)? else { return Ok(None) };
    let known = spiffe_bundle::read(domain, &text)
        .map_err(|cause| KnownError::Bundle { path: json.to_owned(), cause })?;
    Ok(Some((json.to_owned(), known)))
}

/// Whether two bundles have the same roots, in any order.
pub(crate) fn same_roots(one: &Bundle, other: &Bundle) -> bool {
    let within = |one: &Bundle, other: &Bundle| one.roots().iter().all(|root| other.roots().contains(root));
    within(one, other) && within(other, one)
}
