//! Admits requests of authenticated clients: a request is charged to the budget of its sender and passed on, or refused
//! with the reason. A client that is not served gets the reason only.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use isthmus_certs::SpiffeId;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceExt as _;

use super::{Caller, IssuingService};
use crate::budget::{
    Account, Budgets, LARGEST_REPORT, LogLimiter, Principal, Resource, Share, longest_message, window,
};
use crate::metered::{Charge, Metered};
use isthmus_proto::measure::{DELTA_REQUEST, PLAIN, REPORT, Rules, SOTW_REQUEST};

const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Concurrent streams of one connection: a peer has one stream for each kind of discovery, and short calls.
const STREAMS: u64 = 32;
/// The largest message of requests other than discovery and reports.
const SHORT: u64 = 64 << 10;
/// Longest connection of a stranger, after its handshake.
const REFUSAL: Duration = Duration::from_secs(5);
/// Flow-control window of a stranger, whose requests are not read.
const UNKNOWN_WINDOW: u32 = 1 << 10;
const UNKNOWN_HEADERS: u32 = 4 << 10;

/// Maps an identity to the principal it is charged to; none for an identity that is not served.
pub type PrincipalOf = Arc<dyn Fn(&SpiffeId) -> Option<Principal> + Send + Sync>;

/// Who is served, and with which budget.
pub struct Admission {
    principal_of: PrincipalOf,
    pub(super) budgets: Arc<Budgets>,
    pub(super) issuing: Option<IssuingService>,
    log_limiter: LogLimiter,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").field("budgets", &self.budgets).finish_non_exhaustive()
    }
}

impl Admission {
    /// Serves known identities, with default budgets and without issuing.
    #[must_use]
    pub fn new(principal_of: PrincipalOf) -> Admission {
        Admission { principal_of, budgets: Arc::default(), issuing: None, log_limiter: LogLimiter::default() }
    }

    /// Sets the budgets, and issuing if configured.
    #[must_use]
    pub fn with(self, budgets: Arc<Budgets>, issuing: Option<IssuingService>) -> Admission {
        Admission { budgets, issuing, ..self }
    }

    pub(super) fn account(&self, id: &SpiffeId) -> Account {
        let renews = || self.issuing.as_ref().is_some_and(|issuing| (issuing.renews)(id));
        let principal = match (self.principal_of)(id) {
            Some(known) => known,
            None if renews() => Principal::Workload(id.clone()),
            None => Principal::Stranger(id.clone()),
        };
        self.budgets.account(principal)
    }

    /// Answers the first request of a stranger with the reason why it is not served, and closes the connection.
    pub(super) async fn refuse(&self, stream: TlsStream<TcpStream>, id: &SpiffeId) {
        let why = format!(
            "{id} is neither one of this cluster's gateways nor the agent of a peer; list it under `gateways:` or `peers:` of this agent"
        );
        if self.log_limiter.allows(1) {
            tracing::warn!(peer = %id, "refusing a client: it is neither a listed gateway nor the agent of a peer");
        }
        let answered = Notify::new();
        let service = service_fn(|_unread: Request<Incoming>| {
            answered.notify_one();
            let answer = Status::permission_denied(&*why).into_http::<Body>();
            async { Ok::<_, Infallible>(answer) }
        });
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .max_concurrent_streams(1)
            .initial_stream_window_size(UNKNOWN_WINDOW)
            .max_header_list_size(UNKNOWN_HEADERS);
        let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
        let refusal = async {
            tokio::select! {
                ended = &mut connection => return ended,
                () = answered.notified() => {}
            }
            connection.as_mut().graceful_shutdown();
            connection.await
        };
        if let Ok(Err(error)) = timeout(REFUSAL, refusal).await {
            tracing::debug!(peer = %id, %error, "connection of a stranger ended with an error");
        }
    }
}

/// The HTTP/2 settings of a connection.
pub(super) fn connection(account: &Account) -> http2::Builder<TokioExecutor> {
    let (kind, limits) = (account.principal().kind(), account.limits());
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .initial_stream_window_size(window(kind))
        .initial_connection_window_size(window(kind))
        .max_concurrent_streams(u32::try_from(limits.streams.min(STREAMS)).unwrap_or(u32::MAX));
    http
}

/// Answers a request if the budget of its sender allows it.
pub(super) async fn answer(
    routes: Routes,
    request: Request<Incoming>,
    caller: Caller,
    account: Account,
) -> Result<Response<Body>, Infallible> {
    let (request, stream) = match admit(request, caller, account) {
        Ok(admitted) => admitted,
        Err(status) => return Ok(status.into_http()),
    };
    let response = routes.oneshot(request).await?;
    // A response that the client has not yet read counts as well.
    let counted = move |frame| {
        let _stream = &stream;
        frame
    };
    Ok(response.map(|body| Body::new(body.map_frame(counted))))
}

type Admitted = (Request<Metered<Incoming>>, Arc<Share>);

fn admit(mut request: Request<Incoming>, caller: Caller, account: Account) -> Result<Admitted, Status> {
    let stream = Arc::new(account.reserve(Resource::Streams, 1)?);
    let charge = Charge { bytes: account.reserve(Resource::RequestBytes, 0)?, _stream: Arc::clone(&stream) };
    let longest = longest_message(account.principal().kind());
    let (shape, longest) = match request.uri().path().rsplit('/').next() {
        Some("DeltaAggregatedResources") => (&DELTA_REQUEST, longest),
        Some("StreamAggregatedResources") => (&SOTW_REQUEST, longest),
        Some("Report") => (&REPORT, longest.min(LARGEST_REPORT)),
        _ => (&PLAIN, longest.min(SHORT)),
    };
    // No message but discovery's is large once decoded.
    let most = if longest > LARGEST_REPORT { u64::MAX } else { LARGEST_REPORT * 4 };
    let rules = Rules { shape, longest, most: account.limits().request_bytes.min(most) };
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(account);
    Ok((request.map(|body| Metered::new(body, rules, Some(charge))), stream))
}
