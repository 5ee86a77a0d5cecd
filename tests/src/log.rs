//! Reads the access log.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

use crate::wait::until_some;

/// One line of the access log.
#[derive(Clone, Debug)]
pub struct Line(pub Value);

impl Line {
    /// The reason for the connection's end.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.text("reason")
    }

    /// A text field; empty if it is absent or null.
    #[must_use]
    pub fn text(&self, field: &str) -> &str {
        self.0.get(field).and_then(Value::as_str).unwrap_or("")
    }

    /// A number; 0 if it is absent.
    #[must_use]
    pub fn number(&self, field: &str) -> u64 {
        self.0.get(field).and_then(Value::as_f64).map_or(0, |number| number.round() as u64)
    }

    /// The client's address.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.text("peer").parse().ok()
    }
}

/// The gateway's standard output so far.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    raw: Vec<Vec<u8>>,
    parsed: Vec<Line>,
    broken: Vec<String>,
}

impl Log {
    pub(crate) fn read_from(from: impl Read + Send + 'static) -> Log {
        let log = Log::default();
        let own = log.clone();
        thread::spawn(move || {
            let mut reader = BufReader::new(from);
            let mut raw = Vec::new();
            while reader.read_until(b'\n', &mut raw).is_ok_and(|read| read > 0) {
                let line = raw.strip_suffix(b"\n").unwrap_or(&raw).to_vec();
                let mut lines = own.0.lock().unwrap();
                match serde_json::from_slice(&line) {
                    Ok(value) => lines.parsed.push(Line(value)),
                    Err(error) => lines.broken.push(format!("{error}: {}", String::from_utf8_lossy(&line))),
                }
                lines.raw.push(line);
                raw.clear();
            }
        });
        log
    }

    /// Waits for a matching line.
    #[track_caller]
    pub fn wait(&self, what: &str, wanted: impl Fn(&Line) -> bool) -> Line {
        let mut seen = 0;
        until_some(&format!("the access log has {what}; it has {:?}", self.tail()), || {
            let lines = self.0.lock().unwrap();
            let found = lines.parsed[seen..].iter().find(|line| wanted(line)).cloned();
            seen = lines.parsed.len();
            found
        })
    }

    /// Waits for the line of a client and removes it, as the client's port may be reused.
    #[track_caller]
    pub fn line_of(&self, peer: SocketAddr) -> Line {
        until_some(&format!("the access log has the line of {peer}"), || {
            let mut lines = self.0.lock().unwrap();
            let place = lines.parsed.iter().position(|line| line.peer() == Some(peer))?;
            Some(lines.parsed.remove(place))
        })
    }

    /// Number of matching lines.
    pub fn count(&self, wanted: impl Fn(&Line) -> bool) -> usize {
        self.0.lock().unwrap().parsed.iter().filter(|line| wanted(line)).count()
    }

    /// Every line so far.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.0.lock().unwrap().parsed.clone()
    }

    /// Every line so far, as written, without its end.
    #[must_use]
    pub fn raw(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().raw.clone()
    }

    /// Lines that are not JSON.
    #[must_use]
    pub fn broken(&self) -> Vec<String> {
        self.0.lock().unwrap().broken.clone()
    }

    fn tail(&self) -> Vec<Line> {
        let lines = self.0.lock().unwrap();
        lines.parsed[lines.parsed.len().saturating_sub(5)..].to_vec()
    }
}
