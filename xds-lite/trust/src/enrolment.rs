//! Certificates from an agent, the side that gets them: the first by a token, the next by the one before, written to a
//! directory once they are seen to be good; or from a foreign control plane, by a token that is replaced. Not who may
//! have one: the agent decides that (`issuing`).

mod answer;
pub mod cli;
mod control_plane;
mod folder;
mod keep;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use isthmus_certs::causes::with_causes;
use isthmus_certs::{Bundle, Client, KeyKind, Request, SpiffeId};
use tokio::time::timeout;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Extensions, Status};
use tower::service_fn;

use crate::join::enrolment::{Meeting, PROOF, meet};
use crate::join::{Guest, MeetError, Token};
use crate::stubs::istio_certificate_service_client::IstioCertificateServiceClient;
use isthmus_grpc::dial::dial;
use isthmus_model::address::Target;
use isthmus_proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};

pub use answer::{AnswerError, Granted};
pub use control_plane::{ControlPlane, Known, token};
pub use folder::{Folder, FolderError, Origin, Standing};
pub use keep::{Keeper, KeeperError, Renewal, first, first_of};

/// From the first packet to the answer.
const DEADLINE: Duration = Duration::from_secs(15);
/// A chain and some roots are far less.
const MAX_ANSWER: usize = 1 << 20;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Another kind of token.
    #[error("{}, and not for a first certificate; make one with `isthmus-agent token create --gateway NAME` or `--workload SPIFFE-ID`", .0.purpose())]
    ToJoin(Box<Guest>),
    /// The agent there does not take tokens.
    #[error(
        "the agent at {0} gives nobody a certificate; add `issuing:` to its file, and use the same release on both sides"
    )]
    NotIssuing(Target),
    /// Nobody is there, or somebody else than made the token.
    #[error("the agent at {at}: {cause}; the token is not used up")]
    Meet {
        /// Where.
        at: Target,
        /// What is wrong.
        cause: Box<MeetError>,
    },
    /// Nobody is there, or somebody else than an agent of the own cluster.
    #[error("the agent at {at}: {why}")]
    Dial {
        /// Where.
        at: Target,
        /// What is wrong.
        why: String,
    },
    /// It says no.
    #[error("the agent at {at} refuses: {}", plain(.status))]
    Refused {
        /// Where.
        at: Target,
        /// Its words.
        status: Box<Status>,
    },
    /// The connection broke while it was asked.
    #[error("the agent at {at} gave no answer: {why}")]
    Broken {
        /// Where.
        at: Target,
        /// What happened.
        why: String,
    },
    /// It does not know the token's secret.
    #[error(
        "who answers at {0} does not know the token's secret: it is not who made the token; nothing was kept"
    )]
    Unproven(Target),
    /// What it answers is of no use.
    #[error("the answer of {at}: {cause}")]
    Answer {
        /// Where.
        at: Target,
        /// What is wrong with it.
        cause: Box<AnswerError>,
    },
    /// Something here is not as it must be.
    #[error("{0}")]
    Setup(String),
    /// There is no key.
    #[error("no key can be made: {0}")]
    Key(String),
    /// It cannot be kept.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

impl EnrolError {
    /// Whether it is of no use to try again.
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

/// The other side's words, without what a terminal or log might take for its own.
fn plain(status: &Status) -> String {
    const LONGEST: usize = 512;
    let text = status.message().chars().take(LONGEST);
    text.map(|one| if one.is_control() { '\u{fffd}' } else { one }).collect()
}

/// Asks with a token. Nothing secret is sent but to who made it, and what is sent is of no use to anybody else.
///
/// # Errors
/// Why there is no certificate.
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
        let (request, response) = ask(at, channel, metadata).await?;
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

/// Asks with the certificate before, which `tls` shows, for another of `own`.
///
/// # Errors
/// Why there is no certificate.
pub async fn by_certificate(
    at: &Target,
    tls: &Arc<Client>,
    own: &SpiffeId,
    known: Option<&Bundle>,
) -> Result<Granted, EnrolError> {
    let asked = timeout(DEADLINE, async {
        let channel = dial(at, tls)
            .await
            .map_err(|error| EnrolError::Dial { at: at.clone(), why: with_causes(&error) })?;
        let (request, response) = ask(at, channel, MetadataMap::new()).await?;
        Granted::new(&request, &response, own, known)
            .map_err(|cause| EnrolError::Answer { at: at.clone(), cause: Box::new(cause) })
    });
    asked.await.map_err(|_| EnrolError::Broken { at: at.clone(), why: too_slow() })?
}

/// Makes a key, and asks for its certificate. The issuer says how long that lives.
async fn ask(
    at: &Target,
    channel: Channel,
    metadata: MetadataMap,
) -> Result<(Request, tonic::Response<IstioCertificateResponse>), EnrolError> {
    let key = Request::generate(KeyKind::P256).map_err(|error| EnrolError::Key(error.to_string()))?;
    let csr = key.to_pem().map_err(|error| EnrolError::Key(error.to_string()))?;
    let message = IstioCertificateRequest { csr, validity_duration: 0, metadata: None };
    let request = tonic::Request::from_parts(metadata, Extensions::default(), message);
    let mut client = IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
    let answered = client.create_certificate(request).await;
    let response = answered.map_err(|status| match std::error::Error::source(&status) {
        // It never came to an answer.
        Some(cause) => broken(at, cause),
        None => EnrolError::Refused { at: at.clone(), status: Box::new(status) },
    })?;
    Ok((key, response))
}

fn too_slow() -> String {
    format!("it took longer than {DEADLINE:?}")
}

fn broken(at: &Target, error: &dyn std::error::Error) -> EnrolError {
    EnrolError::Broken { at: at.clone(), why: with_causes(error) }
}
