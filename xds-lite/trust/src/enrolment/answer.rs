//! Checks an issuer's answer against the request: a chain for this key and identity that verifies under the
//! roots sent with it, or under the known ones. Pure but for the clock.

use isthmus_certs::facts::Facts;
use isthmus_certs::{
    Bundle, BundleError, Identity, IdentityError, KeyPin, Request, Role, SpiffeId, TrustBundles, VerifyError,
};
use tokio_rustls::rustls::pki_types::UnixTime;
use tonic::Response;

use crate::issuing::SEQUENCE;
use isthmus_proto::istio::v1::auth::IstioCertificateResponse;

/// A certificate with its key, and the roots of its domain.
#[derive(Debug)]
pub struct Granted {
    /// The certificate chain and key.
    pub identity: Identity,
    /// The roots of its trust domain.
    pub bundle: Bundle,
}

/// Why an answer is invalid.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// There is no chain, or its key is another one.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate has another identity.
    #[error("the certificate is for {found}, but {wanted} was requested")]
    Other {
        /// The identity in the certificate.
        found: SpiffeId,
        /// The requested identity.
        wanted: SpiffeId,
    },
    /// The answer has no roots.
    #[error("the answer has no root")]
    NoRoot,
    /// The answer lacks the root that the token names.
    #[error("no root in the answer has the token's key {0}")]
    Pin(KeyPin),
    /// The roots do not belong to this domain.
    #[error(transparent)]
    Root(#[from] BundleError),
    /// The chain does not verify.
    #[error(transparent)]
    Unbelieved(#[from] VerifyError),
}

impl Granted {
    /// Checks the answer to a request for `wanted` against the known bundle of its domain.
    pub(super) fn new(
        request: &Request,
        response: &Response<IstioCertificateResponse>,
        wanted: &SpiffeId,
        known: Option<&Bundle>,
    ) -> Result<Granted, AnswerError> {
        let issued = request.issued(&response.get_ref().cert_chain)?;
        let identity = issued.identity;
        if identity.id() != wanted {
            return Err(AnswerError::Other { found: identity.id().clone(), wanted: wanted.clone() });
        }
        if issued.roots.is_empty() {
            return Err(AnswerError::NoRoot);
        }
        let domain = wanted.trust_domain();
        let sequence = response.metadata().get(SEQUENCE).and_then(|text| text.to_str().ok()?.parse().ok());
        // An issuer without sequence numbers is as new as the known bundle.
        let sequence = sequence.or(known.map(|known| known.sequence)).unwrap_or_default();
        let bundle = match known {
            // An agent that lags behind does not take a newer root back.
            Some(known) if known.sequence > sequence => known.clone(),
            _ => Bundle::new(domain, sequence, &issued.roots)?,
        };
        let mut bundles = TrustBundles::new();
        bundles.insert(domain.clone(), bundle.clone());
        bundles.verify(identity.chain(), Role::Client, UnixTime::now())?;
        Ok(Granted { identity, bundle })
    }

    /// Checks an answer under known roots, with the identity that the issuer chose.
    pub(super) fn verified(
        request: &Request,
        response: &Response<IstioCertificateResponse>,
        bundles: &TrustBundles,
    ) -> Result<Granted, AnswerError> {
        let identity = request.issued(&response.get_ref().cert_chain)?.identity;
        bundles.verify(identity.chain(), Role::Client, UnixTime::now())?;
        let bundle = bundles.get(identity.id().trust_domain()).cloned().unwrap_or_default();
        Ok(Granted { identity, bundle })
    }

    /// Whether the bundle has the root that a token names.
    pub(super) fn has_root(&self, pin: KeyPin) -> Result<(), AnswerError> {
        let is_it = |facts: Facts| facts.pin == pin;
        let found = self.bundle.roots().iter().any(|root| Facts::read(root).is_ok_and(is_it));
        if found { Ok(()) } else { Err(AnswerError::Pin(pin)) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isthmus_certs::{Authority, Csr, KeyKind, Leaf, TrustDomain, pem};
    use tonic::metadata::MetadataValue;

    use super::*;

    const ID: &str = "spiffe://east.example/ns/db/sa/mysql";

    fn root() -> Authority {
        Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap()
    }

    /// The answer of `signer` to a request, with these roots.
    fn answer(
        request: &Request,
        signer: &Authority,
        id: &str,
        roots: &[&Authority],
        sequence: Option<u64>,
    ) -> Response<IstioCertificateResponse> {
        let csr = Csr::parse(request.to_pem().unwrap().as_bytes()).unwrap();
        let id = SpiffeId::parse(id).unwrap();
        let leaf = Leaf { id, dns: Vec::new(), ips: Vec::new(), lifetime: Duration::from_secs(60) };
        let chain = pem::encode(&signer.certify(csr.key(), &leaf).unwrap());
        let roots = roots.iter().map(|root| root.certificate_pem());
        let cert_chain = std::iter::once(chain).chain(roots).collect();
        let mut response = Response::new(IstioCertificateResponse { cert_chain });
        if let Some(sequence) = sequence {
            response.metadata_mut().insert(SEQUENCE, MetadataValue::from(sequence));
        }
        response
    }

    #[test]
    fn answer_other_than_requested_is_refused() {
        let (east, other) = (root(), root());
        let [request, stranger] = [(); 2].map(|()| Request::generate(KeyKind::P256).unwrap());
        let wanted = SpiffeId::parse(ID).unwrap();
        let granted = |response| Granted::new(&request, &response, &wanted, None);
        let good = granted(answer(&request, &east, ID, &[&east], Some(7))).unwrap();
        assert_eq!((good.identity.id(), good.bundle.sequence), (&wanted, 7));
        let pin = |root: &Authority| Facts::read(root.certificate()).unwrap().pin;
        assert!(good.has_root(pin(&east)).is_ok() && good.has_root(pin(&other)).is_err());
        for (what, response, why) in [
            (
                "another's",
                answer(&request, &east, &ID.replace("mysql", "root"), &[&east], None),
                "was requested",
            ),
            ("another key", answer(&stranger, &east, ID, &[&east], None), "the private key does not match"),
            ("no root", answer(&request, &east, ID, &[], None), "the answer has no root"),
            ("another root", answer(&request, &east, ID, &[&other], None), "does not verify"),
            ("nothing", Response::new(IstioCertificateResponse::default()), "no certificate"),
        ] {
            let error = granted(response).unwrap_err().to_string();
            assert!(error.contains(why), "{what}: {error}");
        }
    }

    #[test]
    fn answer_of_a_lagging_agent_takes_no_root_back() {
        let (old, new) = (root(), root());
        let request = Request::generate(KeyKind::P256).unwrap();
        let wanted = SpiffeId::parse(ID).unwrap();
        let both = [old.certificate().clone(), new.certificate().clone()];
        let known = Bundle::new(wanted.trust_domain(), 9, &both).unwrap();
        let granted = |roots: &[&Authority], sequence| {
            let response = answer(&request, &old, ID, roots, sequence);
            Granted::new(&request, &response, &wanted, Some(&known)).unwrap().bundle
        };
        assert_eq!(granted(&[&old], Some(8)), known);
        for (sequence, expected) in [(Some(10), 10), (None, 9)] {
            let bundle = granted(&[&old], sequence);
            assert_eq!((bundle.sequence, bundle.roots().len()), (expected, 1));
        }
    }
}
