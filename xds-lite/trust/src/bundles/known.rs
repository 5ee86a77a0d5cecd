//! What is known of a trust domain on disk, where the files of a trust are followed: `DOMAIN.json` as it is written
//! here, or `DOMAIN.pem` as somebody keeps it by hand; and its deny-list beside it.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use isthmus_certs::spiffe_bundle::{self, FormatError};
use isthmus_certs::{Bundle, TrustDomain, input, pem};

use crate::join::disk::{self, ReadError};

/// Larger is no bundle and no deny-list.
pub(crate) const MAX_FILE: u64 = 16 << 20;

/// What is known of one domain.
#[derive(Debug)]
pub(crate) struct Known {
    /// Where a bundle is written.
    pub(crate) json: PathBuf,
    /// The bundle, and the file that it stands in.
    pub(crate) bundle: Option<(PathBuf, Bundle)>,
    /// Where a deny-list is written; nowhere, where lists are not followed.
    pub(crate) list: Option<PathBuf>,
    /// The deny-list in its envelope.
    pub(crate) envelope: Option<String>,
}

/// What is known cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum KnownError {
    /// A known bundle that is none.
    #[error("{} {cause}", path.display())]
    Bundle {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        cause: FormatError,
    },
    /// Something cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Known {
    /// Looks at the files of a domain.
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

    /// The file that somebody keeps by hand, if that is where the bundle stands: it is not written here.
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

/// Whether two bundles have the same roots, in whatever order.
pub(crate) fn same_roots(one: &Bundle, other: &Bundle) -> bool {
    let within = |one: &Bundle, other: &Bundle| one.roots().iter().all(|root| other.roots().contains(root));
    within(one, other) && within(other, one)
}
