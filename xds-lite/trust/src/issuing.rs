//! Issues certificates to gateways and workloads over Istio's certificate API. A caller is identified by its
//! certificate or by a token; a policy decides which certificate it may have, and an issuer signs. The
//! signing key never leaves the issuer.

mod intermediate;
mod pace;
mod tally;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_certs::causes::with_causes;
use isthmus_certs::{Csr, Issuer, Leaf, Policy, SpiffeId, pem};
use prost_types::value::Kind;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::{Request, Response, Status};

use crate::join::enrolment::{Admitted, Exported, PROOF, Refused, TokenAuthenticator};
use crate::stubs::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use isthmus_grpc::serve::{Caller, Slot};
use isthmus_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};

use pace::Pace;

pub use intermediate::{Intermediate, IntermediateCause, IntermediateError, IntermediateFiles};
pub use tally::Tally;

/// Size limit of a request: one key and few names.
const MAX_REQUEST: usize = 64 << 10;
/// The metadata key of a request for another identity than the caller's, as ztunnel uses it.
pub(crate) const IMPERSONATED: &str = "ImpersonatedIdentity";
/// The remedy for a gateway that may not have the certificate of another.
const NOT_LISTED: &str = "list it in `identities` of this gateway under `gateways:` of the agent";
/// The response metadata with the sequence number of the bundle that its roots are from.
pub const SEQUENCE: &str = "isthmus-bundle-sequence";

/// The certificate service: signs what its policy allows.
pub struct Certificates {
    issuer: Arc<dyn Issuer>,
    policy: Policy,
    lifetime: Duration,
    roots: Roots,
    authenticator: Option<Arc<TokenAuthenticator>>,
    names: Names,
    pace: Pace,
    tally: Arc<Tally>,
}

/// Returns the DNS names of the services whose clients a gateway serves with an identity's certificate.
pub type Names = Arc<dyn Fn(&SpiffeId) -> Vec<String> + Send + Sync>;

/// Returns the current roots of the agent's own trust domain.
pub type Roots = Arc<dyn Fn() -> Rooted + Send + Sync>;

/// Roots and their sequence number.
#[derive(Clone, Debug, Default)]
pub struct Rooted {
    /// Grows with each change.
    pub sequence: u64,
    /// One PEM text for each root.
    pub roots: Vec<String>,
}

impl Certificates {
    /// A service whose certificates live for `lifetime`, unless the request or the policy says otherwise (the
    /// policy can only shorten).
    #[must_use]
    pub fn new(issuer: Arc<dyn Issuer>, policy: Policy, lifetime: Duration, roots: Roots) -> Certificates {
        let names: Names = Arc::new(|_| Vec::new());
        let (pace, tally) = (Pace::default(), Arc::default());
        Certificates { issuer, policy, lifetime, roots, authenticator: None, names, pace, tally }
    }

    /// Writes these DNS names into certificates that a gateway requests for others.
    #[must_use]
    pub fn naming(self, names: Names) -> Certificates {
        Certificates { names, ..self }
    }

    /// Accepts tokens through `authenticator`, and counts results in `tally`.
    #[must_use]
    pub fn with(self, authenticator: Arc<TokenAuthenticator>, tally: Arc<Tally>) -> Certificates {
        Certificates { authenticator: Some(authenticator), tally, ..self }
    }

    /// The tonic service.
    #[must_use]
    pub fn service(self: Arc<Self>) -> IstioCertificateServiceServer<Certificates> {
        IstioCertificateServiceServer::from_arc(self).max_decoding_message_size(MAX_REQUEST)
    }

    async fn create(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let (known, session) = (request.extensions().get::<Caller>(), request.extensions().get::<Exported>());
        let (caller, admitted) = match (known, session) {
            (Some(Caller(id)), _) => (id.clone(), None),
            (None, Some(session)) => {
                let admitted = self.admit(session, request.metadata()).await?;
                // From here on the connection keeps its slot: a lost answer would be a lost token.
                request.extensions().get::<Slot>().iter().for_each(|slot| slot.protect());
                (admitted.identity.clone(), Some(admitted))
            }
            (None, None) => return Err(Status::unauthenticated("the caller is not authenticated")),
        };
        let chain = self.sign(&caller, &request.into_inner()).await.map_err(|status| match &admitted {
            // Whatever the error, the token is unchanged.
            Some(_) => Status::new(status.code(), format!("{}; the token is still valid", status.message())),
            None => status,
        })?;
        let Rooted { sequence, roots } = (self.roots)();
        let mut response =
            Response::new(IstioCertificateResponse { cert_chain: chain.into_iter().chain(roots).collect() });
        response.metadata_mut().insert(SEQUENCE, sequence.into());
        if let Some(admitted) = admitted {
            self.consume(&admitted).await?;
            let proof = AsciiMetadataValue::try_from(&admitted.proof);
            response.metadata_mut().insert(PROOF, proof.map_err(|_| Status::internal("invalid proof"))?);
        }
        Ok(response)
    }

    /// Authenticates the holder of a token.
    async fn admit(&self, session: &Exported, metadata: &MetadataMap) -> Result<Admitted, Status> {
        let authenticator = self
            .authenticator
            .as_ref()
            .ok_or_else(|| Status::unauthenticated("this agent does not accept tokens"))?;
        let bearer = metadata.get("authorization").and_then(|value| value.to_str().ok());
        let bearer = bearer.and_then(|value| value.strip_prefix("Bearer "));
        let bearer = bearer
            .ok_or_else(|| Status::unauthenticated("a token is required: `authorization: Bearer …`"))?;
        authenticator.admit(session, bearer).await.map_err(|refused| refusal_status(&refused))
    }

    /// Consumes the token, once the answer is complete.
    async fn consume(&self, admitted: &Admitted) -> Result<(), Status> {
        let authenticator = self
            .authenticator
            .as_ref()
            .ok_or_else(|| Status::unauthenticated("this agent does not accept tokens"))?;
        authenticator.consume(admitted).await.map_err(|refused| match refused {
            Refused::Token(_) | Refused::ToJoin => refusal_status(&refused),
            Refused::Store(_) | Refused::Thread(_) => {
                tracing::error!(token = admitted.token(), error = %refused, "cannot mark token as used");
                Status::internal(
                    "the token may be used up: the agent cannot record its use; see the agent's log",
                )
            }
        })?;
        tracing::info!(token = admitted.token(), identity = %admitted.identity, "token used for a first certificate");
        Ok(())
    }

    async fn sign(
        &self,
        caller: &SpiffeId,
        request: &IstioCertificateRequest,
    ) -> Result<Vec<String>, Status> {
        let wish = self.wish(caller, request)?;
        let wanted = wish.id.clone();
        if wanted != *caller && !self.pace.admits(caller, Instant::now()) {
            return Err(Status::resource_exhausted("too many certificates were requested for others; wait"));
        }
        let csr = Csr::parse(request.csr.as_bytes())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let leaf = self.policy.allow(caller, wish).map_err(|error| {
            tracing::warn!(peer = %caller, %wanted, "certificate request refused: no grant");
            Status::permission_denied(match wanted == *caller {
                true => error.to_string(),
                false => format!("{caller} may not have a certificate for {wanted}; {NOT_LISTED}"),
            })
        })?;
        let is_for_another = leaf.id != *caller;
        let leaf = if is_for_another { Leaf { dns: (self.names)(&leaf.id), ..leaf } } else { leaf };
        let chain = self.issuer.sign(&csr, &leaf).await.map_err(|error| {
            let error = with_causes(&error);
            tracing::warn!(peer = %caller, wanted = %leaf.id, %error, "certificate not signed");
            Status::failed_precondition(format!("the agent cannot sign: {error}"))
        })?;
        tracing::info!(peer = %caller, identity = %leaf.id, "certificate signed");
        Ok(pem::encode_each(&chain))
    }

    /// The requested leaf: the caller's own identity unless the request names another.
    fn wish(&self, caller: &SpiffeId, request: &IstioCertificateRequest) -> Result<Leaf, Status> {
        let named = request.metadata.as_ref().and_then(|metadata| metadata.fields.get(IMPERSONATED));
        let id = match named.and_then(|value| value.kind.as_ref()) {
            Some(Kind::StringValue(id)) => {
                SpiffeId::parse(id).map_err(|error| Status::invalid_argument(error.to_string()))?
            }
            Some(_) => return Err(Status::invalid_argument(format!("{IMPERSONATED} must be a string"))),
            None => caller.clone(),
        };
        let lifetime = match u64::try_from(request.validity_duration) {
            Ok(0) => self.lifetime,
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => {
                return Err(Status::invalid_argument("the lifetime of a certificate must be above zero"));
            }
        };
        Ok(Leaf { id, dns: Vec::new(), ips: Vec::new(), lifetime })
    }
}

/// The status for a refused token.
fn refusal_status(refused: &Refused) -> Status {
    match refused {
        Refused::Token(why) => Status::unauthenticated(why.to_string()),
        Refused::ToJoin => Status::unauthenticated(refused.to_string()),
        Refused::Store(_) | Refused::Thread(_) => {
            tracing::error!(error = %refused, "cannot verify token");
            Status::internal("internal error of the agent; the token is still valid; see the agent's log")
        }
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
        let outcome = self.create(request).await;
        self.tally.count(outcome.is_ok());
        outcome
    }
}
