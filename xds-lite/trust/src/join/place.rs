//! Stores an accepted offer: the peer's record in the store, and the bundle and deny-list of its domain in files, all or
//! nothing.
//! Nothing known about a cluster or trust domain is overwritten by something that contradicts it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use isthmus_certs::deny::DenyError;
use isthmus_certs::files::{self, PUBLIC, WriteError};
use isthmus_certs::spiffe_bundle::{self, FormatError};
use isthmus_certs::{Bundle, DenyList, Role, TrustDomain, VerifyError};
use isthmus_model::slice::Cluster;
use isthmus_store::{Expect, Store, StoreError, Version};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

use super::disk::{self, ReadError};
use super::offer::Accepted;
use super::peer::{self, Peer, Standing};
use super::presented::PresentedAgent;
use super::{Context, Party};
use crate::bundles::known::{Known, KnownError, MAX_FILE, same_roots};

/// Why an offer cannot be stored.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The cluster is known with another trust domain.
    #[error(
        "cluster {} is known here with trust domain {known}, not {}; if it has moved, run `isthmus-agent peers forget {}` and join again",
        found.cluster, found.trust_domain, found.cluster
    )]
    OtherDomain {
        /// The party that joins.
        found: Party,
        /// The known trust domain of the cluster.
        known: TrustDomain,
    },
    /// The trust domain is known with other roots.
    #[error(
        "the bundle of {domain} has different roots than the known one, {}; if they were replaced, verify the new roots, remove that file and join again",
        path.display()
    )]
    OtherRoots {
        /// The trust domain.
        domain: TrustDomain,
        /// The known bundle.
        path: PathBuf,
    },
    /// The bundle cannot be written.
    #[error("{}: {cause}", path.display())]
    Bundle {
        /// The path of the file.
        path: PathBuf,
        /// The error.
        #[source]
        cause: FormatError,
    },
    /// A known bundle or deny-list cannot be read.
    #[error(transparent)]
    Known(#[from] KnownError),
    /// The known bundle of the domain does not trust the agent.
    #[error("the known bundle of its trust domain does not trust the agent: {0}")]
    Unbelieved(#[source] VerifyError),
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The store of joined clusters failed.
    #[error("store of joined clusters: {0}")]
    Store(#[from] StoreError),
    /// The known or the offered deny-list does not belong to its domain.
    #[error(transparent)]
    Denied(#[from] DenyError),
}

impl PlaceError {
    /// Whether known data contradicts the offer, as opposed to a local failure.
    pub(super) fn is_conflict(&self) -> bool {
        match self {
            PlaceError::OtherDomain { .. }
            | PlaceError::OtherRoots { .. }
            | PlaceError::Unbelieved(_)
            | PlaceError::Denied(_) => true,
            PlaceError::Bundle { .. }
            | PlaceError::Known(_)
            | PlaceError::Read(_)
            | PlaceError::Write(_)
            | PlaceError::Store(_) => false,
        }
    }
}

/// Whether the names of a party contradict known ones.
pub(super) fn check(context: &Context, party: &Party) -> Result<(), PlaceError> {
    standing(context, party).map(drop)
}

/// The record of a party, which does not contradict it.
fn standing(context: &Context, party: &Party) -> Result<Standing, PlaceError> {
    match peer::read(&*context.store, &party.cluster)? {
        (_, Some(known)) if known.introduction.party.trust_domain != party.trust_domain => {
            Err(PlaceError::OtherDomain {
                found: party.clone(),
                known: known.introduction.party.trust_domain,
            })
        }
        (standing, _) => Ok(standing),
    }
}

/// Whether an agent can become a peer: if its domain is known, the known bundle must trust it, which a token
/// does not replace.
pub(super) fn check_trusted(
    context: &Context,
    shown: &PresentedAgent,
    chain: &[CertificateDer<'_>],
    role: Role,
) -> Result<(), PlaceError> {
    check(context, &shown.party)?;
    let bundles = &context.trust.current().bundles;
    if bundles.get(&shown.party.trust_domain).is_some() {
        bundles.verify(chain, role, UnixTime::now()).map_err(PlaceError::Unbelieved)?;
    }
    Ok(())
}

/// Creates the directories, so that a failure shows before the token is used.
pub(super) fn prepare(context: &Context) -> Result<(), PlaceError> {
    let folders = &context.folders;
    files::make_folder(&folders.bundles)?;
    isthmus_store::private_folder(&folders.state).map_err(|error| ReadError::new(&folders.state, error))?;
    Ok(())
}

/// The changes so far, with what was there before.
#[derive(Debug)]
pub(super) struct PendingJoin {
    peer: Peer,
    changes: Vec<Change>,
    store: Arc<dyn Store>,
    state: PathBuf,
}

#[derive(Debug)]
enum Change {
    File { path: PathBuf, before: Option<String>, after: String },
    Record { cluster: Cluster, before: Standing, after: Version },
}

/// Stores everything, or nothing.
pub(super) fn keep(
    context: &Context,
    accepted: Accepted,
    now: SystemTime,
) -> Result<PendingJoin, PlaceError> {
    prepare(context)?;
    let state = context.folders.state.clone();
    let _lock = disk::lock(&state)?;
    let party = accepted.introduction.party.clone();
    let before = standing(context, &party)?;
    let mut texts = Vec::new();
    // The own domain is not written: the certificate was verified against its bundle.
    if party.trust_domain != context.party().trust_domain {
        let folders = &context.folders;
        let known = Known::read(&party.trust_domain, &folders.bundles, folders.deny.as_deref())?;
        texts.extend(bundle(&known, &party.trust_domain, &accepted.bundle)?);
        texts.extend(denied(&known, &party.trust_domain, &accepted)?);
    }
    let peer = Peer { introduction: accepted.introduction, joined_at: now };
    let mut pending = PendingJoin { peer, changes: Vec::new(), store: Arc::clone(&context.store), state };
    // The record comes last: a peer on record is trusted already.
    let written = texts.into_iter().try_for_each(|(path, text)| pending.write(path, text));
    if let Err(error) = written.and_then(|()| pending.record(before)) {
        pending.revert();
        return Err(error);
    }
    Ok(pending)
}

impl PendingJoin {
    /// Makes the changes permanent.
    pub(super) fn commit(mut self) -> Peer {
        self.changes.clear();
        self.peer.clone()
    }

    fn write(&mut self, path: PathBuf, after: String) -> Result<(), PlaceError> {
        let before = disk::read(&path, MAX_FILE)?;
        let written = files::write(&path, &after, PUBLIC);
        // Even after an error the file may be in place without being synced.
        self.changes.push(Change::File { path, before, after });
        Ok(written?)
    }

    fn record(&mut self, before: Standing) -> Result<(), PlaceError> {
        let after = peer::write(&*self.store, &self.peer, before.expect())?;
        let cluster = self.peer.introduction.party.cluster.clone();
        self.changes.push(Change::Record { cluster, before, after });
        Ok(())
    }

    /// Undoes the changes. Call under the lock.
    fn revert(&mut self) {
        for change in self.changes.drain(..).rev() {
            if let Err(error) = change.revert(&*self.store) {
                tracing::error!(?change, %error, "cannot undo a change of a failed join; undo it by hand");
            }
        }
    }
}

/// Undoes everything without [`PendingJoin::commit`], except what another process has changed since.
impl Drop for PendingJoin {
    fn drop(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        match disk::lock(&self.state) {
            Ok(_lock) => self.revert(),
            Err(error) => tracing::error!(%error, "cannot undo a failed join"),
        }
    }
}

impl Change {
    fn revert(&self, store: &dyn Store) -> Result<(), PlaceError> {
        match self {
            Change::File { path, after, .. } if disk::read(path, MAX_FILE)?.as_ref() != Some(after) => {}
            Change::File { path, before: Some(before), .. } => files::write(path, before, PUBLIC)?,
            Change::File { path, before: None, .. } => {
                fs::remove_file(path).map_err(|error| ReadError::new(path, error))?;
            }
            Change::Record { cluster, before, after } => {
                match peer::restore(store, cluster, before, Expect::Version(after)) {
                    Ok(()) | Err(StoreError::Conflict(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

/// The bundle to write; `None` if the known one is as new.
fn bundle(
    known: &Known,
    domain: &TrustDomain,
    offered: &Bundle,
) -> Result<Option<(PathBuf, String)>, PlaceError> {
    match &known.bundle {
        Some((path, standing)) if !same_roots(standing, offered) => {
            return Err(PlaceError::OtherRoots { domain: domain.clone(), path: path.clone() });
        }
        Some((_, standing)) if known.by_hand().is_some() || standing.sequence >= offered.sequence => {
            return Ok(None);
        }
        _ => {}
    }
    let text = spiffe_bundle::write(offered)
        .map_err(|cause| PlaceError::Bundle { path: known.json.clone(), cause })?;
    Ok(Some((known.json.clone(), text)))
}

/// The deny-list to write; `None` if the known one is as new.
fn denied(
    known: &Known,
    domain: &TrustDomain,
    accepted: &Accepted,
) -> Result<Option<(PathBuf, String)>, PlaceError> {
    let Some(envelope) = &accepted.denied else { return Ok(None) };
    let Some(path) = &known.list else {
        tracing::warn!(%domain, "the peer's deny-list is not stored; set `trust.deny` to a directory to follow it");
        return Ok(None);
    };
    if let Some(folder) = path.parent() {
        files::make_folder(folder)?;
    }
    if known.envelope.as_ref() == Some(envelope) {
        return Ok(None);
    }
    let now = UnixTime::now();
    let open = |text: &str, known: Option<&DenyList>| {
        DenyList::open(text.as_bytes(), domain, &accepted.bundle, now, known)
    };
    let before = known.envelope.as_ref().map(|text| open(text, None)).transpose()?;
    match open(envelope, before.as_ref()) {
        Ok(_) => Ok(Some((path.clone(), envelope.clone()))),
        // Another cluster of that domain joined with a newer list.
        Err(DenyError::Older { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
