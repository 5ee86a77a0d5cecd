//! The errors of an authority's directory: the file, the reason, the remedy.

use std::io;
use std::path::PathBuf;

use crate::authority::{IssueError, Unusable};
use crate::bundle::BundleError;
use crate::deny::DenyError;
use crate::files::WriteError;
use crate::spiffe::TrustDomain;
use crate::spiffe_bundle::FormatError;

/// Why an operation on an authority's directory failed.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// The directory has no authority.
    #[error("there is no authority in {}; make one with `isthmus-certs init --out {}`, or give --dir", .0.display(), .0.display())]
    Absent(PathBuf),
    /// The directory already has an authority.
    #[error("there is an authority in {} already; choose another directory, or destroy it with --force", .0.display())]
    Present(PathBuf),
    /// Another process has locked the directory.
    #[error("another isthmus-certs is working on {}; wait for it, or stop it", .0.display())]
    Busy(PathBuf),
    /// A file cannot be read.
    #[error("{}: cannot be read: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// The state was edited, or is of another version.
    #[error("{}: {cause}; restore the file as isthmus-certs wrote it", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: serde_json::Error,
    },
    /// The key file is missing: it is stored elsewhere.
    #[error("{}: the key is not here; restore it for this step", .0.display())]
    KeyAway(PathBuf),
    /// A certificate and its key are not an authority.
    #[error("{}: {cause}", path.display())]
    Unusable {
        /// The certificate.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: Unusable,
    },
    /// A bundle file is invalid.
    #[error("{}: {cause}", path.display())]
    Bundle {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: FormatError,
    },
    /// A deny-list file is invalid.
    #[error("{}: {cause}", path.display())]
    Deny {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: DenyError,
    },
    /// No such cluster.
    #[error(
        "cluster {0:?} has no intermediate here; make one with `isthmus-certs intermediate --cluster {0}`"
    )]
    UnknownCluster(String),
    /// Several clusters, and none was named.
    #[error("there are several clusters here; name one with --cluster: {}", .0.join(", "))]
    WhichCluster(Vec<String>),
    /// Not a valid file name, or not a valid part of an identity.
    #[error(
        "{0:?} is not a valid name; use a-z, A-Z, 0-9, `.`, `-` and `_`, and start with a letter or digit"
    )]
    Name(String),
    /// The bundle is older than the one in the directory.
    #[error(
        "the bundle of {domain} has sequence {found}, but {known} is here; get a newer one, or first remove this one with `bundle remove`"
    )]
    OldBundle {
        /// The trust domain of the bundle.
        domain: TrustDomain,
        /// The sequence number of the new bundle.
        found: u64,
        /// The sequence number of the present bundle.
        known: u64,
    },
    /// The own bundle follows the roots; only those of other domains are added and removed.
    #[error(
        "{0} is this authority's own domain, whose bundle and deny-list it writes itself; name another domain"
    )]
    Own(TrustDomain),
    /// No such bundle.
    #[error("there is no bundle of {0} here; `isthmus-certs bundle` lists them")]
    NoBundle(TrustDomain),
    /// An agent's file of acknowledgements cannot be used.
    #[error(
        "{}: {cause}; the roll-over waits for this file, which the agent writes into its state directory; name another file with `rotate --acknowledged`, or wait for none with `--by-time`",
        path.display()
    )]
    Acknowledged {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: String,
    },
    /// A certificate was not issued.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// A certificate cannot be a root.
    #[error(transparent)]
    Root(#[from] BundleError),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}
