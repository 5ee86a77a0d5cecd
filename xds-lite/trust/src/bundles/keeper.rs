//! Stores bundles and deny-lists of peers in the files from which the agent loads its trust. Up to two files
//! change; they are written in an order in which every intermediate state is valid, so that an agent killed
//! in between starts again.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use isthmus_certs::files::{self, PUBLIC};
use isthmus_certs::spiffe_bundle;
use isthmus_certs::{Bundle, DenyList, Trust, TrustDomain, TrustFiles};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

use super::known::{Known, KnownError, same_roots};
use super::rule::{Between, Judged, Refusal, judge};
use crate::join::disk;

/// Characters of a load error that are reported.
const LONGEST_CAUSE: usize = 512;

/// Stores the bundles of peers in the files of a [`Trust`].
#[derive(Debug)]
pub struct Keeper {
    trust: Trust,
    files: TrustFiles,
    state: Option<PathBuf>,
    /// Serializes writers: several peers may share a trust domain.
    writing: Mutex<()>,
}

/// The result of an accepted update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleUpdate {
    /// The sequence number of the stored bundle.
    pub sequence: u64,
    /// Whether the update changed anything.
    pub is_news: bool,
    /// What was not stored, with the remedy.
    pub advice: Option<String>,
}

impl Keeper {
    /// A keeper for a trust loaded from `files`; joins write under a lock in `state`.
    #[must_use]
    pub fn new(trust: Trust, files: TrustFiles, state: Option<PathBuf>) -> Keeper {
        Keeper { trust, files, state, writing: Mutex::new(()) }
    }

    /// The agent's own trust domain, for which no peer may speak.
    #[must_use]
    pub fn own(&self) -> TrustDomain {
        self.trust.current().identity.id().trust_domain().clone()
    }

    /// Accepts the resource `name` from a peer's agent; `chain` is its certificate chain. On return the
    /// update is on disk and in use.
    ///
    /// # Errors
    /// The resource is refused; nothing has changed.
    pub fn accept(
        &self,
        peer: &TrustDomain,
        chain: &[CertificateDer<'static>],
        name: &str,
        bytes: &[u8],
        now: UnixTime,
    ) -> Result<BundleUpdate, Refusal> {
        let own = self.own();
        let between = Between { own: &own, peer, chain };
        let judged = judge(between, &self.trust.current().bundles, name, bytes, now)?;
        if !self.is_news(&judged) {
            return Ok(self.update(&judged, false));
        }
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let _lock = self.lock()?;
        // Another process may have written meanwhile.
        self.trust.reload(&self.files);
        let judged = judge(between, &self.trust.current().bundles, name, bytes, now)?;
        let known = Known::read(peer, &self.files.bundles, self.files.deny.as_deref())?;
        let texts = texts(peer, &known, &judged, now)?;
        let is_news = !texts.is_empty();
        for (path, text) in texts {
            if let Some(folder) = path.parent() {
                files::make_folder(folder)?;
            }
            files::write(&path, &text, PUBLIC)?;
        }
        self.trust.reload(&self.files);
        self.check(peer, &judged)?;
        Ok(self.update(&judged, is_news))
    }

    fn is_news(&self, judged: &Judged) -> bool {
        judged.is_later || (judged.has_list && self.files.deny.is_some())
    }

    fn update(&self, judged: &Judged, is_news: bool) -> BundleUpdate {
        let is_unkept = judged.said.denied.is_some() && self.files.deny.is_none();
        let advice = "the peer's deny-list is not stored; set `trust.deny` to a directory to follow it";
        BundleUpdate {
            sequence: judged.said.bundle.sequence,
            is_news,
            advice: is_unkept.then(|| advice.to_owned()),
        }
    }

    fn lock(&self) -> Result<Option<std::fs::File>, Refusal> {
        Ok(self.state.as_deref().map(disk::lock).transpose().map_err(KnownError::from)?)
    }

    /// Checks that the trust in use matches the files just written.
    fn check(&self, peer: &TrustDomain, judged: &Judged) -> Result<(), Refusal> {
        let bundles = &self.trust.current().bundles;
        let is_bundle = bundles.get(peer).is_some_and(|known| same_roots(known, &judged.said.bundle));
        let listed = judged.said.denied.as_ref().filter(|_| self.files.deny.is_some());
        let is_list = listed.is_none_or(|denied| bundles.denied(peer) == Some(&denied.list));
        if is_bundle && is_list {
            return Ok(());
        }
        let why = self.trust.refused().join("; ");
        Err(Refusal::Unused(why.chars().take(LONGEST_CAUSE).collect()))
    }
}

/// The files to write, in order.
pub(super) fn texts(
    peer: &TrustDomain,
    known: &Known,
    judged: &Judged,
    now: UnixTime,
) -> Result<Vec<(PathBuf, String)>, Refusal> {
    let list = judged.said.denied.as_ref().zip(known.list.as_ref());
    let list = list.filter(|(denied, _)| known.envelope.as_ref() != Some(&denied.envelope));
    let list = list.map(|(denied, path)| (path.clone(), denied.envelope.clone()));
    let bundle = bundle_text(known, &judged.said.bundle)?;
    let stands = |envelope: &str, bundle: &Bundle| {
        DenyList::open(envelope.as_bytes(), peer, bundle, now, None).is_ok()
    };
    let (Some(bundle), Some(envelope)) = (bundle.clone(), &known.envelope) else {
        return Ok(bundle.into_iter().chain(list).collect());
    };
    if stands(envelope, &judged.said.bundle) {
        return Ok([Some(bundle), list].into_iter().flatten().collect());
    }
    let Some(list) = list else { return Err(Refusal::ListLeft) };
    match &known.bundle {
        Some((_, before)) if !stands(&list.1, before) => Err(Refusal::Apart),
        _ => Ok(vec![list, bundle]),
    }
}

/// The bundle file to write; `None` if the known bundle is equal or maintained by hand with the same roots.
fn bundle_text(known: &Known, said: &Bundle) -> Result<Option<(PathBuf, String)>, Refusal> {
    let is_same = known.bundle.as_ref().is_some_and(|(_, known)| same_roots(known, said));
    match (known.by_hand(), &known.bundle) {
        (Some(_), _) if is_same => return Ok(None),
        (Some(pem), _) => return Err(Refusal::ByHand { pem: pem.to_owned(), json: known.json.clone() }),
        (None, Some((_, known))) if is_same && known.sequence == said.sequence => return Ok(None),
        _ => {}
    }
    let text =
        spiffe_bundle::write(said).map_err(|cause| KnownError::Bundle { path: known.json.clone(), cause })?;
    Ok(Some((known.json.clone(), text)))
}
