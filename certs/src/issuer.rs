//! Signs leaves for keys held elsewhere: a certificate request gives only its key, a policy decides which leaf the
//! requester may have, and an issuer signs it. The signing key may be in memory, in an HSM (`Authority::with_key`) or
//! at an external authority (another `Issuer`).

use std::fmt;
use std::future::{self, Future};
use std::pin::Pin;
use std::time::Duration;

use rcgen::SubjectPublicKeyInfo;
use rustls::pki_types::CertificateDer;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use crate::authority::{Authority, IssueError, Leaf};
use crate::pem::{self, Form, PemError};
use crate::spiffe::{IdPattern, SpiffeId};

const MIN_RSA_BITS: usize = 2048;

/// The key of a certificate request, whose holder has proven possession.
///
/// The names in the request are ignored: a certificate gets those that the policy grants.
#[derive(Debug, Clone)]
pub struct Csr {
    key: SubjectPublicKeyInfo,
}

/// Why a certificate request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// PEM without exactly one request.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// Neither PEM nor DER.
    #[error("the request cannot be read; it must be a PKCS#10 CERTIFICATE REQUEST, PEM or DER")]
    Malformed,
    /// The signature is not by the key in the request.
    #[error("the request is not signed by its own key; create it again with the key that it is for")]
    NotProven,
    /// A weak key or an unknown key type.
    #[error("the request's key is {0}; use P-256, P-384, Ed25519, or RSA of at least {MIN_RSA_BITS} bits")]
    Key(String),
}

impl Csr {
    /// Reads a request, PEM or DER, and verifies that it is signed by its own key.
    pub fn parse(bytes: &[u8]) -> Result<Self, CsrError> {
        let der = match pem::request(bytes) {
            Err(PemError::Form { form: Form::Der, .. }) => bytes.to_vec().into(),
            read => read?,
        };
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let info = &request.certification_request_info.subject_pki;
        if let Ok(PublicKey::RSA(rsa)) = info.parsed()
            && rsa.key_size() < MIN_RSA_BITS
        {
            return Err(CsrError::Key(format!("RSA of {} bits", rsa.key_size())));
        }
        let key = SubjectPublicKeyInfo::from_der(info.raw);
        let key = key.map_err(|_| CsrError::Key("of an unknown type".to_owned()))?;
        request.verify_signature().map_err(|_| CsrError::NotProven)?;
        Ok(Self { key })
    }

    /// The key to sign.
    pub fn key(&self) -> &SubjectPublicKeyInfo {
        &self.key
    }
}

/// Who may have which leaf, for how long. Everything without a grant is refused.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// The first matching grant applies.
    pub grants: Vec<Grant>,
}

/// One permission of a [`Policy`].
#[derive(Debug, Clone)]
pub struct Grant {
    /// The requester, as proven by its certificate or token.
    pub requester: IdPattern,
    /// The identity that may be requested.
    pub identity: Wanted,
    /// DNS names that the leaf may have: exact names, or `*.suffix` for every name below a suffix.
    pub dns: Vec<String>,
    /// The longest lifetime; longer requests are shortened to it.
    pub longest: Duration,
}

/// The identity that a grant covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The requester's own (renewal).
    Own,
    /// Another identity, such as those of gateways for their agent.
    Of(IdPattern),
}

/// No grant covers this leaf for this requester.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{requester} may not have a certificate for {wanted}; grant it in the policy of the issuer")]
pub struct NotGranted {
    requester: SpiffeId,
    wanted: SpiffeId,
}

impl Policy {
    /// Grants renewal of the requester's own identity, without DNS names.
    pub fn renewals(requester: IdPattern, longest: Duration) -> Self {
        Self { grants: vec![Grant { requester, identity: Wanted::Own, dns: Vec::new(), longest }] }
    }

    /// The leaf to sign: as requested, with the lifetime limited by the grant.
    pub fn allow(&self, requester: &SpiffeId, wish: Leaf) -> Result<Leaf, NotGranted> {
        match self.grants.iter().find(|grant| grant.covers(requester, &wish)) {
            Some(grant) => Ok(Leaf { lifetime: wish.lifetime.min(grant.longest), ..wish }),
            None => Err(NotGranted { requester: requester.clone(), wanted: wish.id }),
        }
    }
}

impl Grant {
    fn covers(&self, requester: &SpiffeId, wish: &Leaf) -> bool {
        let identity = match &self.identity {
            Wanted::Own => &wish.id == requester,
            Wanted::Of(pattern) => pattern.matches(&wish.id),
        };
        // Grants never cover IP addresses.
        let names = wish.ips.is_empty() && wish.dns.iter().all(|name| self.gives(name));
        self.requester.matches(requester) && identity && names
    }

    fn gives(&self, name: &str) -> bool {
        // Names below a suffix, split at a dot, never a wildcard.
        self.dns.iter().any(|granted| {
            match granted.strip_prefix('*').filter(|suffix| suffix.starts_with('.')) {
                Some(suffix) => {
                    name.strip_suffix(suffix).is_some_and(|rest| !rest.is_empty() && !rest.contains('*'))
                }
                None => granted == name,
            }
        })
    }
}

/// The future of a signature: the chain, leaf first.
pub type Signing<'a> =
    Pin<Box<dyn Future<Output = Result<Vec<CertificateDer<'static>>, IssueError>> + Send + 'a>>;

/// Signs leaves for keys that are held elsewhere.
pub trait Issuer: fmt::Debug + Send + Sync {
    /// Signs `leaf`, as allowed by a policy, for the key of `csr`. Returns the chain without the root.
    fn sign<'a>(&'a self, csr: &'a Csr, leaf: &'a Leaf) -> Signing<'a>;
}

impl Issuer for Authority {
    fn sign<'a>(&'a self, csr: &'a Csr, leaf: &'a Leaf) -> Signing<'a> {
        Box::pin(future::ready(self.certify(csr.key(), leaf)))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, PublicKeyData as _};

    use super::*;
    use crate::facts::Facts;
    use crate::key::KeyKind;
    use crate::spiffe::TrustDomain;

    const HOUR: Duration = Duration::from_secs(3600);

    fn request() -> (rcgen::KeyPair, String) {
        let key = KeyKind::P256.generate().unwrap();
        // Names that were not granted, two URI names among them.
        let mut params = CertificateParams::new(["admin.example".to_owned()]).unwrap();
        for uri in ["spiffe://east.example/ns/admin/sa/root", "spiffe://west.example/x"] {
            params.subject_alt_names.push(rcgen::SanType::URI(uri.try_into().unwrap()));
        }
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        (key, pem)
    }

    fn leaf(id: &str, dns: &[&str]) -> Leaf {
        Leaf {
            id: SpiffeId::parse(id).unwrap(),
            dns: dns.iter().map(|&name| name.to_owned()).collect(),
            ips: Vec::new(),
            lifetime: HOUR,
        }
    }

    #[test]
    fn csr_gives_its_key_and_no_name() {
        let (key, pem) = request();
        let authority = Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap();
        let wish = leaf("spiffe://east.example/ns/a/sa/b", &[]);
        let csr = Csr::parse(pem.as_bytes()).unwrap();
        let mut signing = std::pin::pin!(authority.sign(&csr, &wish));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let std::task::Poll::Ready(chain) = signing.as_mut().poll(&mut context) else { panic!("pending") };
        let facts = Facts::read(&chain.unwrap()[0]).unwrap();
        assert_eq!(facts.public_key, key.subject_public_key_info());
        assert_eq!((facts.uris, facts.dns), (vec![wish.id.to_string()], vec![]));
    }

    #[test]
    fn csr_must_be_signed_by_its_own_key() {
        let (_, text) = request();
        let der = pem::request(text.as_bytes()).unwrap();
        let mut bytes = der.to_vec();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        assert_eq!(Csr::parse(&bytes).unwrap_err(), CsrError::NotProven);
        assert!(matches!(Csr::parse(b"").unwrap_err(), CsrError::Pem(PemError::Absent { .. })));
        assert_eq!(Csr::parse(&[&der[..], b"x"].concat()).unwrap_err(), CsrError::Malformed);
        for end in 0..der.len() {
            assert!(Csr::parse(&der[..end]).is_err());
        }
    }

    #[test]
    fn policy_refuses_everything_without_a_grant() {
        let own = SpiffeId::parse("spiffe://east.example/ns/a/sa/b").unwrap();
        let policy = Policy {
            grants: vec![
                Grant {
                    requester: IdPattern::parse("spiffe://east.example/ns/a/*").unwrap(),
                    identity: Wanted::Own,
                    dns: vec!["*.a.example".to_owned(), "b.example".to_owned()],
                    longest: HOUR / 2,
                },
                Grant {
                    requester: IdPattern::parse("spiffe://east.example/isthmus/east/agent/a").unwrap(),
                    identity: Wanted::Of(
                        IdPattern::parse("spiffe://east.example/isthmus/east/gateway/*").unwrap(),
                    ),
                    dns: Vec::new(),
                    longest: HOUR,
                },
            ],
        };
        let given = policy.allow(&own, leaf(&own.to_string(), &["x.a.example", "b.example"])).unwrap();
        assert_eq!(given.lifetime, HOUR / 2, "shortened");
        for name in ["a.example", ".a.example", "*.a.example", "xa.example", "c.b.example"] {
            assert!(policy.allow(&own, leaf(&own.to_string(), &[name])).is_err(), "{name}");
        }
        assert!(policy.allow(&own, leaf("spiffe://east.example/ns/a/sa/c", &[])).is_err());
        let agent = SpiffeId::parse("spiffe://east.example/isthmus/east/agent/a").unwrap();
        assert!(policy.allow(&agent, leaf("spiffe://east.example/isthmus/east/gateway/g", &[])).is_ok());
        assert!(policy.allow(&agent, leaf("spiffe://east.example/isthmus/west/gateway/g", &[])).is_err());
        assert!(Policy::default().allow(&own, leaf(&own.to_string(), &[])).is_err());
    }
}
