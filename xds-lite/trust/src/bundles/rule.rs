//! Whether what a peer says of a trust domain replaces what is known of it. Pure: what is known, what came, who said
//! so and the time are arguments.

use std::cmp::Ordering;

use isthmus_certs::{Bundle, Role, TrustBundles, TrustDomain, VerifyError, WriteError};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

use super::known::{KnownError, same_roots};
use super::published::{PublishedBundle, PublishedError};
use super::wire::decode;

/// Why a bundle is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// About somebody else.
    #[error("this peer speaks for {0} alone")]
    OtherDomain(TrustDomain),
    /// About this side.
    #[error("{0} is this agent's own trust domain; nobody else is believed about it")]
    Own(TrustDomain),
    /// Its name and its content differ.
    #[error("it is about {0:?}, and not named so")]
    OtherName(String),
    /// Too many bytes.
    #[error("{what} has {size} bytes, which is more than is taken")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Its size.
        size: usize,
    },
    /// No protobuf.
    #[error("it cannot be decoded: {0}")]
    Malformed(prost::DecodeError),
    /// Its numbers differ.
    #[error("it says to have sequence {said}, and its bundle has {found}")]
    Sequences {
        /// Beside the bundle.
        said: u64,
        /// In the bundle.
        found: u64,
    },
    /// No bundle, no deny-list, or an older one.
    #[error(transparent)]
    PublishedBundle(#[from] PublishedError),
    /// Older than what is known.
    #[error("it has sequence {found}, but {known} is known; an old bundle never replaces a newer one")]
    Older {
        /// The number it has.
        found: u64,
        /// The number already seen.
        known: u64,
    },
    /// Two bundles under one number.
    #[error(
        "it has the known sequence {0} and other roots; one of its domain's agents has another bundle than the others"
    )]
    Changed(u64),
    /// Two deny-lists under one number.
    #[error("its deny-list has the known sequence {0} and denies something else")]
    ListChanged(u64),
    /// Who says so is not believed any more, since the stream began.
    #[error("its agent is no longer believed by what is known here: {0}")]
    Unbelieved(#[source] VerifyError),
    /// Who says so would not be believed any more.
    #[error("its own agent would not be believed by it: {0}")]
    Unbelievable(#[source] VerifyError),
    /// The known list could not be read again under this bundle.
    #[error(
        "the deny-list that is known of its domain is not signed under it; the peer's agent must send its own list along (`deny` in its `trust`)"
    )]
    ListLeft,
    /// Neither goes before the other.
    #[error(
        "the known deny-list is not signed under the new bundle, nor the new one under the known bundle; bring both here by hand"
    )]
    Apart,
    /// Somebody keeps it by hand.
    #[error(
        "the bundle is kept by hand in {}, with other roots; remove that file and put {} in its place, which is followed from then on",
        pem.display(), json.display()
    )]
    ByHand {
        /// The file.
        pem: std::path::PathBuf,
        /// What is followed.
        json: std::path::PathBuf,
    },
    /// What is known cannot be read.
    #[error("it cannot be kept here: {0}")]
    Known(#[from] KnownError),
    /// It cannot be written.
    #[error("it cannot be kept here: {0}")]
    Write(#[from] WriteError),
    /// It was written, and is not believed.
    #[error("it was written here and is not used: {0}")]
    Unused(String),
}

/// What would have the same resource taken after all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing; it takes another one.
    None,
    /// Something on this side.
    Here,
    /// The certificate that the peer shows by now.
    NewCertificate,
}

impl Refusal {
    /// What would help.
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

/// Who speaks, and who listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Between<'a> {
    /// The listener's trust domain.
    pub(super) own: &'a TrustDomain,
    /// The peer's, as it is configured or was joined.
    pub(super) peer: &'a TrustDomain,
    /// What the peer has shown of itself on this stream.
    pub(super) chain: &'a [CertificateDer<'static>],
}

/// What may be taken.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) said: PublishedBundle,
    /// The bundle is later than the known one.
    pub(super) is_later: bool,
    /// The deny-list is later, or signed anew.
    pub(super) has_list: bool,
}

/// Judges one resource.
pub(super) fn hear(
    between: Between<'_>,
    known: &TrustBundles,
    name: &str,
    bytes: &[u8],
    now: UnixTime,
) -> Result<Heard, Refusal> {
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
    // By both: then they have a root in common, and who was believed once does not stay so by an open stream.
    known.verify(chain, Role::Server, now).map_err(Refusal::Unbelieved)?;
    said.believes(peer, known.denied(peer), chain, Role::Server, now).map_err(Refusal::Unbelievable)?;
    let has_list =
        said.denied.as_ref().is_some_and(|denied| Some(denied.envelope.as_str()) != known.envelope(peer));
    Ok(Heard { said, is_later, has_list })
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
