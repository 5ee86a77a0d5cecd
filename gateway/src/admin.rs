//! Admin, metrics and health over HTTP, on the control thread. What is answered to which path is in
//! [`pages`], [`effective`] and [`explain`]; here is who may ask, and how many at once.

pub mod effective;
pub mod explain;
pub mod pages;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HOST, HeaderValue, ORIGIN};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::AbortHandle;

use self::pages::{Answer, Params};
use crate::control::Control;
use crate::metrics::collect;

/// Clients of one of these servers at once.
const CLIENTS: usize = 64;
/// From accept to whole headers, and again for each request of a kept connection.
const HEADERS: Duration = Duration::from_secs(5);
/// One connection, whatever it does.
const LONGEST: Duration = Duration::from_secs(60);
/// After accept failed for want of descriptors.
const PAUSE: Duration = Duration::from_millis(200);

pub(crate) async fn serve_admin(listener: TcpListener, control: Arc<Control>) -> io::Result<()> {
    let own = listener.local_addr()?;
    serve(listener, move |request| admin(request, own, &control)).await
}

pub(crate) async fn serve_metrics(listener: TcpListener, control: Arc<Control>) -> io::Result<()> {
    serve(listener, move |request| match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            respond(StatusCode::OK, "text/plain; version=0.0.4", collect::text(&control))
        }
        _ => plain(StatusCode::NOT_FOUND, "only GET /metrics is served here\n"),
    })
    .await
}

pub(crate) async fn serve_health(listener: TcpListener, control: Arc<Control>) -> io::Result<()> {
    serve(listener, move |request| match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/healthz/live") => plain(StatusCode::OK, "live\n"),
        (&Method::GET | &Method::HEAD, "/healthz/ready") if control.is_ready() => {
            plain(StatusCode::OK, "ready\n")
        }
        (&Method::GET | &Method::HEAD, "/healthz/ready") => {
            plain(StatusCode::SERVICE_UNAVAILABLE, &format!("not ready: {}\n", control.phase.borrow().word()))
        }
        _ => plain(StatusCode::NOT_FOUND, "only GET /healthz/ready and /healthz/live are served here\n"),
    })
    .await
}

type Page = Response<Full<Bytes>>;

/// Accepts for ever; a client that fails is its own affair. Where too many stay, the one that came first
/// goes: clients that say nothing must not keep a health check waiting.
async fn serve(
    listener: TcpListener,
    page: impl Fn(&Request<Incoming>) -> Page + Clone + Send + 'static,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut clients: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        clients.retain(|client| !client.is_finished());
        if clients.len() >= CLIENTS
            && let Some(first) = clients.pop_front()
        {
            first.abort();
        }
        let page = page.clone();
        let serving = tokio::spawn(async move {
            let service = service_fn(move |request| {
                let page = page(&request);
                async { Ok::<_, Infallible>(page) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS)
                .serve_connection(TokioIo::new(client), service);
            if let Ok(Err(error)) = tokio::time::timeout(LONGEST, connection).await {
                tracing::debug!(%error, "admin client");
            }
        });
        clients.push_back(serving.abort_handle());
    }
}

fn admin(request: &Request<Incoming>, own: SocketAddr, control: &Arc<Control>) -> Page {
    if !is_addressed_to(request, own) {
        return forbidden(
            "the Host header names another host: a web page elsewhere may not ask this gateway",
        );
    }
    if !is_from_here(request, own) {
        return forbidden("the Origin header names another host: only pages of this gateway may ask it");
    }
    let params = match Params::parse(request.uri().query().unwrap_or_default()) {
        Ok(params) => params,
        Err(what) => return json(StatusCode::BAD_REQUEST, &pages::error(&what)),
    };
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    match (request.uri().path(), reads) {
        ("/drain", false) if request.method() == Method::POST => {
            control.drain();
            json(StatusCode::ACCEPTED, &serde_json::json!({ "draining": true }))
        }
        ("/drain", _) => not_allowed("POST"),
        (path, true) => match pages::page(path, &params, control) {
            Answer::Page(page) => json(StatusCode::OK, &page),
            Answer::Wrong(what) => json(StatusCode::BAD_REQUEST, &pages::error(&what)),
            Answer::Nothing => json(StatusCode::NOT_FOUND, &pages::index()),
        },
        (path, false) if pages::PATHS.contains(&path) => not_allowed("GET, HEAD"),
        (_, false) => json(StatusCode::NOT_FOUND, &pages::index()),
    }
}

/// Browsers send the name that the page's address had: a page of another origin that points its own name
/// at this address (DNS rebinding) gives itself away.
fn is_addressed_to(request: &Request<Incoming>, own: SocketAddr) -> bool {
    let Some(host) = request.headers().get(HOST).and_then(|host| host.to_str().ok()) else { return false };
    names(host, own)
}

/// A page of another origin may send a POST with our own name as Host, though it cannot read the answer.
/// Its browser says then where the page is from; `curl` and the command line say nothing.
fn is_from_here(request: &Request<Incoming>, own: SocketAddr) -> bool {
    let is_own = |origin: &HeaderValue| {
        origin
            .to_str()
            .ok()
            .and_then(|origin| origin.strip_prefix("http://"))
            .is_some_and(|host| names(host, own))
    };
    request.headers().get_all(ORIGIN).iter().all(is_own)
}

fn names(host: &str, own: SocketAddr) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.port() == own.port()
            && (address.ip() == own.ip() || address.ip().is_loopback() || own.ip().is_unspecified());
    }
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && !host.ends_with(']') => {
            (name, port.parse::<u16>().ok())
        }
        _ => (host, Some(own.port())),
    };
    let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    port == Some(own.port())
        && match ip {
            Ok(ip) => ip.is_loopback() || ip == own.ip() || own.ip().is_unspecified(),
            Err(_) => name.eq_ignore_ascii_case("localhost"),
        }
}

fn json(status: StatusCode, page: &serde_json::Value) -> Page {
    respond(status, "application/json", format!("{page:#}\n"))
}

fn forbidden(why: &str) -> Page {
    json(StatusCode::FORBIDDEN, &pages::error(why))
}

fn plain(status: StatusCode, text: &str) -> Page {
    respond(status, "text/plain", text.to_owned())
}

fn not_allowed(methods: &'static str) -> Page {
    let mut page = json(StatusCode::METHOD_NOT_ALLOWED, &pages::error(&format!("this path takes {methods}")));
    page.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    page
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Page {
    let mut page = Response::new(Full::new(Bytes::from(body)));
    *page.status_mut() = status;
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_pass_as_host() {
        let own: SocketAddr = "127.0.0.1:15000".parse().unwrap();
        for host in ["127.0.0.1:15000", "localhost:15000", "LOCALHOST", "[::1]:15000", "127.0.0.1", "[::1]"] {
            assert!(names(host, own), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:15000",
            "localhost:1",
            "10.0.0.1:15000",
            "localhost.evil.example",
            "",
        ] {
            assert!(!names(host, own), "{host}");
        }
        let open: SocketAddr = "0.0.0.0:15000".parse().unwrap();
        assert!(names("10.0.0.1:15000", open) && !names("evil.example:15000", open));
    }
}
