//! Creates this side's offer, and checks that the other side's offer matches its certificate. Pure, except
//! that the agent's own deny-list is read from disk.

use isthmus_certs::spiffe_bundle::{self, FormatError};
use isthmus_certs::{Bundle, Role, TrustDomain, VerifyError};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

use super::disk::{self, ReadError};
use super::presented::PresentedAgent;
use super::wire::{LONG_LIMIT, Offer};
use super::{Context, Introduction, IntroductionError, Party};
use crate::bundles::PublishedError;
use crate::bundles::published::PublishedBundle;

/// Size limit of the deny-list in an offer, so that the offer fits its own limit.
const MOST_DENIED: u64 = LONG_LIMIT as u64 / 2;

/// The verified content of an offer.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) introduction: Introduction,
    pub(super) bundle: Bundle,
    /// The deny-list in its signed envelope.
    pub(super) denied: Option<String>,
}

/// Why an offer is refused or cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// The offer is for another party.
    #[error("the offer is from {found}, but the certificate is of {proven}")]
    OtherParty {
        /// The party in the offer.
        found: Party,
        /// The party in the certificate.
        proven: Party,
    },
    /// The introduction is invalid.
    #[error("the introduction: {0}")]
    Introduction(#[from] IntroductionError),
    /// This agent's bundle cannot be written.
    #[error("this agent's bundle {0}")]
    Bundle(#[source] FormatError),
    /// The bundle or deny-list is invalid.
    #[error(transparent)]
    PublishedBundle(#[from] PublishedError),
    /// The bundle does not contain the root of the sender's certificate.
    #[error("the bundle of {0} lacks the root of its own agent")]
    OtherRoot(TrustDomain),
    /// The offered bundle or deny-list rejects its sender.
    #[error("the offered bundle does not trust the agent that sent it: {0}")]
    Unbelievable(#[from] VerifyError),
    /// This agent's bundle is missing.
    #[error("there is no bundle of this agent's trust domain {0}; add it to the directory of bundles")]
    NoBundle(TrustDomain),
    /// This agent's deny-list cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// This side's offer.
pub(super) fn own(context: &Context) -> Result<Offer, OfferError> {
    let domain = &context.party().trust_domain;
    let trusted = context.trust.current();
    let bundle = trusted.bundles.get(domain).ok_or_else(|| OfferError::NoBundle(domain.clone()))?;
    let bundle = spiffe_bundle::write(bundle).map_err(OfferError::Bundle)?;
    let denied = match &context.folders.deny {
        Some(folder) => disk::read(&folder.join(format!("{domain}.json")), MOST_DENIED)?,
        None => None,
    };
    Ok(Offer { introduction: context.introduction.clone(), bundle, denied })
}

/// Checks the offer of the agent that `shown` identifies.
pub(super) fn accept(
    offer: Offer,
    shown: &PresentedAgent,
    chain: &[CertificateDer<'_>],
    role: Role,
    now: UnixTime,
) -> Result<Accepted, OfferError> {
    let Offer { introduction, bundle, denied } = offer;
    if introduction.party != shown.party {
        return Err(OfferError::OtherParty { found: introduction.party, proven: shown.party.clone() });
    }
    introduction.check()?;
    let domain = &shown.party.trust_domain;
    let published = PublishedBundle::read(domain, &bundle, denied, None, now)?;
    if !published.bundle.roots().contains(&shown.root) {
        return Err(OfferError::OtherRoot(domain.clone()));
    }
    published.believes(domain, None, chain, role, now)?;
    let PublishedBundle { bundle, denied } = published;
    Ok(Accepted { introduction, bundle, denied: denied.map(|denied| denied.envelope) })
}
