//! A leaf certificate with its chain and private key, which a workload presents to its peers. `trust` follows its
//! files; `home` renews them.

use std::fmt;
use std::path::{Path, PathBuf};

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::crypto;
use crate::facts::Facts;
use crate::files::{self, PUBLIC, SECRET, WriteError};
use crate::pem::{self, PemError};
use crate::spiffe::SpiffeId;
use crate::svid::{SvidError, peer_id};

/// A SPIFFE identity that can prove itself. `Debug` never shows the key.
pub struct Identity {
    pub(crate) id: SpiffeId,
    /// Leaf first, without the root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) chain_pem: String,
    pub(crate) key_pem: String,
}

/// Why a chain and a key are not an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The chain is not PEM certificates.
    #[error(transparent)]
    Chain(PemError),
    /// The key is not PEM, or cannot be used for TLS.
    #[error(transparent)]
    Key(PemError),
    /// The leaf has no valid SPIFFE identity.
    #[error(transparent)]
    Svid(#[from] SvidError),
    /// The key of another certificate, as happens for a moment while both files are replaced.
    #[error("the private key does not match the certificate; both must be of the same issue")]
    OtherKey,
}

/// The files written by [`Identity::write_to`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The chain, leaf first, PEM, mode 0644.
    pub chain: PathBuf,
    /// The key, PKCS#8 PEM, mode 0600.
    pub key: PathBuf,
}

impl Identity {
    /// Reads an identity from PEM: the chain, leaf first, and the key.
    ///
    /// A root at the end of the chain is dropped. The chain is not verified.
    pub fn from_pem(chain: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Result<Self, IdentityError> {
        let chain = pem::without_root(pem::certificates(chain).map_err(IdentityError::Chain)?);
        let id = peer_id(&chain)?;
        let key = pem::key(key).map_err(IdentityError::Key)?;
        CertifiedKey::from_der(chain.clone(), key.clone_key(), &crypto::provider()).map_err(|error| {
            match error {
                rustls::Error::InconsistentKeys(_) => IdentityError::OtherKey,
                _ => IdentityError::Key(PemError::UnusableKey),
            }
        })?;
        Ok(Self { id, chain_pem: pem::encode(&chain), key_pem: pem::encode_key(&key), chain, key })
    }

    /// The SPIFFE ID in its certificate.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The DNS names in its certificate, in lower case; none, if that cannot be read.
    pub fn dns_names(&self) -> Vec<String> {
        let leaf = self.chain.first().and_then(|leaf| Facts::read(leaf).ok());
        let names = leaf.map(|leaf| leaf.dns).unwrap_or_default();
        names.into_iter().map(|name| name.to_ascii_lowercase()).collect()
    }

    /// The certificates, leaf first, without the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The private key.
    pub fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    /// The certificates as PEM, leaf first, without the root.
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// The private key as PKCS#8 PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Writes `STEM.key` and `STEM.crt` into `dir`, which must exist, replacing what is there.
    ///
    /// Each file appears whole or not at all, and the key is readable by its owner only from its first byte.
    pub fn write_to(&self, dir: &Path, stem: &str) -> Result<IdentityFiles, WriteError> {
        let written =
            IdentityFiles { chain: dir.join(format!("{stem}.crt")), key: dir.join(format!("{stem}.key")) };
        files::write(&written.key, &self.key_pem, SECRET)?;
        files::write(&written.chain, &self.chain_pem, PUBLIC)?;
        Ok(written)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .field("certificates", &self.chain.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use super::*;
    use crate::{Authority, TrustDomain};

    fn identity() -> Identity {
        let authority = Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap();
        let id = SpiffeId::workload(authority.trust_domain(), "bookinfo", "reviews").unwrap();
        authority.issue(&id, &[], Duration::from_secs(3600)).unwrap()
    }

    #[test]
    fn identity_files_have_private_keys_and_public_chains() {
        let dir = tempfile::tempdir().unwrap();
        let identity = identity();
        let files = identity.write_to(dir.path(), "reviews").unwrap();
        // Overwrites the old files.
        identity.write_to(dir.path(), "reviews").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&files.key), mode(&files.chain)), (0o600, 0o644));
        assert_eq!(fs::read_to_string(&files.key).unwrap(), identity.key_pem());
        assert_eq!(fs::read_to_string(&files.chain).unwrap(), identity.chain_pem());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn identity_write_error_names_the_missing_directory() {
        let dir = tempfile::tempdir().unwrap();
        let error = identity().write_to(&dir.path().join("absent"), "x").unwrap_err();
        assert!(error.to_string().contains("absent/x.key"), "{error}");
    }

    #[test]
    fn identity_debug_hides_the_key() {
        let text = format!("{:?}", identity());
        assert!(text.contains("reviews") && !text.contains("PRIVATE"), "{text}");
    }
}
