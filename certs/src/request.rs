//! Requests a certificate from a remote issuer: a new key, the certificate request for it, and the answer. The key is
//! never sent. `bundle` verifies the answer.

use std::fmt;

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::CertificateDer;

use crate::facts::Facts;
use crate::identity::{Identity, IdentityError};
use crate::key::KeyKind;
use crate::pem;

/// A new key without a certificate. `Debug` does not show it.
pub struct Request {
    key: KeyPair,
}

/// The answer of an issuer.
#[derive(Debug)]
pub struct Issued {
    /// The certificate with its key.
    pub identity: Identity,
    /// The roots that came with it; trust them only if the issuer is trusted.
    pub roots: Vec<CertificateDer<'static>>,
}

impl Request {
    /// Generates a key.
    pub fn generate(kind: KeyKind) -> Result<Self, rcgen::Error> {
        Ok(Self { key: kind.generate()? })
    }

    /// The certificate request, PEM, without names: the issuer knows the requester.
    pub fn to_pem(&self) -> Result<String, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serialize_request(&self.key)?.pem()
    }

    /// Reads the answer: PEM texts, leaf first, roots (if any) last.
    ///
    /// # Errors
    /// The answer is not the chain of a SPIFFE identity, or not for this key.
    pub fn issued(&self, chain: &[String]) -> Result<Issued, IdentityError> {
        let text: String = chain.iter().map(|part| format!("{}\n", part.trim())).collect();
        let identity = Identity::from_pem(&text, self.key.serialize_pem())?;
        let all = pem::certificates(&text).map_err(IdentityError::Chain)?;
        let roots =
            all.into_iter().filter(|one| Facts::read(one).is_ok_and(|facts| facts.is_root())).collect();
        Ok(Issued { identity, roots })
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Request(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Authority, Csr, Leaf, SpiffeId, TrustDomain};

    #[test]
    fn request_accepts_an_answer_for_its_own_key_only() {
        let root = Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap();
        let hour = Duration::from_secs(3600);
        let below = root.intermediate("east", KeyKind::P256, hour).unwrap();
        let id = SpiffeId::workload(root.trust_domain(), "db", "mysql").unwrap();
        let leaf = Leaf { id: id.clone(), dns: Vec::new(), ips: Vec::new(), lifetime: hour / 2 };
        let [request, other] = [(); 2].map(|()| Request::generate(KeyKind::P256).unwrap());
        let csr = Csr::parse(request.to_pem().unwrap().as_bytes()).unwrap();
        let chain = below.certify(csr.key(), &leaf).unwrap();
        let mut answer = pem::encode_each(&chain);
        answer.push(root.certificate_pem());

        let issued = request.issued(&answer).unwrap();
        assert_eq!((issued.identity.id(), issued.identity.chain()), (&id, &chain[..]));
        assert_eq!(issued.roots, [root.certificate().clone()]);
        assert!(matches!(other.issued(&answer), Err(IdentityError::OtherKey)));
        answer.swap(0, 1);
        assert!(request.issued(&answer).is_err(), "an authority first");
        for nothing in [&[][..], &["x".to_owned()]] {
            assert!(request.issued(nothing).is_err());
        }
        assert_eq!(format!("{request:?}"), "Request(..)");
    }
}
