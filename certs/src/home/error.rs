//! Why something in an authority's directory could not be done: the file, the reason, the remedy.

use std::io;
use std::path::PathBuf;

use crate::authority::{IssueError, Unusable};
use crate::bundle::BundleError;
use crate::deny::DenyError;
use crate::files::WriteError;
use crate::spiffe::TrustDomain;
use crate::spiffe_bundle::FormatError;

/// Why something in an authority's directory could not be done.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// There is no authority in it.
    #[error("there is no authority in {}; make one with `isthmus-certs init --out {}`, or give --dir", .0.display(), .0.display())]
    Absent(PathBuf),
    /// There is one already.
    #[error("there is an authority in {} already; choose another directory, or lose it with --force", .0.display())]
    Present(PathBuf),
    /// Another process works on it.
    #[error("another isthmus-certs works on {}; wait for it, or stop it", .0.display())]
    Busy(PathBuf),
    /// A file cannot be read.
    #[error("{}: cannot be read: {cause}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The state was edited, or is of another version.
    #[error("{}: {cause}; put back the file as it was written", path.display())]
    State {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: serde_json::Error,
    },
    /// A key is kept elsewhere.
    #[error("{}: the key is not here; bring it back for this step", .0.display())]
    KeyAway(PathBuf),
    /// A certificate and its key are no authority.
    #[error("{}: {cause}", path.display())]
    Unusable {
        /// The certificate.
        path: PathBuf,
        /// Why.
        #[source]
        cause: Unusable,
    },
    /// A bundle's file.
    #[error("{}: {cause}", path.display())]
    Bundle {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: FormatError,
    },
    /// A deny-list's file.
    #[error("{}: {cause}", path.display())]
    Deny {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: DenyError,
    },
    /// No such cluster.
    #[error(
        "cluster {0:?} has no intermediate here; make one with `isthmus-certs intermediate --cluster {0}`"
    )]
    UnknownCluster(String),
    /// Which cluster's intermediate signs was not said.
    #[error("there are several clusters here; say which with --cluster: {}", .0.join(", "))]
    WhichCluster(Vec<String>),
    /// A name that would be no file name, or no part of an identity.
    #[error("{0:?} is no name; use a-z, A-Z, 0-9, `.`, `-` and `_`, and start with a letter or digit")]
    Name(String),
    /// A bundle that is older than the one that is here.
    #[error(
        "the bundle of {domain} has sequence {found}, but {known} is here; get a newer one, or remove this first with `bundle remove`"
    )]
    OldBundle {
        /// Whose.
        domain: TrustDomain,
        /// The number it has.
        found: u64,
        /// The number that is here.
        known: u64,
    },
    /// Only others' bundles are added and removed; one's own follows the roots.
    #[error("{0} is this authority's own domain; its bundle follows its roots")]
    Own(TrustDomain),
    /// No such bundle.
    #[error("there is no bundle of {0} here; `isthmus-certs bundle` lists them")]
    NoBundle(TrustDomain),
    /// What an agent says of its peers is not known.
    #[error(
        "{}: {cause}; the roll-over waits for this file, which the agent writes into its state directory (`rotate --acknowledged` names others, `--by-time` none)",
        path.display()
    )]
    Acknowledged {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// Something was not signed.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// A root that cannot be one.
    #[error(transparent)]
    Root(#[from] BundleError),
    /// Something was not written.
    #[error(transparent)]
    Write(#[from] WriteError),
}
