//! Queries a running gateway over its admin address and prints tables or JSON.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, bail};
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use owo_colors::OwoColorize;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::time::timeout;

use super::status::status;
use super::{Page, Question, Where, say};

/// Sends the query and prints the answer.
pub(crate) fn ask(question: &Question) -> anyhow::Result<()> {
    let (at, method, path) = request(question);
    let answer = fetch(&at.admin, method, &path)?;
    let text = if at.json { format!("{answer:#}") } else { render(question, &answer) };
    say(text.trim_end())
}

fn render(question: &Question, answer: &Value) -> String {
    match question {
        Question::Status { .. } => status(answer),
        Question::Drain { .. } => pairs("", answer),
        Question::Routes { .. } => routes(answer),
        Question::Services { .. } => services(answer),
        Question::Connections { .. } => rows(
            answer,
            &[
                "id",
                "listener",
                "client",
                "sni",
                "service",
                "endpoint",
                "since",
                "idle_ms",
                "bytes_in",
                "bytes_out",
            ],
        ),
        Question::Explain { .. } => explanation(answer),
    }
}

fn request(question: &Question) -> (&Where, Method, String) {
    match question {
        Question::Status { at } => (at, Method::GET, "/status".to_owned()),
        Question::Drain { at } => (at, Method::POST, "/drain".to_owned()),
        Question::Routes { at, page } => (at, Method::GET, paged("/routes", page)),
        Question::Services { at, page } => (at, Method::GET, paged("/services", page)),
        Question::Connections { at, page } => (at, Method::GET, paged("/connections", page)),
        Question::Explain { sni, from, alpn, listener, at } => {
            let parts = [
                ("sni", Some(sni)),
                ("from", from.as_ref()),
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

/// Sends one request to an admin address. A status other than success becomes an error with the answer's text.
pub(crate) fn fetch(admin: &str, method: Method, path: &str) -> anyhow::Result<Value> {
    let admin = admin.strip_prefix("http://").unwrap_or(admin).trim_end_matches('/');
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answered = runtime.block_on(async { timeout(PATIENCE, exchange(admin, method, path)).await });
    let (status, body) = answered.with_context(|| {
        format!(
            "no answer from {admin} within {} s; is it a gateway, and is it suspended?",
            PATIENCE.as_secs()
        )
    })??;
    let answer: Value = serde_json::from_slice(&body).with_context(|| {
        format!("{admin} is not the admin address of a gateway; see `admin.address` in its file")
    })?;
    if status.is_success() {
        return Ok(answer);
    }
    bail!(
        "{admin}: {}",
        answer.get("error").and_then(Value::as_str).unwrap_or("the gateway refused the request")
    )
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
        Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
    };
    tokio::pin!(exchange);
    // A closed connection may still hold the answer.
    let answer = tokio::select! {
        answer = &mut exchange => answer,
        _over = connection => exchange.await,
    };
    answer.with_context(|| format!("{admin} does not speak HTTP; is it the admin address of a gateway?"))
}

pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|name| heading(name)));
    table
}

// The style is set on the cell: escape codes in the text would shift the columns.
fn heading(name: &str) -> Cell {
    let cell = Cell::new(name.replace('_', " ").to_uppercase());
    if coloured() { cell.add_attribute(Attribute::Bold) } else { cell }
}

fn coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Renders a JSON value as a table cell.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

pub(super) fn field(value: &Value, key: &str) -> String {
    cell(value.get(key).unwrap_or(&Value::Null))
}

pub(super) fn items<'a>(answer: &'a Value, key: &str) -> &'a [Value] {
    answer.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn rows(answer: &Value, columns: &[&str]) -> String {
    let mut table = table(columns);
    for item in items(answer, "items") {
        table.add_row(columns.iter().map(|column| field(item, column)));
    }
    format!("{table}\n{}", paging_hint(answer))
}

fn paging_hint(answer: &Value) -> String {
    let shown = items(answer, "items").len();
    let total = answer.get("total").and_then(Value::as_u64).unwrap_or_default();
    if total > shown as u64 {
        format!("showing {shown} of {total}; use --offset, --limit or --name for others\n")
    } else {
        String::new()
    }
}

fn routes(answer: &Value) -> String {
    let mut text = rows(answer, &["name", "service", "alpn", "sources"]);
    for default in items(answer, "defaults") {
        let (listener, service) = (field(default, "listener"), field(default, "service"));
        text += &format!("listener {listener}: unmatched names go to {service}\n");
    }
    text
}

const ENDPOINT: [&str; 6] = ["address", "instance", "weight", "healthy", "failures", "connections"];

fn services(answer: &Value) -> String {
    let mut table = table(&[&["service", "balance"], &ENDPOINT[..]].concat());
    for service in items(answer, "items") {
        let lead = || ["service", "balance"].map(|key| Cell::new(field(service, key)));
        let (endpoints, unresolved) = (items(service, "endpoints"), items(service, "unresolved"));
        for endpoint in endpoints {
            table.add_row(lead().into_iter().chain(endpoint_row(endpoint)));
        }
        for name in unresolved {
            table.add_row(lead().into_iter().chain([Cell::new(format!("{} does not resolve", cell(name)))]));
        }
        for endpoint in items(service, "down") {
            table.add_row(lead().into_iter().chain([Cell::new(describe_down(endpoint))]));
        }
        if endpoints.is_empty() && unresolved.is_empty() {
            table.add_row(lead().into_iter().chain([Cell::new("no endpoints")]));
        }
    }
    format!("{table}\n{}", paging_hint(answer))
}

/// Renders an endpoint that failed its probes while the agent is unreachable.
fn describe_down(endpoint: &Value) -> String {
    format!(
        "{} down since {} (stale: probe): {}",
        field(endpoint, "address"),
        field(endpoint, "since"),
        field(endpoint, "why")
    )
}

fn endpoint_row(endpoint: &Value) -> [Cell; 6] {
    let is_demoted = endpoint.get("demoted").and_then(Value::as_bool).unwrap_or_default();
    ENDPOINT.map(|key| match (key, field(endpoint, key).as_str()) {
        ("healthy", "false") if coloured() => Cell::new("ejected").fg(Color::Red),
        ("healthy", "false") => Cell::new("ejected"),
        ("healthy", "true") if is_demoted => Cell::new("demoted"),
        ("healthy", "true") => Cell::new("yes"),
        (_, text) => Cell::new(text),
    })
}

fn explanation(answer: &Value) -> String {
    let mut text = String::new();
    let asked = answer.pointer("/asked/listener");
    let listeners = items(answer, "listeners");
    if let Some(listener) = asked.filter(|_| listeners.len() > 1) {
        text += &format!("on listener {}:\n", cell(listener));
    }
    if let Some(reason) = answer.get("refused").and_then(Value::as_str) {
        let reason = if coloured() { reason.red().to_string() } else { reason.to_owned() };
        text += &format!("refused: {reason}: {}\n", field(answer, "meaning"));
        text += &format!("TLS alert to the client: {}\n", field(answer, "alert"));
    }
    if answer.get("service").is_some() {
        text += &format!("service: {} ({})\n", field(answer, "service"), field(answer, "balance"));
        let endpoints = items(answer, "endpoints");
        if !endpoints.is_empty() {
            let mut table = table(&ENDPOINT);
            for endpoint in endpoints {
                table.add_row(endpoint_row(endpoint));
            }
            text += &format!("endpoints in the order they would be tried:\n{table}\n");
        }
        for endpoint in items(answer, "down") {
            text += &format!("not used: {}\n", describe_down(endpoint));
        }
    }
    for other in listeners.iter().filter(|other| other.get("listener") != asked) {
        let outcome = match other.get("refused") {
            Some(reason) => format!("refused: {}", cell(reason)),
            None => format!("service: {}", field(other, "service")),
        };
        text += &format!("on listener {}: {outcome}\n", field(other, "listener"));
    }
    text
}

fn pairs(prefix: &str, value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let below =
                |key: &str| if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
            map.iter().map(|(key, value)| pairs(&below(key), value)).collect()
        }
        Value::Array(list) if list.iter().any(Value::is_object) => list
            .iter()
            .enumerate()
            .map(|(index, value)| pairs(&format!("{prefix}[{index}]"), value))
            .collect(),
        other => format!("{prefix:<32} {}\n", cell(other)),
    }
}
