//! A bundle and a deny-list as somebody says them, read and bounded. Pure. Not whether they are later than what is
//! known, nor who says so.

use isthmus_certs::deny::DenyError;
use isthmus_certs::spiffe_bundle::{self, FormatError};
use isthmus_certs::{Bundle, DenyList, Role, TrustBundles, TrustDomain, VerifyError};
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

/// Roots of one trust domain; a roll-over has two.
const MOST_ROOTS: usize = 16;

/// What is said of one trust domain.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PublishedBundle {
    pub(crate) bundle: Bundle,
    pub(crate) denied: Option<Listed>,
}

/// A deny-list, and the envelope that it came in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Listed {
    pub(crate) list: DenyList,
    pub(crate) envelope: String,
}

/// Why what is said is of no use.
#[derive(Debug, thiserror::Error)]
pub enum PublishedError {
    /// No bundle.
    #[error("the bundle of {domain} {cause}")]
    Bundle {
        /// Whose.
        domain: TrustDomain,
        /// What is wrong with it.
        #[source]
        cause: FormatError,
    },
    /// Far too many roots.
    #[error("the bundle has {0} roots; at most {MOST_ROOTS} are taken")]
    Roots(usize),
    /// No deny-list of that domain, or an older one.
    #[error(transparent)]
    Denied(#[from] DenyError),
}

impl PublishedBundle {
    /// Reads both. The list must be signed under the bundle, and not go back behind a known one.
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

    /// Whether who shows this chain is believed by what is said, and by a known list where none is.
    pub(crate) fn believes(
        &self,
        domain: &TrustDomain,
        known: Option<&DenyList>,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), VerifyError> {
        let mut said = TrustBundles::new();
        said.insert(domain.clone(), self.bundle.clone());
        if let Some(list) = self.denied.as_ref().map(|denied| &denied.list).or(known) {
            said.deny(list.clone());
        }
        said.verify(chain, role, now).map(|_| ())
    }
}
