//! What becomes of a request of somebody who has proven who it is: it is counted against its sender's budget and
//! passed on, or refused with the reason. Who is not served gets the reason alone. Not how connections come.

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
use crate::budget::{Account, Budgets, LogLimiter, Principal, Resource, Share, longest_message, window};
use crate::metered::{Charge, Metered};
use isthmus_proto::measure::{DELTA_REQUEST, PLAIN, Rules, SOTW_REQUEST};

const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Of one connection at once: a peer has one stream a kind of discovery, and short calls.
const STREAMS: u64 = 32;
/// Requests other than those of discovery.
const SHORT: u64 = 64 << 10;
/// From the end of a stranger's handshake to the end of its connection.
const REFUSAL: Duration = Duration::from_secs(5);
/// What a stranger may send of a request: nothing of it is read.
const UNKNOWN_WINDOW: u32 = 1 << 10;
const UNKNOWN_HEADERS: u32 = 4 << 10;

/// Who is served here, and whose budget that counts against.
pub type PrincipalOf = Arc<dyn Fn(&SpiffeId) -> Option<Principal> + Send + Sync>;

/// Who may come in, and what each may take.
pub struct Admission {
    knows: PrincipalOf,
    pub(super) budgets: Arc<Budgets>,
    pub(super) issuing: Option<IssuingService>,
    told: LogLimiter,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").field("budgets", &self.budgets).finish_non_exhaustive()
    }
}

impl Admission {
    /// For those who are known alone.
    #[must_use]
    pub fn new(knows: PrincipalOf) -> Admission {
        Admission { knows, budgets: Arc::default(), issuing: None, told: LogLimiter::default() }
    }

    /// The same with what everybody has, and those who come for a certificate, if there are any.
    #[must_use]
    pub fn with(self, budgets: Arc<Budgets>, issuing: Option<IssuingService>) -> Admission {
        Admission { budgets, issuing, ..self }
    }

    pub(super) fn account(&self, id: &SpiffeId) -> Account {
        let renews = || self.issuing.as_ref().is_some_and(|issuing| (issuing.renews)(id));
        let principal = match (self.knows)(id) {
            Some(known) => known,
            None if renews() => Principal::Workload(id.clone()),
            None => Principal::Stranger(id.clone()),
        };
        self.budgets.account(principal)
    }

    /// Says to a stranger why it is not served, once, and hangs up.
    pub(super) async fn refuse(&self, stream: TlsStream<TcpStream>, id: &SpiffeId) {
        let why = format!(
            "{id} is neither one of this cluster's gateways nor the agent of a peer; list it under `gateways:` or `peers:` of this agent"
        );
        if self.told.allows(1) {
            tracing::warn!(peer = %id, "refused: it is neither a listed gateway nor the agent of a peer");
        }
        let told = Notify::new();
        let service = service_fn(|_unread: Request<Incoming>| {
            told.notify_one();
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
                () = told.notified() => {}
            }
            connection.as_mut().graceful_shutdown();
            connection.await
        };
        if let Ok(Err(error)) = timeout(REFUSAL, refusal).await {
            tracing::debug!(peer = %id, %error, "a stranger's connection ended");
        }
    }
}

/// How much somebody may send before it is read.
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

/// Answers a request, if its sender's budget allows for it.
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
    // What was answered and not fetched yet counts, too.
    let counted = move |frame| {
        let _stream = &stream;
        frame
    };
    Ok(response.map(|body| Body::new(body.map_frame(counted))))
}

type Admitted = (Request<Metered<Incoming>>, Arc<Share>);

fn admit(mut request: Request<Incoming>, caller: Caller, account: Account) -> Result<Admitted, Status> {
    let stream = Arc::new(account.take(Resource::Streams, 1)?);
    let charge = Charge { bytes: account.take(Resource::RequestBytes, 0)?, _stream: Arc::clone(&stream) };
    let longest = longest_message(account.principal().kind());
    let (shape, longest) = match request.uri().path().rsplit('/').next() {
        Some("DeltaAggregatedResources") => (&DELTA_REQUEST, longest),
        Some("StreamAggregatedResources") => (&SOTW_REQUEST, longest),
        _ => (&PLAIN, longest.min(SHORT)),
    };
    let rules = Rules { shape, longest, most: account.limits().request_bytes };
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(account);
    Ok((request.map(|body| Metered::new(body, rules, Some(charge))), stream))
}
