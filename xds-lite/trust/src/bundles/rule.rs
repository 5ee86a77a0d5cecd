//! Decides whether a bundle that a peer publishes replaces the known one. Pure: the known bundle, the
//! resource, its sender and the time are arguments.

use std::cmp::Ordering;

use isthmus_certs::{Bundle, Role, TrustBundles, TrustDomain, VerifyError, WriteError};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

use super::known::{KnownError, same_roots};
use super::published::{PublishedBundle, PublishedError};
use super::wire::decode;

/// Why a bundle is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The resource is about a domain that is not the peer's.
    #[error("this peer may publish only the bundle of {0}")]
    OtherDomain(TrustDomain),
    /// The resource is about this agent's own domain.
    #[error("{0} is this agent's own trust domain; a peer may not publish its bundle")]
    Own(TrustDomain),
    /// The resource's name and content differ.
    #[error("the resource is about {0:?}, which is not its name")]
    OtherName(String),
    /// The resource is too large.
    #[error("{what} has {size} bytes, which exceeds the limit")]
    TooLarge {
        /// The part that is too large.
        what: &'static str,
        /// Its size in bytes.
        size: usize,
    },
    /// The resource is not valid protobuf.
    #[error("the resource cannot be decoded: {0}")]
    Malformed(prost::DecodeError),
    /// The sequence numbers of the resource and its bundle differ.
    #[error("the resource has sequence {said}, but its bundle has {found}")]
    Sequences {
        /// The number in the resource.
        said: u64,
        /// The number in the bundle.
        found: u64,
    },
    /// The bundle or deny-list is invalid, or the deny-list is older than the known one.
    #[error(transparent)]
    PublishedBundle(#[from] PublishedError),
    /// The bundle is older than the known one.
    #[error(
        "the bundle has sequence {found}, but {known} is known; an old bundle never replaces a newer one"
    )]
    Older {
        /// The number of the bundle.
        found: u64,
        /// The highest number seen.
        known: u64,
    },
    /// Two bundles have one sequence number.
    #[error(
        "the bundle has the known sequence {0} but different roots; the agents of its trust domain disagree on the bundle"
    )]
    Changed(u64),
    /// Two deny-lists have one sequence number.
    #[error("the deny-list has the known sequence {0} but different entries")]
    ListChanged(u64),
    /// The peer lost its trust after the stream began.
    #[error("the known bundle no longer trusts the peer's certificate: {0}")]
    Unbelieved(#[source] VerifyError),
    /// The new bundle would reject the peer itself.
    #[error("the new bundle does not trust the peer's own certificate: {0}")]
    Unbelievable(#[source] VerifyError),
    /// The known deny-list could not be verified under this bundle.
    #[error(
        "the known deny-list is not signed under the new bundle; the peer's agent must also publish its own deny-list (`deny` in its `trust`)"
    )]
    ListLeft,
    /// Neither the bundle nor the deny-list can be replaced first.
    #[error(
        "the known deny-list is not signed under the new bundle, nor the new one under the known bundle; copy both here by hand"
    )]
    Apart,
    /// An operator maintains the bundle.
    #[error(
        "the bundle is kept by hand in {}, with other roots; remove that file and put {} in its place, which the agent updates from then on",
        pem.display(), json.display()
    )]
    ByHand {
        /// The operator's file.
        pem: std::path::PathBuf,
        /// The file that the agent would update.
        json: std::path::PathBuf,
    },
    /// The known bundle cannot be read.
    #[error("the bundle cannot be stored: {0}")]
    Known(#[from] KnownError),
    /// The bundle cannot be written.
    #[error("the bundle cannot be stored: {0}")]
    Write(#[from] WriteError),
    /// The bundle was written but the trust did not load it.
    #[error("the bundle was stored but not loaded: {0}")]
    Unused(String),
}

/// What would make the same resource acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing; only a new resource helps.
    None,
    /// A change on this side.
    Here,
    /// A newer certificate of the peer.
    NewCertificate,
}

impl Refusal {
    /// The remedy for this refusal.
    #[must_use]
    pub fn remedy(&self) -> Remedy {
        match self {
            Refusal::Unbelieved(_) | Refusal::Unbelievable(_) => Remedy::NewCertificate,
            Refusal::ByHand { .. } | Refusal::Known(_) | Refusal::Write(_) | Refusal::Unused(_) => {
                Remedy::Here
            }
            Refusal::OtherDomain(_)
            | Refusal::Own(_)
            | Refusal::OtherName(_)
            | Refusal::TooLarge { .. }
            | Refusal::Malformed(_)
            | Refusal::Sequences { .. }
            | Refusal::PublishedBundle(_)
            | Refusal::Older { .. }
            | Refusal::Changed(_)
            | Refusal::ListChanged(_)
            | Refusal::ListLeft
            | Refusal::Apart => Remedy::None,
        }
    }
}

/// The two sides of an update.
#[derive(Clone, Copy, Debug)]
pub(super) struct Between<'a> {
    /// The receiver's trust domain.
    pub(super) own: &'a TrustDomain,
    /// The peer's trust domain, as configured or joined.
    pub(super) peer: &'a TrustDomain,
    /// The peer's certificate chain on this stream.
    pub(super) chain: &'a [CertificateDer<'static>],
}

/// An acceptable update.
#[derive(Debug)]
pub(super) struct Judged {
    pub(super) said: PublishedBundle,
    /// Whether the bundle is newer than the known one.
    pub(super) is_later: bool,
    /// Whether the deny-list is newer, or signed anew.
    pub(super) has_list: bool,
}

/// Judges one resource.
pub(super) fn judge(
    between: Between<'_>,
    known: &TrustBundles,
    name: &str,
    bytes: &[u8],
    now: UnixTime,
) -> Result<Judged, Refusal> {
    let Between { own, peer, chain } = between;
    if name != peer.as_str() {
        return Err(Refusal::OtherDomain(peer.clone()));
    }
    if peer == own {
        return Err(Refusal::Own(own.clone()));
    }
    let message = decode(name, bytes)?;
    let envelope = Some(message.deny_list).filter(|list| !list.is_empty());
    let said = PublishedBundle::read(peer, &message.bundle, envelope, known.denied(peer), now)?;
    if said.bundle.sequence != message.sequence {
        return Err(Refusal::Sequences { said: message.sequence, found: said.bundle.sequence });
    }
    let is_later = is_later(known.get(peer), &said.bundle)?;
    if let (Some(known), Some(found)) = (known.denied(peer), &said.denied)
        && known.sequence() == found.list.sequence()
        && *known != found.list
    {
        return Err(Refusal::ListChanged(known.sequence()));
    }
    // Verified by both bundles: they then share a root, and an open stream does not outlive the trust in its
    // peer.
    known.verify(chain, Role::Server, now).map_err(Refusal::Unbelieved)?;
    said.believes(peer, known.denied(peer), chain, Role::Server, now).map_err(Refusal::Unbelievable)?;
    let has_list =
        said.denied.as_ref().is_some_and(|denied| Some(denied.envelope.as_str()) != known.envelope(peer));
    Ok(Judged { said, is_later, has_list })
}

fn is_later(known: Option<&Bundle>, found: &Bundle) -> Result<bool, Refusal> {
    let Some(known) = known else { return Ok(true) };
    match found.sequence.cmp(&known.sequence) {
        Ordering::Less => Err(Refusal::Older { found: found.sequence, known: known.sequence }),
        Ordering::Equal if same_roots(known, found) => Ok(false),
        Ordering::Equal => Err(Refusal::Changed(found.sequence)),
        Ordering::Greater => Ok(true),
    }
}
