//! Requests certificates from an agent: the first with a token, later ones with the previous certificate; or
//! from another control plane with a token file. Writes each to a directory after verifying it. The policy is
//! on the agent's side (`issuing`).

mod answer;
pub mod cli;
mod control_plane;
mod folder;
mod keep;
mod workloads;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use isthmus_certs::causes::with_causes;
use isthmus_certs::printable::excerpt;
use isthmus_certs::{Bundle, Client, KeyKind, Request, SpiffeId};
use tokio::time::timeout;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Extensions, Status};
use tower::service_fn;

use crate::issuing::IMPERSONATED;
use crate::join::enrolment::{Meeting, PROOF, meet};
use crate::join::{Guest, MeetError, Token};
use crate::stubs::istio_certificate_service_client::IstioCertificateServiceClient;
use isthmus_grpc::dial::dial;
use isthmus_model::address::Target;
use isthmus_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use prost_types::value::Kind;
use prost_types::{Struct, Value};

pub use answer::{AnswerError, Granted};
pub use control_plane::{ControlPlane, Known, token};
pub use folder::{Folder, FolderError, Origin, Standing};
pub use keep::{Backoff, Keeper, KeeperError, Renewal, first, first_of};
pub use workloads::{NotIssued, Workloads};

/// From the first packet to the answer.
const DEADLINE: Duration = Duration::from_secs(15);
/// Size limit of an answer: a chain and some roots are far less.
const MAX_ANSWER: usize = 1 << 20;
/// Longest refusal in characters: it repeats what the agent has sent.
const LONGEST_WHY: usize = 512;

/// Why no certificate was obtained.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The token is for something else.
    #[error("{}, not for a first certificate; make one with `isthmus-agent token create --gateway NAME` or `--workload SPIFFE-ID`", .0.purpose())]
    ToJoin(Box<Guest>),
    /// The agent does not issue certificates.
    #[error(
        "the agent at {0} does not issue certificates; add `issuing:` to its configuration, and use the same release on both sides"
    )]
    NotIssuing(Target),
    /// The agent is unreachable, or is not the one that made the token.
    #[error("cannot connect to the agent at {at}: {cause}; the token is still valid")]
    Meet {
        /// The address of the agent.
        at: Target,
        /// The error of the connection.
        cause: Box<MeetError>,
    },
    /// The agent is unreachable, or does not belong to this cluster.
    #[error("cannot connect to the agent at {at}: {why}")]
    Dial {
        /// The address of the agent.
        at: Target,
        /// The error of the connection.
        why: String,
    },
    /// The agent refused the request.
    #[error("the agent at {at} refused the request: {}", excerpt(.status.message(), LONGEST_WHY))]
    Refused {
        /// The address of the agent.
        at: Target,
        /// Its answer.
        status: Box<Status>,
    },
    /// The connection failed during the request.
    #[error("no answer from the agent at {at}: {why}")]
    Broken {
        /// The address of the agent.
        at: Target,
        /// The error of the connection.
        why: String,
    },
    /// The agent did not prove the token's secret.
    #[error(
        "the server at {0} did not prove the token's secret, so it is not the agent that made the token; nothing was stored"
    )]
    Unproven(Target),
    /// The answer is invalid.
    #[error("invalid answer from {at}: {cause}")]
    Answer {
        /// The address of the agent.
        at: Target,
        /// The error in the answer.
        cause: Box<AnswerError>,
    },
    /// The local configuration is invalid.
    #[error("{0}")]
    Setup(String),
    /// Key generation failed.
    #[error("cannot generate a key: {0}")]
    Key(String),
    /// The certificate cannot be stored.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

impl EnrolError {
    /// Whether a retry is pointless.
    #[must_use]
    pub fn is_final(&self) -> bool {
        match self {
            EnrolError::ToJoin(_) => true,
            EnrolError::Refused { status, .. } => {
                matches!(
                    status.code(),
                    Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument
                )
            }
            _ => false,
        }
    }
}

/// Requests the first certificate with a token. Only the agent that made the token receives the proof, and
/// the proof is useless on any other connection.
///
/// # Errors
/// Why no certificate was obtained.
pub async fn by_token(token: &Token) -> Result<Granted, EnrolError> {
    let Guest::Identity { identity } = &token.guest else {
        return Err(EnrolError::ToJoin(Box::new(token.guest.clone())));
    };
    let at = &token.address;
    let silent = || EnrolError::Broken { at: at.clone(), why: too_slow() };
    timeout(DEADLINE, async {
        let Meeting { stream, bearer, answer } = meet(token).await.map_err(|cause| match cause {
            MeetError::Protocol => EnrolError::NotIssuing(at.clone()),
            cause => EnrolError::Meet { at: at.clone(), cause: Box::new(cause) },
        })?;
        let mut once = Some(stream);
        let connect = service_fn(move |_| {
            let stream = once.take().map(TokioIo::new);
            async move { stream.ok_or_else(|| io::Error::other("the connection is over")) }
        });
        let channel = Endpoint::from_static("http://agent.isthmus").connect_with_connector(connect).await;
        let channel = channel.map_err(|error| broken(at, &error))?;
        let bearer = AsciiMetadataValue::try_from(format!("Bearer {bearer}"));
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", bearer.map_err(|error| EnrolError::Key(error.to_string()))?);
        let (request, response) = ask(at, channel, metadata, None).await?;
        let proof = response.metadata().get(PROOF).and_then(|proof| proof.to_str().ok());
        if !proof.is_some_and(|proof| answer.is_proven(proof)) {
            return Err(EnrolError::Unproven(at.clone()));
        }
        let wrong = |cause| EnrolError::Answer { at: at.clone(), cause: Box::new(cause) };
        let granted = Granted::new(&request, &response, identity, None).map_err(wrong)?;
        granted.has_root(token.root).map_err(wrong)?;
        Ok(granted)
    })
    .await
    .map_err(|_| silent())?
}

/// Requests the next certificate for `own`; `tls` presents the previous one.
///
/// # Errors
/// Why no certificate was obtained.
pub async fn by_certificate(
    at: &Target,
    tls: &Arc<Client>,
    own: &SpiffeId,
    known: Option<&Bundle>,
) -> Result<Granted, EnrolError> {
    over_tls(at, tls, (own, None), known).await
}

/// Requests a certificate for another identity, which the agent must have granted to the one that `tls` presents.
async fn for_another(
    at: &Target,
    tls: &Arc<Client>,
    wanted: &SpiffeId,
    known: Option<&Bundle>,
) -> Result<Granted, EnrolError> {
    over_tls(at, tls, (wanted, Some(wanted)), known).await
}

async fn over_tls(
    at: &Target,
    tls: &Arc<Client>,
    (wanted, impersonated): (&SpiffeId, Option<&SpiffeId>),
    known: Option<&Bundle>,
) -> Result<Granted, EnrolError> {
    let asked = timeout(DEADLINE, async {
        let channel = dial(at, tls)
            .await
            .map_err(|error| EnrolError::Dial { at: at.clone(), why: with_causes(&error) })?;
        let (request, response) = ask(at, channel, MetadataMap::new(), impersonated).await?;
        Granted::new(&request, &response, wanted, known)
            .map_err(|cause| EnrolError::Answer { at: at.clone(), cause: Box::new(cause) })
    });
    asked.await.map_err(|_| EnrolError::Broken { at: at.clone(), why: too_slow() })?
}

/// Generates a key and requests its certificate, for the requester itself unless another identity is named. The issuer
/// sets the lifetime.
async fn ask(
    at: &Target,
    channel: Channel,
    metadata: MetadataMap,
    impersonated: Option<&SpiffeId>,
) -> Result<(Request, tonic::Response<IstioCertificateResponse>), EnrolError> {
    let key = Request::generate(KeyKind::P256).map_err(|error| EnrolError::Key(error.to_string()))?;
    let csr = key.to_pem().map_err(|error| EnrolError::Key(error.to_string()))?;
    let message =
        IstioCertificateRequest { csr, validity_duration: 0, metadata: impersonated.map(impersonating) };
    let request = tonic::Request::from_parts(metadata, Extensions::default(), message);
    let mut client = IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let answered = client.create_certificate(request).await;
    let response = answered.map_err(|status| match std::error::Error::source(&status) {
        // The connection failed before an answer.
        Some(cause) => broken(at, cause),
        None => EnrolError::Refused { at: at.clone(), status: Box::new(status) },
    })?;
    Ok((key, response))
}

fn impersonating(wanted: &SpiffeId) -> Struct {
    let id = Value { kind: Some(Kind::StringValue(wanted.to_string())) };
    Struct { fields: [(IMPERSONATED.to_owned(), id)].into() }
}

fn too_slow() -> String {
    format!("no answer within {DEADLINE:?}")
}

fn broken(at: &Target, error: &dyn std::error::Error) -> EnrolError {
    EnrolError::Broken { at: at.clone(), why: with_causes(error) }
}
