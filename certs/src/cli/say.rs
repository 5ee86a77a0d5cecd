//! Prints answers, as text or JSON. Text from files and peers is escaped.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Context as _;
use comfy_table::{Attribute, Cell, ContentArrangement, Table, presets};
use isthmus_certs::causes::with_causes;
use isthmus_certs::printable::printable_lines;
use owo_colors::OwoColorize as _;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// An answer in both formats.
pub(super) struct Answer {
    text: String,
    json: Value,
}

impl Answer {
    pub(super) fn new(text: impl Into<String>, json: Value) -> Self {
        Self { text: text.into(), json }
    }
}

/// Prints an answer. A closed pipe (`| head`) is not an error.
pub(super) fn say(answer: &Answer, as_json: bool) -> anyhow::Result<()> {
    print(if as_json { format!("{:#}", answer.json) } else { answer.text.trim_end().to_owned() })
}

fn print(text: String) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

/// Prints an error on standard error.
pub(crate) fn complain(error: &anyhow::Error, as_json: bool) {
    if as_json {
        eprintln!("{}", json!({ "error": escaped(error) }));
    } else {
        eprintln!("isthmus-certs: {}", escaped(error));
    }
}

fn escaped(error: &anyhow::Error) -> String {
    // The error may quote a file or a peer.
    printable_lines(&with_causes(error.as_ref()))
}

pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    let heading = |name: &&str| {
        let cell = Cell::new(name.to_uppercase());
        if coloured() { cell.add_attribute(Attribute::Bold) } else { cell }
    };
    table.set_header(header.iter().map(heading));
    table
}

fn coloured() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

pub(super) fn bad(text: &str) -> String {
    if coloured() { text.red().to_string() } else { text.to_owned() }
}

pub(super) fn good(text: &str) -> String {
    if coloured() { text.green().to_string() } else { text.to_owned() }
}

/// Prints an event on one line.
pub(super) fn say_line(answer: &Answer, as_json: bool) -> anyhow::Result<()> {
    print(if as_json { answer.json.to_string() } else { answer.text.clone() })
}

pub(super) fn time(time: OffsetDateTime) -> String {
    let whole = time.replace_nanosecond(0).unwrap_or(time);
    whole.format(&Rfc3339).unwrap_or_else(|_| whole.to_string())
}

/// The time until then, or since then: `in 3days 2h`, `2h 5m ago`.
pub(super) fn left(until: OffsetDateTime) -> String {
    let left = until - OffsetDateTime::now_utc();
    let span = std::time::Duration::from_secs(left.whole_seconds().unsigned_abs());
    let words = humantime::format_duration(span).to_string();
    let short = words.split(' ').take(2).collect::<Vec<_>>().join(" ");
    if left.is_negative() { format!("{short} ago") } else { format!("in {short}") }
}
