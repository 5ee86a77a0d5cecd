//! A certificate authority of one trust domain, root or intermediate, which signs leaves and intermediates. `home`
//! stores it on disk; `issuer` has the policy of who may have which certificate.

mod error;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SigningKey, SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateDer, DnsName, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::crypto;
use crate::facts::Facts;
use crate::identity::Identity;
use crate::key::KeyKind;
use crate::pem::{self, PemError};
use crate::spiffe::{SpiffeId, TrustDomain};

pub use error::{IssueError, Unusable};

/// Default lifetime of a root: ten years.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(3650 * DAY);
/// Default lifetime of an intermediate: one year.
pub const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(365 * DAY);
const DAY: u64 = 24 * 60 * 60;
/// How far back the validity of a new certificate begins, for peers whose clocks differ. As in Istio.
pub const BACKDATE: Duration = Duration::from_secs(120);
/// Path length below a root: intermediates.
const ROOT_PATH: u8 = 1;
/// Path length below the anchor of a file for OpenSSL: roots of other domains, and their intermediates.
const ANCHOR_PATH: u8 = 3;
/// X.520 allows 64 characters in a name attribute; the full name is in the URI name.
const MAX_NAME: usize = 64;

/// An authority that signs for one trust domain. `Debug` never shows the key.
pub struct Authority {
    trust_domain: TrustDomain,
    certificate: CertificateDer<'static>,
    /// The certificates after the leaf in a chain: none under a root.
    above: Vec<CertificateDer<'static>>,
    not_after: OffsetDateTime,
    key: Box<dyn SigningKey + Send + Sync>,
    key_pem: Option<String>,
}

/// The content of a leaf certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    /// Its only URI name.
    pub id: SpiffeId,
    /// DNS names, such as `web.example` or `*.web.example`.
    #[serde(default)]
    pub dns: Vec<String>,
    /// IP addresses.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Its lifetime, from now.
    #[serde(with = "crate::span")]
    pub lifetime: Duration,
}

impl Authority {
    /// Makes a new root of a trust domain: ECDSA P-256, ten years.
    pub fn generate(trust_domain: TrustDomain) -> Result<Self, IssueError> {
        Self::root(trust_domain, KeyKind::P256, ROOT_LIFETIME)
    }

    /// Makes a new root and key for a trust domain.
    ///
    /// It may sign leaves and one level of intermediates. It has no name constraints: webpki refuses every URI name
    /// under them; [`crate::TrustBundles`] keeps domains apart instead.
    pub fn root(trust_domain: TrustDomain, kind: KeyKind, lifetime: Duration) -> Result<Self, IssueError> {
        let params = authority_params("Isthmus root", &trust_domain, None, ROOT_PATH, lifetime, None)?;
        let key = kind.generate()?;
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self::from_parts(trust_domain, certificate, Vec::new(), params.not_after, key))
    }

    /// Makes an anchor that cross-signs roots of other domains for one file, and nothing else.
    pub(crate) fn anchor(trust_domain: TrustDomain) -> Result<Self, IssueError> {
        let params =
            authority_params("Isthmus anchor", &trust_domain, None, ANCHOR_PATH, ROOT_LIFETIME, None)?;
        let key = KeyKind::P256.generate()?;
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self::from_parts(trust_domain, certificate, Vec::new(), params.not_after, key))
    }

    /// Makes the intermediate of a cluster, which signs leaves only.
    ///
    /// Clusters under one root are one security domain: each can sign any identity of the trust domain.
    pub fn intermediate(&self, cluster: &str, kind: KeyKind, lifetime: Duration) -> Result<Self, IssueError> {
        if !self.above.is_empty() {
            return Err(IssueError::NotRoot(self.trust_domain.clone()));
        }
        let until = Some(self.not_after);
        let domain = &self.trust_domain;
        let params = authority_params("Isthmus intermediate", domain, Some(cluster), 0, lifetime, until)?;
        let key = kind.generate()?;
        let certificate = params.signed_by(&key, &self.signer()?)?.der().clone();
        let above = vec![certificate.clone()];
        Ok(Self::from_parts(domain.clone(), certificate, above, params.not_after, key))
    }

    fn from_parts(
        trust_domain: TrustDomain,
        certificate: CertificateDer<'static>,
        above: Vec<CertificateDer<'static>>,
        not_after: OffsetDateTime,
        key: KeyPair,
    ) -> Self {
        let key_pem = Some(key.serialize_pem());
        Self { trust_domain, certificate, above, not_after, key: Box::new(key), key_pem }
    }

    /// Reads an authority from PEM: the chain, its own certificate first and those towards the root after it, and its
    /// key.
    pub fn from_pem(
        trust_domain: TrustDomain,
        chain: impl AsRef<[u8]>,
        key: impl AsRef<[u8]>,
    ) -> Result<Self, Unusable> {
        let chain = pem::certificates(chain).map_err(Unusable::Chain)?;
        let key = pem::key(key).map_err(Unusable::Key)?;
        let pair = KeyPair::try_from(&key).map_err(|_| Unusable::Key(PemError::UnusableKey))?;
        let mut authority = Self::with_key(trust_domain, chain, Box::new(pair))?;
        authority.key_pem = Some(pem::encode_key(&key));
        Ok(authority)
    }

    /// Makes an authority whose key is held elsewhere, such as in an HSM.
    pub fn with_key(
        trust_domain: TrustDomain,
        chain: Vec<CertificateDer<'static>>,
        key: Box<dyn SigningKey + Send + Sync>,
    ) -> Result<Self, Unusable> {
        let certificate = chain.first().cloned().ok_or(Unusable::Empty)?;
        let facts = Facts::read(&certificate)?;
        if !facts.is_authority {
            return Err(Unusable::NotAuthority(trust_domain));
        }
        if let Some(found) = facts.uris.iter().find(|uri| **uri != trust_domain.id().to_string()) {
            return Err(Unusable::OtherDomain { found: found.clone(), expected: trust_domain });
        }
        if facts.public_key != key.subject_public_key_info() {
            return Err(Unusable::OtherKey);
        }
        let above = pem::without_root(chain);
        Ok(Self { trust_domain, certificate, above, not_after: facts.not_after, key, key_pem: None })
    }

    /// The trust domain of this authority.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Its own certificate; that of a root goes to [`crate::TrustBundles::add_root`].
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its own certificate as PEM.
    pub fn certificate_pem(&self) -> String {
        pem::encode(std::slice::from_ref(&self.certificate))
    }

    /// The certificates between a leaf and the root, this authority first; empty for a root.
    pub fn above(&self) -> &[CertificateDer<'static>] {
        &self.above
    }

    /// Its key as PKCS#8 PEM; none if it is held elsewhere.
    pub fn key_pem(&self) -> Option<&str> {
        self.key_pem.as_deref()
    }

    /// When it expires.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// The longest lifetime it can sign now: until its own expiry.
    pub fn longest(&self) -> Duration {
        let left = self.not_after - OffsetDateTime::now_utc();
        // Signing takes a moment.
        Duration::from_secs(u64::try_from(left.whole_seconds() - 1).unwrap_or_default())
    }

    /// Issues a leaf with a new P-256 key: `id` as its only URI name, and these DNS names.
    ///
    /// It is valid from two minutes ago until `lifetime` from now, for clients and servers.
    pub fn issue(
        &self,
        id: &SpiffeId,
        dns_names: &[&str],
        lifetime: Duration,
    ) -> Result<Identity, IssueError> {
        let dns = dns_names.iter().map(|&name| name.to_owned()).collect();
        let leaf = Leaf { id: id.clone(), dns, ips: Vec::new(), lifetime };
        self.issue_with(&leaf, KeyKind::P256)
    }

    /// Issues a leaf with a new key.
    pub fn issue_with(&self, leaf: &Leaf, kind: KeyKind) -> Result<Identity, IssueError> {
        self.identity(&leaf.id, &self.leaf(leaf)?, &kind.generate()?)
    }

    /// Signs a leaf for a key that is held elsewhere. Returns the chain without the root.
    pub fn certify(
        &self,
        key: &SubjectPublicKeyInfo,
        leaf: &Leaf,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        self.chain(&self.leaf(leaf)?, key)
    }

    /// Signs a message that is not a certificate, such as a deny-list.
    pub(crate) fn sign_bytes(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.key.sign(message)
    }

    pub(crate) fn signer(
        &self,
    ) -> Result<rcgen::Issuer<'static, &(dyn SigningKey + Send + Sync)>, rcgen::Error> {
        rcgen::Issuer::from_ca_cert_der(&self.certificate, &*self.key)
    }

    fn leaf(&self, leaf: &Leaf) -> Result<CertificateParams, IssueError> {
        if leaf.id.trust_domain() != &self.trust_domain {
            return Err(IssueError::ForeignId { id: leaf.id.clone(), own: self.trust_domain.clone() });
        }
        if leaf.id.path().is_empty() {
            return Err(IssueError::NoPath(leaf.id.clone()));
        }
        let mut params = dated(leaf.lifetime, Some(self.not_after))?;
        // The identity is the URI name alone: with an empty subject nothing else can be mistaken for it.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(&leaf.id)?];
        for name in &leaf.dns {
            params.subject_alt_names.push(dns(name)?);
        }
        params.subject_alt_names.extend(leaf.ips.iter().copied().map(SanType::IpAddress));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params)
    }

    fn chain(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        let leaf = params.signed_by(key, &self.signer()?)?.der().clone();
        Ok(std::iter::once(leaf).chain(self.above.iter().cloned()).collect())
    }

    fn identity(
        &self,
        id: &SpiffeId,
        params: &CertificateParams,
        key: &KeyPair,
    ) -> Result<Identity, IssueError> {
        let chain = self.chain(params, key)?;
        Ok(Identity {
            id: id.clone(),
            chain_pem: pem::encode(&chain),
            key_pem: key.serialize_pem(),
            chain,
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }

    /// A leaf changed by `alter`.
    #[cfg(test)]
    pub(crate) fn issue_altered(
        &self,
        id: &SpiffeId,
        alter: impl FnOnce(&mut CertificateParams),
    ) -> Identity {
        let own = SpiffeId::workload(&self.trust_domain, "altered", "altered").unwrap();
        let leaf = Leaf { id: own, dns: Vec::new(), ips: Vec::new(), lifetime: Duration::from_secs(3600) };
        let mut params = self.leaf(&leaf).unwrap();
        params.subject_alt_names = vec![uri(id).unwrap()];
        alter(&mut params);
        self.identity(id, &params, &KeyKind::P256.generate().unwrap()).unwrap()
    }

    /// An intermediate changed by `alter`.
    #[cfg(test)]
    pub(crate) fn intermediate_altered(&self, alter: impl FnOnce(&mut CertificateParams)) -> Self {
        let lifetime = Duration::from_secs(3600);
        let mut params = authority_params("altered", &self.trust_domain, None, 0, lifetime, None).unwrap();
        alter(&mut params);
        let key = KeyKind::P256.generate().unwrap();
        let certificate = params.signed_by(&key, &self.signer().unwrap()).unwrap().der().clone();
        let above = std::iter::once(&certificate).chain(&self.above).cloned().collect();
        Self::from_parts(self.trust_domain.clone(), certificate, above, params.not_after, key)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn authority_params(
    name: &str,
    trust_domain: &TrustDomain,
    cluster: Option<&str>,
    path_length: u8,
    lifetime: Duration,
    until: Option<OffsetDateTime>,
) -> Result<CertificateParams, IssueError> {
    let mut params = dated(lifetime, until)?;
    let short = |text: &str| text.chars().take(MAX_NAME).collect::<String>();
    // Two roots of one domain have different names: in a roll-over both are in every bundle.
    let mark = u32::from_be_bytes(
        *crypto::random().map_err(|_| IssueError::Random)?.first_chunk().unwrap_or(&[0; 4]),
    );
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, format!("{name} {mark:08x}"));
    subject.push(DnType::OrganizationName, short(trust_domain.as_str()));
    if let Some(cluster) = cluster {
        subject.push(DnType::LocalityName, short(cluster));
    }
    params.distinguished_name = subject;
    params.subject_alt_names = vec![uri(&trust_domain.id())?];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Parameters of a certificate from now on. The serial number is random: a key that is signed twice must give two
/// distinguishable certificates.
fn dated(lifetime: Duration, until: Option<OffsetDateTime>) -> Result<CertificateParams, IssueError> {
    let now = OffsetDateTime::now_utc();
    let latest = until.unwrap_or_else(|| now + ROOT_LIFETIME * 10);
    let not_after = time::Duration::try_from(lifetime)
        .ok()
        .filter(|span| span.whole_seconds() > 0)
        .and_then(|span| now.checked_add(span))
        .filter(|end| *end <= latest)
        .ok_or(IssueError::Lifetime { lifetime, until: latest })?;
    dated_until(not_after)
}

pub(crate) fn dated_until(not_after: OffsetDateTime) -> Result<CertificateParams, IssueError> {
    let mut serial = crypto::random().map_err(|_| IssueError::Random)?;
    // Positive, and of constant length.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::now_utc() - BACKDATE;
    params.not_after = not_after;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
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
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn authority() -> Authority {
        Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap()
    }

    fn workload(authority: &Authority) -> SpiffeId {
        SpiffeId::workload(authority.trust_domain(), "bookinfo", "reviews").unwrap()
    }

    #[test]
    fn authority_refuses_foreign_ids_bad_names_and_lifetimes() {
        let east = authority();
        let west = SpiffeId::parse("spiffe://west.example/ns/a/sa/b").unwrap();
        assert!(matches!(east.issue(&west, &[], HOUR), Err(IssueError::ForeignId { .. })));
        assert!(matches!(east.issue(&east.trust_domain().id(), &[], HOUR), Err(IssueError::NoPath(_))));
        let id = workload(&east);
        for name in ["", "a b", "*", "*.", "x\0y", "spiffe://x"] {
            assert!(matches!(east.issue(&id, &[name], HOUR), Err(IssueError::DnsName(_))), "{name:?}");
        }
        for span in [Duration::ZERO, HOUR * 24 * 3651, Duration::MAX] {
            assert!(matches!(east.issue(&id, &[], span), Err(IssueError::Lifetime { .. })), "{span:?}");
        }
        let below = east.intermediate("east", KeyKind::P256, HOUR).unwrap();
        assert!(matches!(below.intermediate("x", KeyKind::P256, HOUR), Err(IssueError::NotRoot(_))));
        assert!(matches!(below.issue(&id, &[], HOUR * 2), Err(IssueError::Lifetime { .. })));
    }

    #[test]
    fn authority_round_trips_through_pem() {
        let east = authority();
        let below = east.intermediate("east", KeyKind::Ed25519, HOUR).unwrap();
        let domain = || east.trust_domain().clone();
        let chain = pem::encode(below.above()) + &east.certificate_pem();
        let read = Authority::from_pem(domain(), &chain, below.key_pem().unwrap()).unwrap();
        assert_eq!(read.above(), below.above(), "the root is not sent");
        assert_eq!(read.issue(&workload(&east), &[], HOUR / 2).unwrap().chain().len(), 2);
        let refusal = |chain: &str, key: &str| Authority::from_pem(domain(), chain, key).unwrap_err();
        assert!(matches!(refusal(&chain, east.key_pem().unwrap()), Unusable::OtherKey));
        let leaf = east.issue(&workload(&east), &[], HOUR).unwrap();
        assert!(matches!(refusal(leaf.chain_pem(), leaf.key_pem()), Unusable::NotAuthority(_)));
        assert!(matches!(refusal("", leaf.key_pem()), Unusable::Chain(PemError::Absent { .. })));
        assert!(matches!(refusal(&chain, "no key"), Unusable::Key(PemError::Absent { .. })));
        let west = TrustDomain::new("west.example").unwrap();
        let other = Authority::from_pem(west, &chain, below.key_pem().unwrap());
        assert!(matches!(other, Err(Unusable::OtherDomain { .. })));
    }

    #[test]
    fn authority_signs_one_key_twice_with_different_serials() {
        let east = authority();
        let leaf = Leaf { id: workload(&east), dns: Vec::new(), ips: Vec::new(), lifetime: HOUR };
        let key = KeyKind::P256.generate().unwrap();
        let key = SubjectPublicKeyInfo::from_der(&key.subject_public_key_info()).unwrap();
        let serial = || Facts::read(&east.certify(&key, &leaf).unwrap()[0]).unwrap().serial;
        assert_ne!(serial(), serial());
    }
}
