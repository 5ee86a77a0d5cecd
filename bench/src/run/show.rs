//! Renders a run for people: the live table on standard error and the summary.

use std::fmt::{self, Write as _};
use std::io::{IsTerminal as _, stderr};
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table, presets::NOTHING};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::drive::Drive;
use super::report::{Quantiles, Report, per_second};
use super::tally::Recent;

/// Refresh interval of the live table.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// The live state of a run: redrawn in place on a terminal, a line per second elsewhere.
#[derive(Debug)]
pub(crate) struct Live {
    bar: Option<ProgressBar>,
    duration: Option<Duration>,
}

impl Live {
    pub(crate) fn new(duration: Option<Duration>) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let seconds = duration.map(|duration| duration.as_secs().max(1));
            let bar = ProgressBar::with_draw_target(seconds, ProgressDrawTarget::stderr());
            let template = if seconds.is_some() { "{bar:48.cyan} {msg}" } else { "{msg}" };
            // A template that does not parse leaves the harmless default.
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("━╸ "));
            }
            bar
        });
        Self { bar, duration }
    }

    /// Updates the table; `since` is the time since the last update.
    pub(crate) fn tick(&self, drive: &Drive, since: Duration) {
        let elapsed = drive.elapsed();
        let (recent, total, failed) = {
            let mut tally = drive.tally();
            let total = Recent {
                operation: tally.operation.clone(),
                succeeded: tally.succeeded,
                failed: tally.failed,
            };
            (tally.take_recent(), total, tally.failed)
        };
        let undone = drive.undone();
        let (seconds, open, waiting) = (elapsed.as_secs_f64(), drive.open(), undone.unstarted);
        let last = Rates::new(&recent, since);
        let Some(bar) = &self.bar else {
            eprintln!(
                "{seconds:4.0} s  {last}  {failed:6} failed so far  {open:5} open  {waiting:5} waiting"
            );
            return;
        };
        let all = Rates::new(&total, elapsed);
        let end = self.duration.map_or(String::new(), |end| format!(" of {:.0} s", end.as_secs_f64()));
        bar.set_position(elapsed.as_secs());
        bar.set_message(format!(
            "{seconds:.0} s{end}, {open} open, {waiting} waiting\n  last second  {last}  {:6} failed\n  so far       {all}  {failed:6} failed",
            recent.failed
        ));
    }

    /// Clears the table to make room for the summary.
    pub(crate) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Rate and quantiles in a live line.
struct Rates {
    per_s: f64,
    quantiles: Option<Quantiles>,
}

impl Rates {
    fn new(recent: &Recent, over: Duration) -> Self {
        let per_s = per_second(recent.succeeded, over);
        Self { per_s, quantiles: Quantiles::from_histogram(&recent.operation) }
    }
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown =
            |pick: fn(&Quantiles) -> f64| self.quantiles.as_ref().map_or("-".into(), |q| time(pick(q)));
        let (p50, p99) = (shown(|q| q.p50), shown(|q| q.p99));
        write!(f, "{:8.0}/s  p50 {p50:>8}  p99 {p99:>8}", self.per_s)
    }
}

/// Renders the result as text.
pub(crate) fn summary(report: &Report) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = write_summary(&mut text, report);
    text
}

fn write_summary(text: &mut String, report: &Report) -> fmt::Result {
    let asked = &report.asked;
    let rate =
        asked.rate_per_s.map_or("closed loop".to_owned(), |rate| format!("{rate} operations per second"));
    writeln!(text, "{} with SNI {}", asked.addresses.join(", "), asked.sni)?;
    writeln!(text, "{}; connections: {}; {rate}", asked.operation, asked.connections)?;
    let (elapsed, per_s) = (report.elapsed_s, report.per_s);
    let ended = if report.interrupted { ", interrupted" } else { "" };
    let (succeeded, failed) = (report.succeeded, report.failed);
    writeln!(
        text,
        "{succeeded} succeeded, {failed} failed in {elapsed:.1} s{ended}; {per_s:.1} successes per second"
    )?;
    match report.unstarted {
        0 => {}
        waiting if report.interrupted => writeln!(text, "due, not yet started: {waiting}")?,
        never => writeln!(text, "due, never started: {never}; the connections cannot keep up with the rate")?,
    }
    if report.cut_off > 0 {
        writeln!(text, "in flight, not counted: {}", report.cut_off)?;
    }
    writeln!(text, "\n{}", latencies(report).trim_fmt())?;
    if !report.failures.is_empty() {
        writeln!(text, "\n{}", failures(report).trim_fmt())?;
        for failure in &report.failures {
            if let Some(meaning) = failure.meaning {
                writeln!(text, "{}: {meaning}", failure.detail.as_deref().unwrap_or(failure.kind))?;
            }
        }
    }
    Ok(())
}

fn latencies(report: &Report) -> Table {
    let latency = &report.latency_us;
    let operation = match report.asked.rate_per_s {
        Some(_) => "succeeded, from due time",
        None => "succeeded",
    };
    let rows = [
        ("connect", latency.connect),
        ("handshake", latency.handshake),
        ("first byte", latency.first_byte),
        ("queued", latency.queued),
        ("succeeded, from start", latency.service),
        (operation, latency.operation),
    ];
    let mut table = Table::new();
    table.load_style(NOTHING);
    let titles = ["count", "p50", "p90", "p99", "p99.9", "max"].map(right);
    table.set_header(std::iter::once(Cell::new("")).chain(titles));
    for (name, quantiles) in rows {
        let Some(Quantiles { count, p50, p90, p99, p99_9, max }) = quantiles else { continue };
        let times = [p50, p90, p99, p99_9, max].map(time);
        let cells = std::iter::once(count.to_string()).chain(times);
        table.add_row(std::iter::once(Cell::new(name)).chain(cells.map(right)));
    }
    table
}

fn failures(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([Cell::new("failure"), Cell::new("step"), right("count"), Cell::new("example")]);
    for failure in &report.failures {
        let detail = failure.detail.as_deref().unwrap_or_default();
        table.add_row([
            Cell::new(format!("{} {detail}", failure.kind)),
            Cell::new(failure.step),
            right(failure.count),
            Cell::new(&failure.example),
        ]);
    }
    table
}

fn right(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// Formats a time with three digits in a suitable unit.
fn time(us: f64) -> String {
    let (value, unit) = match us {
        us if us < 1e3 => (us, "µs"),
        us if us < 1e6 => (us / 1e3, "ms"),
        us => (us / 1e6, "s"),
    };
    let digits = match value {
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_with_three_digits_and_unit() {
        let shown = [0.5, 85.26, 999.0, 1000.0, 12_345.0, 99_960.0, 2_500_000.0].map(time);
        assert_eq!(shown, ["0.50 µs", "85.3 µs", "999 µs", "1.00 ms", "12.3 ms", "100 ms", "2.50 s"]);
    }
}
