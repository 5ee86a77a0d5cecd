//! Where what was accepted goes: the peer's record, its domain's bundle and deny-list, all or nothing. Nothing
//! that is known of a cluster or a trust domain is overwritten with something that contradicts it.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use isthmus_certs::deny::DenyError;
use isthmus_certs::files::{self, PUBLIC, SECRET, WriteError};
use isthmus_certs::spiffe_bundle::{self, FormatError};
use isthmus_certs::{Bundle, DenyList, Role, TrustDomain, VerifyError};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

use super::disk::{self, ReadError};
use super::offer::Accepted;
use super::peer::{self, Peer};
use super::shown::Shown;
use super::{Context, Party};
use crate::bundles::known::{Known, KnownError, MAX_FILE, same_roots};

/// Why something was not kept.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// A cluster of that name is known, of another domain.
    #[error(
        "cluster {} is known here in trust domain {known}, not in {}; if it has moved, remove {} and join again",
        found.cluster, found.trust_domain, path.display()
    )]
    OtherDomain {
        /// Who has come.
        found: Party,
        /// What is known of the cluster.
        known: TrustDomain,
        /// Where it is known.
        path: PathBuf,
    },
    /// The domain is known by other roots.
    #[error(
        "the bundle of {domain} has other roots than the known one, {}; if they were replaced, check the new ones and remove it, then join again",
        path.display()
    )]
    OtherRoots {
        /// Whose bundle.
        domain: TrustDomain,
        /// The known one.
        path: PathBuf,
    },
    /// The bundle cannot be written.
    #[error("{}: {cause}", path.display())]
    Bundle {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        cause: FormatError,
    },
    /// What is known cannot be read.
    #[error(transparent)]
    Known(#[from] KnownError),
    /// What is known of the domain does not believe the agent.
    #[error("the agent is not believed by what is known here of its trust domain: {0}")]
    Unbelieved(#[source] VerifyError),
    /// Something cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Something cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A deny-list, the known one or the other, is not its domain's.
    #[error(transparent)]
    Denied(#[from] DenyError),
}

impl PlaceError {
    /// Whether what is known here stands against it, rather than that something has failed.
    pub(super) fn is_conflict(&self) -> bool {
        match self {
            PlaceError::OtherDomain { .. }
            | PlaceError::OtherRoots { .. }
            | PlaceError::Unbelieved(_)
            | PlaceError::Denied(_) => true,
            PlaceError::Bundle { .. } | PlaceError::Known(_) | PlaceError::Read(_) | PlaceError::Write(_) => {
                false
            }
        }
    }
}

/// Whether a party could be kept, as far as its names go.
pub(super) fn check(context: &Context, party: &Party) -> Result<(), PlaceError> {
    let state = &context.folders.state;
    match peer::read(state, &party.cluster)? {
        Some(known) if known.introduction.party.trust_domain != party.trust_domain => {
            Err(PlaceError::OtherDomain {
                found: party.clone(),
                known: known.introduction.party.trust_domain,
                path: peer::path(state, &party.cluster),
            })
        }
        _ => Ok(()),
    }
}

/// Whether an agent is one that this side could keep as a peer: where its domain is known, by what is known of
/// it, which a token does not replace.
pub(super) fn believe(
    context: &Context,
    shown: &Shown,
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

/// Makes the directories, so that what cannot be kept is known before anything is asked for.
pub(super) fn prepare(context: &Context) -> Result<(), PlaceError> {
    let folders = &context.folders;
    files::make_folder(&folders.bundles)?;
    let peers = peer::folder(&folders.state);
    isthmus_store::private_folder(&peers).map_err(|error| ReadError::new(&peers, error))?;
    Ok(())
}

/// What was written, and what was there before.
#[derive(Debug)]
pub(super) struct PendingJoin {
    peer: Peer,
    changes: Vec<Change>,
    peers: PathBuf,
}

#[derive(Debug)]
struct Change {
    path: PathBuf,
    before: Option<String>,
    after: String,
    mode: u32,
}

/// Keeps all of it, or none.
pub(super) fn keep(
    context: &Context,
    accepted: Accepted,
    now: SystemTime,
) -> Result<PendingJoin, PlaceError> {
    prepare(context)?;
    let peers = peer::folder(&context.folders.state);
    let _lock = disk::lock(&peers)?;
    let party = accepted.introduction.party.clone();
    check(context, &party)?;
    let mut texts = Vec::new();
    // About the own domain nobody else is believed: the certificate was verified against the own bundle.
    if party.trust_domain != context.party().trust_domain {
        let folders = &context.folders;
        let known = Known::read(&party.trust_domain, &folders.bundles, folders.deny.as_deref())?;
        texts.extend(bundle(&known, &party.trust_domain, &accepted.bundle)?);
        texts.extend(denied(&known, &party.trust_domain, &accepted)?);
    }
    let peer = Peer { introduction: accepted.introduction, joined_at: now };
    let path = peer::path(&context.folders.state, &party.cluster);
    let text = serde_json::to_string_pretty(&peer).map_err(|error| ReadError::new(&path, error))?;
    let texts = texts.into_iter().map(|(path, text)| (path, text, PUBLIC));
    let mut kept = PendingJoin { peer, changes: Vec::new(), peers };
    // The record last: who is a peer is believed already.
    for (path, after, mode) in texts.chain([(path, text + "\n", SECRET)]) {
        if let Err(error) = kept.write(path, after, mode) {
            kept.revert();
            return Err(error);
        }
    }
    Ok(kept)
}

impl PendingJoin {
    /// It stays.
    pub(super) fn commit(mut self) -> Peer {
        self.changes.clear();
        self.peer.clone()
    }

    fn write(&mut self, path: PathBuf, after: String, mode: u32) -> Result<(), PlaceError> {
        let before = disk::read(&path, MAX_FILE)?;
        let change = Change { path, before, after, mode };
        let written = files::write(&change.path, &change.after, mode);
        // Written or not: a file may be in its place that is not certain to outlast a crash.
        self.changes.push(change);
        Ok(written?)
    }

    /// Under the lock.
    fn revert(&mut self) {
        for change in self.changes.drain(..).rev() {
            if let Err(error) = change.revert() {
                tracing::error!(path = %change.path.display(), %error, "a file of a failed join stays; remove it");
            }
        }
    }
}

/// Without [`PendingJoin::commit`] all is again as it was, except where somebody else has written since.
impl Drop for PendingJoin {
    fn drop(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        match disk::lock(&self.peers) {
            Ok(_lock) => self.revert(),
            Err(error) => tracing::error!(%error, "what a failed join has written stays"),
        }
    }
}

impl Change {
    fn revert(&self) -> Result<(), PlaceError> {
        if disk::read(&self.path, MAX_FILE)?.as_ref() != Some(&self.after) {
            return Ok(());
        }
        match &self.before {
            Some(before) => files::write(&self.path, before, self.mode)?,
            None => fs::remove_file(&self.path).map_err(|error| ReadError::new(&self.path, error))?,
        }
        Ok(())
    }
}

/// What is to be written of a bundle: nothing, where the known one is as new.
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

/// What is to be written of a deny-list: nothing, where the known one is as new.
fn denied(
    known: &Known,
    domain: &TrustDomain,
    accepted: &Accepted,
) -> Result<Option<(PathBuf, String)>, PlaceError> {
    let Some(envelope) = &accepted.denied else { return Ok(None) };
    let Some(path) = &known.list else {
        tracing::warn!(%domain, "its deny-list is not kept; name a directory in `trust.deny` to follow it");
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
        // Another cluster of that domain has joined, and had a newer one.
        Err(DenyError::Older { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
