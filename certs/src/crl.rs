//! Certificate revocation lists (CRLs) of authorities that publish them. The usual way to deny a certificate before
//! it expires is the deny-list (`deny`).

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::facts::MAX_TEXT;
use crate::pem::{self, Form, PemError};
use crate::printable::excerpt;

/// The policy for a list past its `nextUpdate`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StaleCrl {
    /// Refuse every certificate of that authority until the list is fresh: safe, but an outage of its publisher
    /// becomes one here.
    #[default]
    Refuse,
    /// Continue with the old list: no outage, but later revocations are missed.
    Accept,
}

/// The revocation lists of one trust domain's authorities.
#[derive(Debug, Clone)]
pub struct Crls {
    source: [u8; 32],
    lists: Arc<[CertRevocationList<'static>]>,
    /// The policy for a stale list.
    pub stale: StaleCrl,
    next_update: OffsetDateTime,
}

/// Why revocation lists are refused.
#[derive(Debug, thiserror::Error)]
pub enum CrlError {
    /// PEM without a revocation list.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// Not a revocation list.
    #[error("a revocation list in it cannot be read; get the file from its publisher again")]
    Malformed,
    /// webpki does not support it.
    #[error("the revocation list cannot be used: {0}; get it from its publisher again")]
    Unsupported(webpki::Error),
    /// A list without an end could be stale for ever.
    #[error("the revocation list of {0} has no nextUpdate; its publisher must set one")]
    NoNextUpdate(String),
    /// It would become stale within the configured outage of its publisher.
    #[error(
        "the revocation list of {issuer} is valid for {}, which is not longer than the outage budget of {}; publish it with a later nextUpdate, or lower the outage budget",
        humantime::format_duration(*.life), humantime::format_duration(*.budget)
    )]
    TooShort {
        /// The publisher.
        issuer: String,
        /// From thisUpdate to nextUpdate.
        life: Duration,
        /// The configured outage budget.
        budget: Duration,
    },
}

impl Crls {
    /// Reads lists, PEM or DER. Each must be valid, from thisUpdate to nextUpdate, for longer than `outage_budget`:
    /// for that long its publisher may fail without a list becoming stale.
    pub fn read(bytes: &[u8], stale: StaleCrl, outage_budget: Duration) -> Result<Self, CrlError> {
        let ders = match pem::revocation_lists(bytes) {
            Err(PemError::Form { form: Form::Der, .. }) => vec![bytes.to_vec().into()],
            read => read?,
        };
        let (mut lists, mut ends) = (Vec::new(), Vec::new());
        for der in &ders {
            ends.push(next_update(der, outage_budget)?);
            lists.push(OwnedCertRevocationList::from_der(der).map_err(CrlError::Unsupported)?.into());
        }
        let next_update = ends.into_iter().min().ok_or(CrlError::Malformed)?;
        Ok(Self { source: Sha256::digest(bytes).into(), lists: lists.into(), stale, next_update })
    }

    /// When a verification under these lists expires, in seconds since 1970.
    pub(crate) fn until(&self) -> u64 {
        match self.stale {
            StaleCrl::Refuse => u64::try_from(self.next_update.unix_timestamp()).unwrap_or_default(),
            StaleCrl::Accept => u64::MAX,
        }
    }

    /// When the first of the lists becomes stale.
    pub fn next_update(&self) -> OffsetDateTime {
        self.next_update
    }

    pub(crate) fn lists(&self) -> impl Iterator<Item = &CertRevocationList<'static>> {
        self.lists.iter()
    }
}

/// Equal content, read under the same policy.
impl PartialEq for Crls {
    fn eq(&self, other: &Self) -> bool {
        (self.source, self.stale) == (other.source, other.stale)
    }
}

fn next_update(der: &[u8], budget: Duration) -> Result<OffsetDateTime, CrlError> {
    let (_, list) = CertificateRevocationList::from_der(der).map_err(|_| CrlError::Malformed)?;
    let issuer = || excerpt(&list.issuer().to_string(), MAX_TEXT);
    let next = list.next_update().ok_or_else(|| CrlError::NoNextUpdate(issuer()))?;
    let life = next.timestamp() - list.last_update().timestamp();
    let life = Duration::from_secs(u64::try_from(life).unwrap_or_default());
    if life <= budget {
        return Err(CrlError::TooShort { issuer: issuer(), life, budget });
    }
    Ok(next.to_datetime())
}

#[cfg(test)]
pub(crate) mod tests;
