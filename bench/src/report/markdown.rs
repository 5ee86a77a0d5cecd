//! Renders a report as Markdown, with charts in separate files.

use std::fmt::{self, Write as _};

use super::digest::{date, heading, lines, named, short, spread};
use super::page::{known_figures, scenarios};
use super::{CaseReport, Report, svg};

/// Directory of the charts, relative to the text.
pub(super) const CHARTS: &str = "charts";

/// Renders the Markdown text.
pub(super) fn render(report: &Report) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = write_report(&mut text, report);
    text
}

/// The file name and content of each chart.
pub(super) fn charts(report: &Report) -> Vec<(String, String)> {
    named(report).iter().flat_map(|(name, case)| charts_of(name, case)).collect()
}

fn charts_of(name: &str, case: &CaseReport) -> Vec<(String, String)> {
    let bars = svg::bars(case, &case.headline).map(|chart| (format!("{name}.svg"), chart.standalone()));
    let curves = svg::curves(case).map(|chart| (format!("{name}-latency.svg"), chart.standalone()));
    bars.into_iter().chain(curves).collect()
}

fn write_report(text: &mut String, report: &Report) -> fmt::Result {
    let machine = &report.machine;
    writeln!(text, "# isthmus-bench: Isthmus compared with other proxies\n")?;
    let (cpu, kernel) = (escape(&machine.cpu), escape(&machine.kernel));
    writeln!(text, "{}, {cpu}, {} cores, Linux {kernel}.", date(report.began_unix), machine.cores)?;
    writeln!(
        text,
        "{} interleaved rounds of {} s; median ± half of the spread; ratio: isthmus ÷ best peer.",
        report.rounds, report.seconds
    )?;
    if let Some(commit) = &report.commit {
        writeln!(text, "Commit {}.", escape(commit))?;
    }
    writeln!(text)?;
    for system in &report.systems {
        writeln!(text, "- {}: {}", escape(&system.name), escape(&system.version))?;
    }
    for warning in &report.warnings {
        writeln!(text, "- **Warning:** {}", escape(warning))?;
    }
    for skipped in &report.skipped {
        writeln!(text, "- **Skipped:** {}: {}", escape(&skipped.what), escape(&skipped.why))?;
    }
    writeln!(text, "\n| case | figure | isthmus | best peer | ratio | result |\n|---|---|---|---|---|---|")?;
    for line in lines(report) {
        let best =
            line.best.map_or_else(String::new, |(name, best)| format!("{name} {}", spread(best.summary)));
        let ratio = line.ratio().map_or_else(String::new, short);
        let verdict = line.verdict().map_or("", super::digest::Verdict::word);
        let title = if line.is_headline() { escape(&line.case.title) } else { String::new() };
        let (figure, best, ours) = (escape(&heading(line.ours)), escape(&best), spread(line.ours.summary));
        writeln!(text, "| {title} | {figure} | {ours} | {best} | {ratio} | {verdict} |")?;
    }
    for scenario in scenarios(report) {
        writeln!(text, "\n## {}", escape(scenario))?;
        for (name, case) in named(report).iter().filter(|(_, case)| case.scenario == scenario) {
            write_case(text, name, case)?;
        }
    }
    Ok(())
}

fn write_case(text: &mut String, name: &str, case: &CaseReport) -> fmt::Result {
    writeln!(text, "\n### {}\n", escape(&case.title))?;
    for (name, _) in charts_of(name, case) {
        writeln!(text, "![{}]({CHARTS}/{name})", escape(&case.title))?;
    }
    let cells = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
    let names = case.systems.iter().map(|row| escape(&row.system));
    writeln!(text, "\n{}", cells(std::iter::once("figure".into()).chain(names).collect()))?;
    writeln!(text, "|{}", "---|".repeat(case.systems.len() + 1))?;
    for figure in known_figures(case) {
        let name = escape(&heading(figure));
        let values = case
            .systems
            .iter()
            .map(|row| row.figure(&figure.key).map_or_else(String::new, |figure| spread(figure.summary)));
        writeln!(text, "{}", cells(std::iter::once(name).chain(values).collect()))?;
    }
    for row in &case.systems {
        for failure in &row.failures {
            writeln!(text, "\n**{} failed:** {}", escape(&row.system), escape(failure))?;
        }
    }
    Ok(())
}

/// Escapes text, so that it cannot form markup or break a table.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '!' | '~' | '$' => escaped.extend(['\\', c]),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}
