//! A minimal HTTP client: one request per connection.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde::de::DeserializeOwned;

use crate::netns;
use crate::wait::DEADLINE;

/// A response.
#[derive(Debug)]
pub struct Answer {
    /// Its status code.
    pub status: u16,
    /// Its header lines.
    pub headers: String,
    /// Its body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}) in answer {}: {}", self.status, self.body))
    }

    /// The body as a page of an admin API.
    #[must_use]
    #[track_caller]
    pub fn page<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("not the page ({error}), answer {}: {}", self.status, self.body))
    }
}

/// Sends a request with `address` as its `Host`.
#[track_caller]
pub fn ask(address: SocketAddr, method: &str, path: &str) -> Answer {
    ask_as(address, &address.to_string(), method, path).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
}

/// The same inside a network namespace, if one is given.
#[track_caller]
pub fn ask_in(namespace: Option<&str>, address: SocketAddr, method: &str, path: &str) -> Answer {
    let (method, path) = (method.to_owned(), path.to_owned());
    within(namespace, move || ask(address, &method, &path))
}

fn within(namespace: Option<&str>, run: impl FnOnce() -> Answer + Send + 'static) -> Answer {
    match namespace {
        Some(namespace) => netns::inside(namespace, run),
        None => run(),
    }
}

/// Sends a request with this `Host`.
pub fn ask_as(address: SocketAddr, host: &str, method: &str, path: &str) -> io::Result<Answer> {
    exchange(address, host, &format!("{method} {path}"), "")
}

fn exchange(address: SocketAddr, host: &str, what: &str, body: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let length =
        if what.starts_with("POST") { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
    write!(stream, "{what} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{length}\r\n{body}")?;
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw)?;
    let raw = String::from_utf8(raw).map_err(io::Error::other)?;
    let (headers, body) =
        raw.split_once("\r\n\r\n").ok_or_else(|| io::Error::other(format!("answer {raw:?}")))?;
    let status = headers.split(' ').nth(1).and_then(|word| word.parse().ok());
    let chunked = headers.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok(Answer {
        status: status.ok_or_else(|| io::Error::other(format!("answer {headers:?}")))?,
        headers: headers.to_owned(),
        body: if chunked { unchunk(body) } else { body.to_owned() },
    })
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, tail)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.split(';').next().unwrap_or("").trim(), 16).unwrap_or(0);
        if size == 0 {
            break;
        }
        body.push_str(&tail[..size]);
        rest = tail[size..].trim_start_matches("\r\n");
    }
    body
}
