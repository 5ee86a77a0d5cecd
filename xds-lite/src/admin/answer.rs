//! Which path answers what. GET changes nothing; what is wrong is said as `{"error": "…"}`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::registry::registered::registration::LARGEST;

use super::{Pages, Refusal, who};

const GET: [&str; 5] = ["/status", "/explain", "/healthz/live", "/healthz/ready", "/metrics"];
const POST: [&str; 3] = ["/register", "/heartbeat", "/deregister"];
/// Bytes of a body that is too large which are still read, so that its sender gets to hear so.
const DISCARDED: usize = 1 << 20;

pub(super) type Page = Response<Full<Bytes>>;

/// Where requests come to.
pub(super) struct Desk {
    pub(super) pages: Arc<dyn Pages>,
    /// The address that it is asked at.
    pub(super) own: SocketAddr,
    /// From headers to a whole body.
    pub(super) body: Duration,
}

impl Desk {
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Page {
        if let Some(why) = who::refusal(&request, self.own) {
            return wrong(StatusCode::FORBIDDEN, why);
        }
        let path = request.uri().path();
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        if GET.contains(&path) {
            let query = request.uri().query().unwrap_or_default();
            return if reads { self.show(path, query) } else { not_allowed("GET, HEAD") };
        }
        if !POST.contains(&path) {
            let index = json!({ "error": "there is no such path", "get": GET, "post": POST });
            return json_page(StatusCode::NOT_FOUND, &index);
        }
        if request.method() != Method::POST {
            return not_allowed("POST");
        }
        let path = path.to_owned();
        match timeout(self.body, read(request.into_body())).await {
            Ok(Ok(body)) => self.take(&path, &body),
            Ok(Err(refusal)) => wrong(refusal.status, &refusal.why),
            Err(_) => wrong(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
        }
    }

    fn show(&self, path: &str, query: &str) -> Page {
        match path {
            "/status" => json_page(StatusCode::OK, &self.pages.status()),
            "/explain" => match host(query).and_then(|host| self.pages.explain(&host)) {
                Ok(page) => json_page(StatusCode::OK, &page),
                Err(why) => wrong(StatusCode::BAD_REQUEST, &why),
            },
            "/metrics" => respond(StatusCode::OK, "text/plain; version=0.0.4", self.pages.metrics()),
            "/healthz/ready" if !self.pages.ready() => {
                respond(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not ready\n".to_owned())
            }
            "/healthz/ready" => respond(StatusCode::OK, "text/plain", "ready\n".to_owned()),
            _ => respond(StatusCode::OK, "text/plain", "live\n".to_owned()),
        }
    }

    fn take(&self, path: &str, body: &[u8]) -> Page {
        let taken = match path {
            "/register" => self.pages.register(body),
            "/heartbeat" => self.pages.heartbeat(body),
            _ => self.pages.deregister(body),
        };
        match taken {
            Ok(page) => json_page(StatusCode::OK, &page),
            Err(refusal) => wrong(refusal.status, &refusal.why),
        }
    }
}

/// The body, if it is not too large.
async fn read(mut body: Incoming) -> Result<Vec<u8>, Refusal> {
    let (mut kept, mut seen) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let broken = |_| Refusal { status: StatusCode::BAD_REQUEST, why: "the body is cut off".to_owned() };
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        seen = seen.saturating_add(data.len());
        if seen <= LARGEST {
            kept.extend_from_slice(&data);
        } else if seen > DISCARDED {
            break;
        }
    }
    if seen <= LARGEST {
        return Ok(kept);
    }
    let why = format!("the body is larger than {} KiB; say less", LARGEST >> 10);
    Err(Refusal { status: StatusCode::PAYLOAD_TOO_LARGE, why })
}

/// The parameter `host` of a query, percent-decoded.
fn host(query: &str) -> Result<String, String> {
    let mut found = query.split('&').filter_map(|pair| pair.strip_prefix("host="));
    let (Some(host), None) = (found.next().filter(|host| !host.is_empty()), found.next()) else {
        return Err("say which host, once: /explain?host=NAME".to_owned());
    };
    let host = percent_decode_str(host).decode_utf8().map_err(|_| "host is not UTF-8".to_owned())?;
    Ok(host.into_owned())
}

fn wrong(status: StatusCode, why: &str) -> Page {
    json_page(status, &json!({ "error": why }))
}

fn not_allowed(methods: &'static str) -> Page {
    let mut page = wrong(StatusCode::METHOD_NOT_ALLOWED, &format!("this path takes {methods}"));
    page.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    page
}

fn json_page(status: StatusCode, page: &Value) -> Page {
    respond(status, "application/json", format!("{page:#}\n"))
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Page {
    let mut page = Response::new(Full::new(Bytes::from(body)));
    *page.status_mut() = status;
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    page
}
