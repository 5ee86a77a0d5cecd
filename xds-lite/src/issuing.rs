//! Certificates for gateways and workloads over Istio's certificate API: who asks is known from the certificate
//! it has, a policy says what it may have next, and an issuer signs. The signing key never leaves the issuer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use isthmus_certs::{Csr, Issuer, Leaf, Policy, SpiffeId, pem};
use prost_types::value::Kind;
use tonic::{Request, Response, Status};

use crate::proto::istio::v1::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use crate::proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use crate::serve::Asker;

/// Unless the request says how long.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// A request has one key and few names.
const MAX_REQUEST: usize = 64 << 10;
/// The key in a request's metadata under which somebody asks for another's identity, as ztunnel does.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// Signs what its policy allows.
pub struct Certificates {
    issuer: Arc<dyn Issuer>,
    policy: Policy,
    roots: Roots,
}

/// The own domain's roots as they are now, PEM.
pub type Roots = Box<dyn Fn() -> Vec<String> + Send + Sync>;

impl Certificates {
    /// As a server takes it.
    pub fn service(
        issuer: Arc<dyn Issuer>,
        policy: Policy,
        roots: Roots,
    ) -> IstioCertificateServiceServer<Certificates> {
        IstioCertificateServiceServer::new(Certificates { issuer, policy, roots })
            .max_decoding_message_size(MAX_REQUEST)
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("policy", &self.policy).finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let asker = request.extensions().get::<Asker>().cloned();
        let Asker(asker) = asker.ok_or_else(|| Status::unauthenticated("who asks is not known"))?;
        let request = request.into_inner();
        let csr = Csr::parse(request.csr.as_bytes())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let leaf = self
            .policy
            .allow(&asker, wish(&asker, &request)?)
            .map_err(|error| Status::permission_denied(error.to_string()))?;
        let chain = self.issuer.sign(&csr, &leaf).await.map_err(|error| {
            tracing::warn!(peer = %asker, wanted = %leaf.id, %error, "a certificate was not signed");
            Status::failed_precondition(error.to_string())
        })?;
        tracing::info!(peer = %asker, identity = %leaf.id, "signed a certificate");
        let chain = chain.iter().map(|certificate| pem::encode(std::slice::from_ref(certificate)));
        Ok(Response::new(IstioCertificateResponse { cert_chain: chain.chain((self.roots)()).collect() }))
    }
}

/// The asker's own identity, unless it says another.
fn wish(asker: &SpiffeId, request: &IstioCertificateRequest) -> Result<Leaf, Status> {
    let named = request.metadata.as_ref().and_then(|metadata| metadata.fields.get(IMPERSONATED));
    let id = match named.and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(id)) => {
            SpiffeId::parse(id).map_err(|error| Status::invalid_argument(error.to_string()))?
        }
        Some(_) => return Err(Status::invalid_argument(format!("{IMPERSONATED} is a text"))),
        None => asker.clone(),
    };
    let lifetime = match u64::try_from(request.validity_duration) {
        Ok(0) => LIFETIME,
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => return Err(Status::invalid_argument("a certificate's life is above zero")),
    };
    Ok(Leaf { id, dns: Vec::new(), ips: Vec::new(), lifetime })
}
