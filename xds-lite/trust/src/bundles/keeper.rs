//! Keeps what peers say of their trust domains where the files of the agent's trust are followed. Two files may
//! change; they are written in an order in which each state between stands by itself, so that an agent that is
//! killed in between starts again.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use isthmus_certs::files::{self, PUBLIC};
use isthmus_certs::spiffe_bundle;
use isthmus_certs::{Bundle, DenyList, Trust, TrustDomain, TrustFiles};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

use super::known::{Known, KnownError, same_roots};
use super::rule::{Between, Heard, Refusal, hear};
use crate::join::{disk, peer};

/// Characters of what is said to be wrong with files.
const LONGEST_CAUSE: usize = 512;

/// Where it is kept, and by whom it is used.
#[derive(Debug)]
pub struct Keeper {
    trust: Trust,
    files: TrustFiles,
    state: Option<PathBuf>,
    /// Peers of one domain do not write at once.
    writing: Mutex<()>,
}

/// What was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleUpdate {
    /// The number of the bundle that is known now.
    pub sequence: u64,
    /// It is later than what was known.
    pub is_news: bool,
    /// What was not kept, and what would help.
    pub advice: Option<String>,
}

impl Keeper {
    /// Keeps it for a trust that is loaded from these files; joins write under a lock in `state`.
    #[must_use]
    pub fn new(trust: Trust, files: TrustFiles, state: Option<PathBuf>) -> Keeper {
        Keeper { trust, files, state, writing: Mutex::new(()) }
    }

    /// The trust domain that nobody else is believed about.
    #[must_use]
    pub fn own(&self) -> TrustDomain {
        self.trust.current().identity.id().trust_domain().clone()
    }

    /// Takes what the agent of a peer says under a name; `chain` is what it shows of itself. When this returns it
    /// is on disk, and believed.
    ///
    /// # Errors
    /// Why it is not taken; nothing has changed then.
    pub fn take(
        &self,
        peer: &TrustDomain,
        chain: &[CertificateDer<'static>],
        name: &str,
        bytes: &[u8],
        now: UnixTime,
    ) -> Result<BundleUpdate, Refusal> {
        let own = self.own();
        let between = Between { own: &own, peer, chain };
        let heard = hear(between, &self.trust.current().bundles, name, bytes, now)?;
        if !self.is_news(&heard) {
            return Ok(self.kept(&heard, false));
        }
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let _lock = self.lock()?;
        // Somebody else may have written meanwhile.
        self.trust.reload(&self.files);
        let heard = hear(between, &self.trust.current().bundles, name, bytes, now)?;
        let known = Known::read(peer, &self.files.bundles, self.files.deny.as_deref())?;
        let texts = texts(peer, &known, &heard, now)?;
        let is_news = !texts.is_empty();
        for (path, text) in texts {
            if let Some(folder) = path.parent() {
                files::make_folder(folder)?;
            }
            files::write(&path, &text, PUBLIC)?;
        }
        self.trust.reload(&self.files);
        self.check(peer, &heard)?;
        Ok(self.kept(&heard, is_news))
    }

    fn is_news(&self, heard: &Heard) -> bool {
        heard.is_later || (heard.has_list && self.files.deny.is_some())
    }

    fn kept(&self, heard: &Heard, is_news: bool) -> BundleUpdate {
        let is_unkept = heard.said.denied.is_some() && self.files.deny.is_none();
        let advice = "its deny-list is not kept; name a directory in `trust.deny` to follow it";
        BundleUpdate {
            sequence: heard.said.bundle.sequence,
            is_news,
            advice: is_unkept.then(|| advice.to_owned()),
        }
    }

    fn lock(&self) -> Result<Option<std::fs::File>, Refusal> {
        let Some(state) = &self.state else { return Ok(None) };
        let folder = peer::folder(state);
        let made = isthmus_store::private_folder(&folder);
        made.map_err(|error| KnownError::from(disk::ReadError::new(&folder, error)))?;
        Ok(Some(disk::lock(&folder).map_err(KnownError::from)?))
    }

    /// What was written is what is believed.
    fn check(&self, peer: &TrustDomain, heard: &Heard) -> Result<(), Refusal> {
        let bundles = &self.trust.current().bundles;
        let is_bundle = bundles.get(peer).is_some_and(|known| same_roots(known, &heard.said.bundle));
        let listed = heard.said.denied.as_ref().filter(|_| self.files.deny.is_some());
        let is_list = listed.is_none_or(|denied| bundles.denied(peer) == Some(&denied.list));
        if is_bundle && is_list {
            return Ok(());
        }
        let why = self.trust.refused().join("; ");
        Err(Refusal::Unused(why.chars().take(LONGEST_CAUSE).collect()))
    }
}

/// What is to be written, in its order.
pub(super) fn texts(
    peer: &TrustDomain,
    known: &Known,
    heard: &Heard,
    now: UnixTime,
) -> Result<Vec<(PathBuf, String)>, Refusal> {
    let list = heard.said.denied.as_ref().zip(known.list.as_ref());
    let list = list.filter(|(denied, _)| known.envelope.as_ref() != Some(&denied.envelope));
    let list = list.map(|(denied, path)| (path.clone(), denied.envelope.clone()));
    let bundle = bundle_text(known, &heard.said.bundle)?;
    let stands = |envelope: &str, bundle: &Bundle| {
        DenyList::open(envelope.as_bytes(), peer, bundle, now, None).is_ok()
    };
    let (Some(bundle), Some(envelope)) = (bundle.clone(), &known.envelope) else {
        return Ok(bundle.into_iter().chain(list).collect());
    };
    if stands(envelope, &heard.said.bundle) {
        return Ok([Some(bundle), list].into_iter().flatten().collect());
    }
    let Some(list) = list else { return Err(Refusal::ListLeft) };
    match &known.bundle {
        Some((_, before)) if !stands(&list.1, before) => Err(Refusal::Apart),
        _ => Ok(vec![list, bundle]),
    }
}

/// Nothing, where the known one says the same, or somebody who keeps it by hand has said so.
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
