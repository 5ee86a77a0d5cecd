//! Routes admin requests to pages. GET changes nothing; errors are `{"error": "…"}`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Request, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use isthmus_certs::SpiffeId;
use isthmus_http::page::{self, Page, error, json_page, not_allowed, plain};
use isthmus_http::{guard, shared::Shared};
use isthmus_model::admin::Index;
use isthmus_model::admin::agent::{GET, POST, schema};
use isthmus_registry::registered::registrar::Registrar;
use isthmus_registry::registered::registration::LARGEST;

use super::{Asker, ExplainQuestion, Pages, Refusal};

/// Pages rendered at once: each may hold a lock that the agent needs.
const AT_ONCE: usize = 2;

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Caller {
    /// The admin address, unauthenticated.
    At(SocketAddr),
    /// A local process of this user ID, by the Unix socket.
    User(u32),
}

/// Answers admin requests.
pub(super) struct AdminService {
    pages: Arc<dyn Pages>,
    /// Longest time from the headers to the end of the body.
    body: Duration,
    metrics: Shared,
    making: Arc<Semaphore>,
}

impl AdminService {
    pub(super) fn new(pages: Arc<dyn Pages>, body: Duration) -> AdminService {
        let counted = Arc::clone(&pages);
        let metrics = Shared::new(move || counted.metrics());
        AdminService { pages, body, metrics, making: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    pub(super) async fn answer(&self, request: Request<Incoming>, asker: Caller) -> Page {
        if let Caller::At(own) = asker
            && let Some(why) = guard::refusal(&request, own)
        {
            return error(StatusCode::FORBIDDEN, why);
        }
        let path = request.uri().path();
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        if GET.contains(&path) {
            let query = request.uri().query().unwrap_or_default();
            return if reads { self.show(path, query).await } else { not_allowed("GET, HEAD") };
        }
        if !POST.contains(&path) {
            return json_page(StatusCode::NOT_FOUND, &Index::new(&GET, &POST));
        }
        if request.method() != Method::POST {
            return not_allowed("POST");
        }
        let path = path.to_owned();
        let token = bearer(&request).map(str::to_owned);
        match timeout(self.body, page::read(request.into_body(), LARGEST)).await {
            Ok(Ok(body)) if path == "/register" => {
                self.make(move |pages| register(pages, asker, token.as_deref(), &body)).await
            }
            Ok(Ok(body)) => self.make(move |pages| accept(pages, &path, &body)).await,
            Ok(Err(broken)) => error(broken.status(), &broken.to_string()),
            Err(_) => error(StatusCode::REQUEST_TIMEOUT, "timed out waiting for the request body"),
        }
    }

    async fn show(&self, path: &str, query: &str) -> Page {
        match path {
            "/status" => self.make(|pages| json_page(StatusCode::OK, &pages.status())).await,
            "/explain" => match question(query) {
                Ok(question) => self.make(move |pages| explain(pages, &question)).await,
                Err(why) => error(StatusCode::BAD_REQUEST, &why),
            },
            "/matrix" => self.make(|pages| json_page(StatusCode::OK, &pages.matrix())).await,
            "/schema" => json_page(StatusCode::OK, &schema()),
            "/metrics" => page::metrics(self.metrics.text().await),
            "/healthz/ready" if !self.pages.ready() => plain(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            "/healthz/ready" => plain(StatusCode::OK, "ready\n"),
            _ => plain(StatusCode::OK, "live\n"),
        }
    }

    /// Renders a page on a thread that may wait for a lock, few at once.
    async fn make(&self, make: impl FnOnce(&dyn Pages) -> Page + Send + 'static) -> Page {
        let permit = Arc::clone(&self.making).acquire_owned().await;
        let pages = Arc::clone(&self.pages);
        let made = spawn_blocking(move || {
            // Held by the task: a client that disconnects meanwhile does not admit another one.
            let _permit = permit;
            make(&*pages)
        });
        made.await.unwrap_or_else(|_| {
            error(
                StatusCode::INTERNAL_SERVER_ERROR,
                "rendering this page panicked; this is a bug, please report it",
            )
        })
    }
}

fn explain(pages: &dyn Pages, question: &ExplainQuestion) -> Page {
    match pages.explain(question) {
        Ok(page) => json_page(StatusCode::OK, &page),
        Err(why) => error(StatusCode::BAD_REQUEST, &why),
    }
}

/// The bearer token of a request that has exactly one `Authorization` header.
fn bearer<B>(request: &Request<B>) -> Option<&str> {
    let mut headers = request.headers().get_all(AUTHORIZATION).into_iter();
    let (header, None) = (headers.next()?, headers.next()) else { return None };
    let (scheme, token) = header.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Registering needs a proof: a registered VM receives other clients' connections.
fn register(pages: &dyn Pages, asker: Caller, token: Option<&str>, body: &[u8]) -> Page {
    let by = match asker {
        Caller::User(user) => Some(Registrar::User(user)),
        Caller::At(_) => token.and_then(|token| pages.holder(token)),
    };
    let Some(by) = by else {
        let why = "registering needs a proof: use the agent's Unix socket (isthmus-agent register does, on the agent's \
                   machine), or send a token of `registration.tokens` as Authorization: Bearer TOKEN";
        let mut page = error(StatusCode::UNAUTHORIZED, why);
        page.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return page;
    };
    answered(pages.register(body, &by))
}

/// Heartbeat or deregistration: the lease in the body is proof enough.
fn accept(pages: &dyn Pages, path: &str, body: &[u8]) -> Page {
    if path == "/heartbeat" { answered(pages.heartbeat(body)) } else { answered(pages.deregister(body)) }
}

fn answered(taken: Result<impl Serialize, Refusal>) -> Page {
    match taken {
        Ok(page) => json_page(StatusCode::OK, &page),
        Err(refusal) => error(refusal.status, &refusal.why),
    }
}

/// The parameters `host`, `as` and `from` of a query.
fn question(query: &str) -> Result<ExplainQuestion, String> {
    let host = parameter(query, "host")?.ok_or("name one host: /explain?host=NAME")?;
    let identity = parameter(query, "as")?.map(|id| SpiffeId::parse(&id)).transpose();
    let identity = identity.map_err(|error| format!("as: {error}"))?;
    let source = parameter(query, "from")?.map(|from| from.parse::<IpAddr>()).transpose();
    let source = source.map_err(|_| "from must be an IP address".to_owned())?;
    let is_asked = identity.is_some() || source.is_some();
    let caller = is_asked.then(|| Asker { identity, source: source.unwrap_or(Ipv4Addr::LOCALHOST.into()) });
    Ok(ExplainQuestion { host, caller })
}

/// The parameter of a query, percent-decoded; none if it is missing or empty.
fn parameter(query: &str, name: &str) -> Result<Option<String>, String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let mut found = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value);
    let (value, None) = (found.next(), found.next()) else {
        return Err(format!("{name} is given twice; name one {name}"));
    };
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(None) };
    let value = percent_decode_str(value).decode_utf8().map_err(|_| format!("{name} is not UTF-8"))?;
    Ok(Some(value.into_owned()))
}
