//! Parses a published bundle and deny-list within limits. Pure. Whether they are newer than the known ones is
//! decided in `rule`.

use isthmus_certs::deny::DenyError;
use isthmus_certs::spiffe_bundle::{self, FormatError};
use isthmus_certs::{Bundle, DenyList, Role, TrustBundles, TrustDomain, VerifyError};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

/// Roots of one trust domain; a roll-over has two.
const MOST_ROOTS: usize = 16;

/// The published trust data of one domain.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PublishedBundle {
    pub(crate) bundle: Bundle,
    pub(crate) denied: Option<Listed>,
}

/// A deny-list and its signed envelope.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Listed {
    pub(crate) list: DenyList,
    pub(crate) envelope: String,
}

/// A published bundle or deny-list is invalid.
#[derive(Debug, thiserror::Error)]
pub enum PublishedError {
    /// The bundle is invalid.
    #[error("the bundle of {domain} {cause}")]
    Bundle {
        /// The trust domain.
        domain: TrustDomain,
        /// The error in the bundle.
        #[source]
        cause: FormatError,
    },
    /// The bundle has too many roots.
    #[error("the bundle has {0} roots; the limit is {MOST_ROOTS}")]
    Roots(usize),
    /// The deny-list is of another domain, badly signed, or older than the known one.
    #[error(transparent)]
    Denied(#[from] DenyError),
}

impl PublishedBundle {
    /// Parses both. The list must be signed under the bundle and must not be older than the known one.
    pub(crate) fn read(
        domain: &TrustDomain,
        bundle: &str,
        envelope: Option<String>,
        known: Option<&DenyList>,
        now: UnixTime,
    ) -> Result<PublishedBundle, PublishedError> {
        let bundle = spiffe_bundle::read(domain, bundle)
            .map_err(|cause| PublishedError::Bundle { domain: domain.clone(), cause })?;
        if bundle.roots().len() > MOST_ROOTS {
            return Err(PublishedError::Roots(bundle.roots().len()));
        }
        let open = |envelope: String| -> Result<Listed, DenyError> {
            let list = DenyList::open(envelope.as_bytes(), domain, &bundle, now, known)?;
            Ok(Listed { list, envelope })
        };
        let denied = envelope.map(open).transpose()?;
        Ok(PublishedBundle { bundle, denied })
    }

    /// Verifies `chain` against this bundle and its deny-list, or the known list if it has none.
    pub(crate) fn believes(
        &self,
        domain: &TrustDomain,
        known: Option<&DenyList>,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), VerifyError> {
        let mut bundles = TrustBundles::new();
        bundles.insert(domain.clone(), self.bundle.clone());
        if let Some(list) = self.denied.as_ref().map(|denied| &denied.list).or(known) {
            bundles.deny(list.clone());
        }
        bundles.verify(chain, role, now).map(|_| ())
    }
}
