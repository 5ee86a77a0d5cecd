//! What one side offers, and whether what the other offers is of who has proven to be there. Pure but for the
//! own deny-list, which is read where the agent keeps it.

use isthmus_certs::spiffe_bundle::{self, FormatError};
use isthmus_certs::{Bundle, Role, TrustDomain, VerifyError};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

use super::disk::{self, ReadError};
use super::shown::Shown;
use super::wire::{LONG, Offer};
use super::{Context, Introduction, IntroductionError, Party};
use crate::bundles::PublishedError;
use crate::bundles::published::PublishedBundle;

/// Bytes of a deny-list that is handed over, so that the offer is never too long.
const MOST_DENIED: u64 = LONG as u64 / 2;

/// What may be kept of an offer.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) introduction: Introduction,
    pub(super) bundle: Bundle,
    /// In its envelope.
    pub(super) denied: Option<String>,
}

/// Why an offer is not taken, or cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// It speaks for somebody else.
    #[error("the offer speaks for {found}, but the certificate is of {proven}")]
    OtherParty {
        /// Whom the offer names.
        found: Party,
        /// Who has proven to be there.
        proven: Party,
    },
    /// Addresses or names that are of no use.
    #[error("the introduction: {0}")]
    Introduction(#[from] IntroductionError),
    /// The own bundle cannot be written.
    #[error("the own bundle {0}")]
    Bundle(#[source] FormatError),
    /// No bundle, or no deny-list of that domain.
    #[error(transparent)]
    PublishedBundle(#[from] PublishedError),
    /// A bundle of other roots than its own agent's.
    #[error("the bundle of {0} lacks the root of its own agent")]
    OtherRoot(TrustDomain),
    /// The offer denies who makes it.
    #[error("the agent is not believed by what it offers: {0}")]
    Unbelievable(#[from] VerifyError),
    /// The own bundle is not there.
    #[error("there is no bundle of the own trust domain {0}; add it to the directory of bundles")]
    NoBundle(TrustDomain),
    /// The own deny-list cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// What this side offers.
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

/// What may be kept of an offer by the agent that is `shown` by this chain.
pub(super) fn accept(
    offer: Offer,
    shown: &Shown,
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
    let said = PublishedBundle::read(domain, &bundle, denied, None, now)?;
    if !said.bundle.roots().contains(&shown.root) {
        return Err(OfferError::OtherRoot(domain.clone()));
    }
    said.believes(domain, None, chain, role, now)?;
    let PublishedBundle { bundle, denied } = said;
    Ok(Accepted { introduction, bundle, denied: denied.map(|denied| denied.envelope) })
}
