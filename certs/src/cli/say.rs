//! Answers: text for people, JSON for machines. Text that came from a peer is escaped.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Context as _;
use comfy_table::{Attribute, Cell, ContentArrangement, Table, presets};
use isthmus_certs::causes::with_causes;
use owo_colors::OwoColorize as _;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The same, twice.
pub(super) struct Answer {
    text: String,
    json: Value,
}

impl Answer {
    pub(super) fn new(text: impl Into<String>, json: Value) -> Self {
        Self { text: text.into(), json }
    }
}

/// Prints an answer. A reader that has seen enough (`| head`) is no error, and no panic.
pub(super) fn say(answer: &Answer, as_json: bool) -> anyhow::Result<()> {
    print(if as_json { format!("{:#}", answer.json) } else { answer.text.trim_end().to_owned() })
}

fn print(text: String) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        said => said.context("cannot write to standard output"),
    }
}

/// Says on standard error what went wrong.
pub(crate) fn complain(error: &anyhow::Error, as_json: bool) {
    if as_json {
        eprintln!("{}", json!({ "error": told(error) }));
    } else {
        eprintln!("isthmus-certs: {}", told(error));
    }
}

fn told(error: &anyhow::Error) -> String {
    // A file's or a peer's words may be among them.
    with_causes(error.as_ref()).lines().map(foreign).collect::<Vec<_>>().join("\n")
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

/// One object on one line, as it happens.
pub(super) fn say_line(answer: &Answer, as_json: bool) -> anyhow::Result<()> {
    print(if as_json { answer.json.to_string() } else { answer.text.clone() })
}

/// Text from a certificate, which may be anybody's.
pub(super) fn foreign(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

pub(super) fn time(time: OffsetDateTime) -> String {
    let whole = time.replace_nanosecond(0).unwrap_or(time);
    whole.format(&Rfc3339).unwrap_or_else(|_| whole.to_string())
}

/// How long until then, or since then.
pub(super) fn left(until: OffsetDateTime) -> String {
    let left = until - OffsetDateTime::now_utc();
    let span = std::time::Duration::from_secs(left.whole_seconds().unsigned_abs());
    let words = humantime::format_duration(span).to_string();
    let short = words.split(' ').take(2).collect::<Vec<_>>().join(" ");
    if left.is_negative() { format!("{short} ago") } else { format!("in {short}") }
}
