//! Queries a running gateway over its admin address and prints the answer, as text or JSON.

use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use isthmus_model::admin::{Answer, NotThePage};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::timeout;

use super::status::status;
use super::text::{connections, drain, explanation, matrix, routes, services};
use super::{Page, Question, Where, say};

/// Sends the query and prints the answer.
pub(crate) fn ask(question: &Question) -> anyhow::Result<()> {
    let (at, method, path) = request(question);
    let answer = fetch(&at.admin, method, &path)?;
    let text =
        if at.json { answer.json() } else { render(question, &answer).with_context(|| at.admin.clone())? };
    say(text.trim_end())
}

fn render(question: &Question, answer: &Answer) -> Result<String, NotThePage> {
    Ok(match question {
        Question::Status { .. } => status(&answer.page()?),
        Question::Drain { .. } => drain(&answer.page()?),
        Question::Routes { .. } => routes(&answer.page()?),
        Question::Services { .. } => services(&answer.page()?),
        Question::Matrix { .. } => matrix(&answer.page()?),
        Question::Connections { .. } => connections(&answer.page()?),
        Question::Explain { .. } => explanation(&answer.page()?),
    })
}

fn request(question: &Question) -> (&Where, Method, String) {
    match question {
        Question::Status { at } => (at, Method::GET, "/status".to_owned()),
        Question::Drain { at } => (at, Method::POST, "/drain".to_owned()),
        Question::Routes { at, page } => (at, Method::GET, paged("/routes", page)),
        Question::Services { at, page } => (at, Method::GET, paged("/services", page)),
        Question::Matrix { at } => (at, Method::GET, "/matrix".to_owned()),
        Question::Connections { at, page } => (at, Method::GET, paged("/connections", page)),
        Question::Explain { sni, from, identity, alpn, listener, at } => {
            let parts = [
                ("sni", Some(sni)),
                ("from", from.as_ref()),
                ("as", identity.as_ref()),
                ("alpn", alpn.as_ref()),
                ("listener", listener.as_ref()),
            ];
            let query: Vec<_> = parts
                .iter()
                .filter_map(|(key, value)| Some(format!("{key}={}", encode(value.as_ref()?))))
                .collect();
            (at, Method::GET, format!("/explain?{}", query.join("&")))
        }
    }
}

fn paged(path: &str, page: &Page) -> String {
    let name = page.name.as_deref().map(encode).unwrap_or_default();
    format!("{path}?offset={}&limit={}&name={name}", page.offset, page.limit)
}

fn encode(text: impl AsRef<str>) -> String {
    utf8_percent_encode(text.as_ref(), NON_ALPHANUMERIC).to_string()
}

/// A running gateway answers at once; this bounds the wait for a suspended one or another server.
const PATIENCE: Duration = Duration::from_secs(10);

/// Largest answer, in bytes.
const LARGEST_ANSWER: usize = 64 << 20;

/// Sends one request to an admin address. A status other than success becomes an error with the answer's text.
pub(crate) fn fetch(admin: &str, method: Method, path: &str) -> anyhow::Result<Answer> {
    let admin = admin.strip_prefix("http://").unwrap_or(admin).trim_end_matches('/');
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answered = runtime.block_on(async { timeout(PATIENCE, exchange(admin, method, path)).await });
    let (status, body) = answered.with_context(|| {
        format!(
            "no answer from {admin} within {} s; is it a gateway, and is it suspended?",
            PATIENCE.as_secs()
        )
    })??;
    let answer = Answer::parse(&body).with_context(|| {
        format!(
            "{admin} is not the admin address of a gateway: its answer ({status}) is not JSON; see `admin.address` in its file"
        )
    })?;
    if status.is_success() {
        return Ok(answer);
    }
    let why = answer.error();
    bail!("{admin}: {}", why.as_deref().unwrap_or("the gateway refused the request"))
}

async fn exchange(admin: &str, method: Method, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = tokio::net::TcpStream::connect(admin).await.with_context(|| {
        format!("no gateway answers at {admin}; is it running, and is this its admin address (--admin, ISTHMUS_ADMIN)?")
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Every gateway accepts `localhost` as its own name, whatever name or forwarded port was used.
    let request =
        Request::builder().method(method).uri(path).header("host", "localhost").body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
        anyhow::Ok((status, body.map_err(anyhow::Error::from_boxed)?.to_bytes()))
    };
    tokio::pin!(exchange);
    // A closed connection may still hold the answer.
    let answer = tokio::select! {
        answer = &mut exchange => answer,
        _over = connection => exchange.await,
    };
    answer.with_context(|| format!("{admin} does not speak HTTP; is it the admin address of a gateway?"))
}
