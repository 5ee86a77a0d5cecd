//! Questions to a running gateway, over its admin address: tables for people, JSON for machines.

use std::io::IsTerminal;

use anyhow::{Context, bail};
use comfy_table::{ContentArrangement, Table, presets};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use owo_colors::OwoColorize;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::{Page, Question, Where};

/// Asks, and prints the answer.
pub(crate) fn ask(question: &Question) -> anyhow::Result<()> {
    let (at, method, path) = request(question);
    let answer = fetch(&at.admin, method, &path)?;
    if at.json {
        println!("{answer:#}");
        return Ok(());
    }
    match question {
        Question::Status { .. } | Question::Drain { .. } => print_pairs("", &answer),
        Question::Routes { .. } => print_items(&answer, &["name", "service", "alpn", "sources"]),
        Question::Services { .. } => print_services(&answer),
        Question::Connections { .. } => print_items(
            &answer,
            &["id", "client", "sni", "service", "endpoint", "since", "idle_ms", "bytes_in", "bytes_out"],
        ),
        Question::Explain { .. } => print_explained(&answer),
    }
    Ok(())
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

/// One request to an admin address; anything but success is an error with what the gateway said.
pub(crate) fn fetch(admin: &str, method: Method, path: &str) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(admin).await.with_context(|| {
            format!("no gateway answers at {admin}; is it running, and is its admin address another (--admin, ISTHMUS_ADMIN)?")
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::builder().method(method).uri(path).header("host", admin).body(Empty::<Bytes>::new())?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok::<_, hyper::Error>((status, response.into_body().collect().await?.to_bytes()))
        };
        let (status, body) = tokio::select! {
            answer = exchange => answer?,
            broken = connection => bail!("{admin} closed the connection: {broken:?}"),
        };
        let answer: Value = serde_json::from_slice(&body).with_context(|| format!("{admin} is no admin address of a gateway"))?;
        if status.is_success() && status != StatusCode::NO_CONTENT {
            return Ok(answer);
        }
        bail!("{}", answer.get("error").and_then(Value::as_str).unwrap_or("the gateway refused"))
    })
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|name| heading(name)));
    table
}

fn heading(name: &str) -> String {
    let name = name.replace('_', " ").to_uppercase();
    if coloured() { name.bold().to_string() } else { name }
}

fn coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn items<'a>(answer: &'a Value, key: &str) -> &'a [Value] {
    answer.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn print_items(answer: &Value, columns: &[&str]) {
    let mut table = table(columns);
    for item in items(answer, "items") {
        table.add_row(columns.iter().map(|column| cell(item.get(*column).unwrap_or(&Value::Null))));
    }
    println!("{table}");
    print_total(answer);
}

fn print_total(answer: &Value) {
    let shown = items(answer, "items").len();
    let total = answer.get("total").and_then(Value::as_u64).unwrap_or_default();
    if total > shown as u64 {
        println!("{shown} of {total}; --offset, --limit and --name show others");
    }
}

const ENDPOINT: [&str; 6] = ["address", "instance", "weight", "healthy", "failures", "connections"];

fn print_services(answer: &Value) {
    let mut table = table(&[&["service", "balance"], &ENDPOINT[..]].concat());
    for service in items(answer, "items") {
        let lead = ["service", "balance"].map(|key| cell(service.get(key).unwrap_or(&Value::Null)));
        let endpoints = items(service, "endpoints");
        if endpoints.is_empty() {
            table.add_row([lead.as_slice(), &["no endpoint".to_owned()]].concat());
        }
        for endpoint in endpoints {
            let row = ENDPOINT.map(|key| health(key, cell(endpoint.get(key).unwrap_or(&Value::Null))));
            table.add_row([lead.as_slice(), &row].concat());
        }
    }
    println!("{table}");
    print_total(answer);
}

fn health(key: &str, text: String) -> String {
    match (key, text.as_str()) {
        ("healthy", "false") if coloured() => "ejected".red().to_string(),
        ("healthy", "false") => "ejected".to_owned(),
        ("healthy", "true") => "yes".to_owned(),
        _ => text,
    }
}

fn print_explained(answer: &Value) {
    if let Some(reason) = answer.get("refused").and_then(Value::as_str) {
        let reason = if coloured() { reason.red().to_string() } else { reason.to_owned() };
        println!("refused: {reason}: {}", cell(answer.get("meaning").unwrap_or(&Value::Null)));
        println!("alert to the client: {}", cell(answer.get("alert").unwrap_or(&Value::Null)));
    }
    if let Some(service) = answer.get("service") {
        println!("service: {} ({})", cell(service), cell(answer.get("balance").unwrap_or(&Value::Null)));
        let mut table = table(&ENDPOINT);
        for endpoint in items(answer, "endpoints") {
            table.add_row(ENDPOINT.map(|key| health(key, cell(endpoint.get(key).unwrap_or(&Value::Null)))));
        }
        println!("endpoints in the order they would be tried:\n{table}");
    }
}

fn print_pairs(prefix: &str, value: &Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                print_pairs(&name, value);
            }
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            for (index, value) in list.iter().enumerate() {
                print_pairs(&format!("{prefix}[{index}]"), value);
            }
        }
        other => println!("{prefix:<32} {}", cell(other)),
    }
}
