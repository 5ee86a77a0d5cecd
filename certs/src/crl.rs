//! Certificate revocation lists: read where they are configured, for authorities that publish them.
//! The default way to take a certificate back is the deny-list (`deny`), next to short lives.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::facts::bounded;
use crate::pem::{self, Form, PemError};

/// What is done once a list is past its `nextUpdate`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StaleCrl {
    /// Nobody of that authority is let in until the list is fresh: safe, and an outage if its publisher fails.
    #[default]
    Refuse,
    /// The old list goes on: no outage, and later revocations are not seen.
    Accept,
}

/// The revocation lists of one trust domain's authorities.
#[derive(Debug, Clone)]
pub struct Crls {
    source: [u8; 32],
    lists: Arc<[CertRevocationList<'static>]>,
    /// What is done with a stale one.
    pub stale: StaleCrl,
    next_update: OffsetDateTime,
}

/// Why lists are not used.
#[derive(Debug, thiserror::Error)]
pub enum CrlError {
    /// PEM, and no list.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// What is there is no list.
    #[error("a revocation list in it cannot be read; get the file again from its publisher")]
    Malformed,
    /// webpki does not take it.
    #[error("the revocation list cannot be used: {0}")]
    Unsupported(webpki::Error),
    /// A list without an end could be old for ever.
    #[error("the revocation list of {0} has no nextUpdate; its publisher must set one")]
    NoNextUpdate(String),
    /// It would be stale before an outage of its publisher may end.
    #[error(
        "the revocation list of {issuer} lives for {}, less than the outage of {} that is to be survived; publish it with a later nextUpdate, or lower the outage budget",
        humantime::format_duration(*.life), humantime::format_duration(*.budget)
    )]
    TooShort {
        /// Who publishes it.
        issuer: String,
        /// From thisUpdate to nextUpdate.
        life: Duration,
        /// The configured outage budget.
        budget: Duration,
    },
}

impl Crls {
    /// Reads lists, PEM or DER. Each must live longer than `outage_budget`, from its thisUpdate to its
    /// nextUpdate: that is how long its publisher may be away without a list going stale.
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

    /// Until when what they allow may be built on, in seconds since 1970.
    pub(crate) fn until(&self) -> u64 {
        match self.stale {
            StaleCrl::Refuse => u64::try_from(self.next_update.unix_timestamp()).unwrap_or_default(),
            StaleCrl::Accept => u64::MAX,
        }
    }

    /// When the first of them is stale.
    pub fn next_update(&self) -> OffsetDateTime {
        self.next_update
    }

    pub(crate) fn lists(&self) -> impl Iterator<Item = &CertRevocationList<'static>> {
        self.lists.iter()
    }
}

/// The same lists, read in the same way.
impl PartialEq for Crls {
    fn eq(&self, other: &Self) -> bool {
        (self.source, self.stale) == (other.source, other.stale)
    }
}

fn next_update(der: &[u8], budget: Duration) -> Result<OffsetDateTime, CrlError> {
    let (_, list) = CertificateRevocationList::from_der(der).map_err(|_| CrlError::Malformed)?;
    let issuer = || bounded(&list.issuer().to_string());
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
