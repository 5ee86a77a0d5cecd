//! Serves admin, metrics and health over HTTP, each on its own thread. `pages` has the paths; access rules and limits are in `isthmus_http`.

mod decision;
pub mod effective;
mod explain;
pub(crate) mod pages;
pub mod status;
mod tables;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use isthmus_http::page::{Page, error, json_page, metrics, not_allowed, plain};
use isthmus_http::{Limits, guard, shared::Shared};
use isthmus_model::admin::gateway::{Draining, GET};

use self::pages::Params;
use crate::control::Control;
use crate::metrics::collect;

pub(crate) async fn serve_admin(listener: TcpListener, control: Arc<Control>) -> io::Result<()> {
    let own = listener.local_addr()?;
    serve(listener, move |request| {
        let page = admin(&request, own, &control);
        async { page }
    })
    .await
}

/// Renders metrics on another thread, once for all waiting clients: many clients cost no more than one.
pub(crate) async fn serve_metrics(listener: TcpListener, control: Arc<Control>) -> io::Result<()> {
    let text = Arc::new(Shared::new(move || collect::text(&control)));
    serve(listener, move |request| {
        let text = Arc::clone(&text);
        async move {
            if reads(&request) && request.uri().path() == "/metrics" {
                metrics(text.text().await)
            } else {
                plain(StatusCode::NOT_FOUND, "only GET /metrics is served here\n")
            }
        }
    })
    .await
}

/// Reads atomics only and never blocks.
pub(crate) async fn serve_health(listener: TcpListener, control: Arc<Control>) -> io::Result<()> {
    serve(listener, move |request| {
        let page = match request.uri().path() {
            "/healthz/live" if reads(&request) => plain(StatusCode::OK, "live\n"),
            "/healthz/ready" if reads(&request) => match control.why_not_ready() {
                None => plain(StatusCode::OK, "ready\n"),
                Some(why) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
            },
            _ => plain(StatusCode::NOT_FOUND, "only GET /healthz/ready and /healthz/live are served here\n"),
        };
        async { page }
    })
    .await
}

fn reads(request: &Request<Incoming>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
}

async fn serve<A, F>(listener: TcpListener, answer: A) -> io::Result<()>
where
    A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Page> + Send + 'static,
{
    let listener = tokio::net::TcpListener::from_std(listener)?;
    isthmus_http::serve(listener, Limits::default(), move |request, ()| answer(request)).await;
    Ok(())
}

fn admin(request: &Request<Incoming>, own: SocketAddr, control: &Arc<Control>) -> Page {
    if let Some(why) = guard::refusal(request, own) {
        return error(StatusCode::FORBIDDEN, why);
    }
    let params = match Params::parse(request.uri().query().unwrap_or_default()) {
        Ok(params) => params,
        Err(what) => return error(StatusCode::BAD_REQUEST, &what),
    };
    match (request.uri().path(), reads(request)) {
        ("/drain", false) if request.method() == Method::POST => {
            control.drain();
            json_page(StatusCode::ACCEPTED, &Draining { draining: true })
        }
        ("/drain", _) => not_allowed("POST"),
        (path, true) => pages::page(path, &params, control),
        (path, false) if GET.contains(&path) => not_allowed("GET, HEAD"),
        (_, false) => json_page(StatusCode::NOT_FOUND, &pages::index()),
    }
}
