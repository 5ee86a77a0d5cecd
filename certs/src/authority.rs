//! A certificate authority of one trust domain: a self-signed root held in memory that issues leaves.
//! Not a place that keeps its key on disk, and no policy of who may ask for what: that is the caller's.

use std::time::Duration;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::{CertificateDer, DnsName, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use crate::identity::Identity;
use crate::spiffe::{SpiffeId, TrustDomain};

const ROOT_LIFETIME: time::Duration = time::Duration::days(3650);
/// Peers' clocks differ; Istio allows as much.
const BACKDATE: time::Duration = time::Duration::minutes(2);

/// A root certificate (ECDSA P-256, ten years) and its key. `Debug` never shows the key.
#[derive(Debug)]
pub struct Authority {
    trust_domain: TrustDomain,
    root: CertifiedIssuer<'static, KeyPair>,
    not_after: OffsetDateTime,
}

/// Why a certificate was not made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The ID belongs to another trust domain.
    #[error("{id} is not of trust domain {own}; ask the authority of {}", id.trust_domain())]
    ForeignId {
        /// The ID asked for.
        id: SpiffeId,
        /// The domain this authority speaks for.
        own: TrustDomain,
    },
    /// The ID names a trust domain, not a workload.
    #[error("{0} has no path; a leaf's identity needs one, such as /ns/NAMESPACE/sa/ACCOUNT")]
    NoPath(SpiffeId),
    /// A DNS name that is none.
    #[error("{0:?} is not a DNS name; write one such as web.example or *.web.example")]
    DnsName(String),
    /// Zero, or past the root's own end.
    #[error("a lifetime of {0:?} is not possible; it must be above zero and end before the root does")]
    Lifetime(Duration),
    /// The key or the certificate could not be made.
    #[error("cannot make the certificate")]
    Generate(#[from] rcgen::Error),
}

impl Authority {
    /// Makes a new root and key for a trust domain.
    ///
    /// It may sign leaves and one level of intermediates. It carries no name constraints: webpki refuses
    /// every URI name under them; domains are kept apart by [`crate::TrustBundles`] instead.
    pub fn generate(trust_domain: TrustDomain) -> Result<Self, IssueError> {
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.not_before = now - BACKDATE;
        params.not_after = now + ROOT_LIFETIME;
        params.distinguished_name = root_name(&trust_domain);
        params.subject_alt_names = vec![uri(&trust_domain.id())?];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        let not_after = params.not_after;
        let root = CertifiedIssuer::self_signed(params, generate_key()?)?;
        Ok(Self { trust_domain, root, not_after })
    }

    /// The domain this authority speaks for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root certificate, for [`crate::TrustBundles::add_root`].
    pub fn root(&self) -> &CertificateDer<'static> {
        self.root.der()
    }

    /// The root certificate as PEM.
    pub fn root_pem(&self) -> String {
        self.root.pem()
    }

    /// Issues a leaf with a new key: `id` as its only URI name, `dns_names` beside it, for clients and servers.
    ///
    /// It is valid from two minutes ago until `lifetime` from now.
    pub fn issue(
        &self,
        id: &SpiffeId,
        dns_names: &[&str],
        lifetime: Duration,
    ) -> Result<Identity, IssueError> {
        if id.trust_domain() != &self.trust_domain {
            return Err(IssueError::ForeignId { id: id.clone(), own: self.trust_domain.clone() });
        }
        if id.path().is_empty() {
            return Err(IssueError::NoPath(id.clone()));
        }
        let params = self.leaf(id, dns_names, lifetime)?;
        self.sign(id, &params)
    }

    fn leaf(
        &self,
        id: &SpiffeId,
        dns_names: &[&str],
        lifetime: Duration,
    ) -> Result<CertificateParams, IssueError> {
        let now = OffsetDateTime::now_utc();
        let not_after = time::Duration::try_from(lifetime)
            .ok()
            .filter(|span| span.is_positive())
            .and_then(|span| now.checked_add(span))
            .filter(|end| *end <= self.not_after)
            .ok_or(IssueError::Lifetime(lifetime))?;
        let mut params = CertificateParams::default();
        params.not_before = now - BACKDATE;
        params.not_after = not_after;
        // The identity is the URI name alone: an empty subject leaves nothing else to be taken for it.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(id)?];
        for name in dns_names {
            params.subject_alt_names.push(dns(name)?);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    fn sign(&self, id: &SpiffeId, params: &CertificateParams) -> Result<Identity, IssueError> {
        let key = generate_key()?;
        // rcgen's serial number is a hash of the public key: unique, as each leaf has its own.
        let leaf = params.signed_by(&key, &self.root)?;
        Ok(Identity {
            id: id.clone(),
            chain_pem: leaf.pem(),
            key_pem: key.serialize_pem(),
            chain: vec![leaf.into()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }

    /// A leaf with anything wrong that `alter` puts in.
    #[cfg(test)]
    pub(crate) fn issue_altered(
        &self,
        id: &SpiffeId,
        alter: impl FnOnce(&mut CertificateParams),
    ) -> Identity {
        let mut params = self.leaf(id, &[], Duration::from_secs(3600)).unwrap();
        alter(&mut params);
        self.sign(id, &params).unwrap()
    }
}

fn generate_key() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
}

fn root_name(trust_domain: &TrustDomain) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "Isthmus root");
    // X.520 allows 64 characters here; the whole name is in the URI name.
    name.push(DnType::OrganizationName, trust_domain.as_str().chars().take(64).collect::<String>());
    name
}

fn uri(id: &SpiffeId) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(Ia5String::try_from(id.to_string())?))
}

fn dns(name: &str) -> Result<SanType, IssueError> {
    let bad = || IssueError::DnsName(name.to_owned());
    DnsName::try_from(name.strip_prefix("*.").unwrap_or(name)).map_err(|_| bad())?;
    Ok(SanType::DnsName(Ia5String::try_from(name).map_err(|_| bad())?))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn authority() -> Authority {
        Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap()
    }

    fn workload(authority: &Authority) -> SpiffeId {
        SpiffeId::workload(authority.trust_domain(), "bookinfo", "reviews").unwrap()
    }

    #[test]
    fn refuses_what_it_may_not_issue() {
        let east = authority();
        let west = SpiffeId::parse("spiffe://west.example/ns/a/sa/b").unwrap();
        assert!(matches!(east.issue(&west, &[], HOUR), Err(IssueError::ForeignId { .. })));
        assert!(matches!(east.issue(&east.trust_domain().id(), &[], HOUR), Err(IssueError::NoPath(_))));
        let id = workload(&east);
        for name in ["", "a b", "*", "*.", "x\0y", "spiffe://x"] {
            assert!(matches!(east.issue(&id, &[name], HOUR), Err(IssueError::DnsName(_))), "{name:?}");
        }
        for span in [Duration::ZERO, HOUR * 24 * 3651, Duration::MAX] {
            assert!(matches!(east.issue(&id, &[], span), Err(IssueError::Lifetime(_))), "{span:?}");
        }
    }

    #[test]
    fn openssl_accepts_the_chain() {
        if Command::new("openssl").arg("version").output().is_err() {
            println!("SKIPPED openssl_accepts_the_chain: no openssl here");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        // A long domain: the root's subject must still keep X.520's limits.
        let domain = TrustDomain::new(&format!("{}.example", "d".repeat(100))).unwrap();
        let authority = Authority::generate(domain).unwrap();
        let names = ["reviews.bookinfo.svc.cluster.local", "*.reviews.example"];
        let identity = authority.issue(&workload(&authority), &names, HOUR).unwrap();
        let files = identity.write_to(dir.path(), "leaf").unwrap();
        let root = dir.path().join("root.pem");
        fs::write(&root, authority.root_pem()).unwrap();
        for purpose in ["sslserver", "sslclient"] {
            let output = Command::new("openssl")
                .args([
                    "verify",
                    "-x509_strict",
                    "-purpose",
                    purpose,
                    "-verify_hostname",
                    "a.reviews.example",
                ])
                .arg("-CAfile")
                .arg(&root)
                .arg(&files.chain)
                .output()
                .unwrap();
            assert!(output.status.success(), "{purpose}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
