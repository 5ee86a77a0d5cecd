//! Renders a report as tables for a terminal.

use std::fmt::Write as _;

use comfy_table::{Cell, CellAlignment, Table, presets::NOTHING};

use super::digest::spread;
use super::{CaseReport, FigureReport, Report, Row};
use crate::sample::{CPU_MACHINE, CPU_PROCESSES};

/// Renders the report as text.
pub(crate) fn render(report: &Report) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = header(&mut text, report);
    for case in &report.cases {
        let _ = section(&mut text, case);
    }
    text
}

fn header(text: &mut String, report: &Report) -> std::fmt::Result {
    let machine = &report.machine;
    writeln!(text, "{}, {} cores, Linux {}", machine.cpu, machine.cores, machine.kernel)?;
    let (rounds, seconds) = (report.rounds, report.seconds);
    writeln!(
        text,
        "{rounds} interleaved rounds of {seconds} s; median ±half of the spread, ×ratio to isthmus"
    )?;
    writeln!(text, "busy before the start: {:.1} % of the machine", report.busy_before * 100.0)?;
    for system in &report.systems {
        writeln!(text, "  {:8} {}", system.name, system.version)?;
    }
    for skipped in &report.skipped {
        writeln!(text, "  SKIPPED {}: {}", skipped.what, skipped.why)?;
    }
    for warning in &report.warnings {
        writeln!(text, "  WARNING: {warning}")?;
    }
    Ok(())
}

fn section(text: &mut String, case: &CaseReport) -> std::fmt::Result {
    writeln!(text, "\n{}: {}", case.scenario, case.title)?;
    let columns = columns(case);
    let mut table = Table::new();
    table.load_style(NOTHING);
    let titles = columns.iter().map(|figure| {
        let mark = if figure.key == case.cpu_headline { "*" } else { "" };
        Cell::new(format!("{}{mark}\n{}", figure.title, figure.unit)).set_alignment(CellAlignment::Right)
    });
    table.set_header(std::iter::once(Cell::new("")).chain(titles));
    for row in &case.systems {
        let cells = columns.iter().map(|column| {
            let figure = row.figure(&column.key);
            Cell::new(figure.map_or_else(|| "-".into(), cell)).set_alignment(CellAlignment::Right)
        });
        let mark = if row.bounded_by_generator { " ≈" } else { "" };
        table.add_row(std::iter::once(Cell::new(format!("{}{mark}", row.system))).chain(cells));
    }
    writeln!(text, "{}", table.trim_fmt())?;
    if let Some((least, most)) = case.cpu_gap
        && columns.iter().any(|figure| figure.key == case.cpu_headline)
    {
        let (least, most) = (least * 100.0, most * 100.0);
        writeln!(
            text,
            "* the CPU figure to compare: /proc/stat counted {least:+.1}..{most:+.1} % of the machine beyond bench + proxy"
        )?;
    }
    if case.systems.iter().any(|row| row.bounded_by_generator) {
        writeln!(
            text,
            "≈ within 10 % of direct, or its worker is not busy: the load generator is the limit, not the system"
        )?;
    }
    for Row { system, failures, .. } in &case.systems {
        for failure in failures {
            writeln!(text, "FAILED {system}: {failure}")?;
        }
    }
    Ok(())
}

/// Figures shown in the JSON and the page only, so that the table fits a terminal.
const DETAILS: [&str; 7] = ["p90", "max", "cpu_user", "cpu_system", "peak_rss", "descriptors", "switches"];

/// The figures of all systems without the details, in the order of first appearance.
fn columns(case: &CaseReport) -> Vec<&FigureReport> {
    let mut columns: Vec<&FigureReport> = Vec::new();
    for figure in case.systems.iter().flat_map(|row| &row.figures) {
        let key = figure.key.as_str();
        let known = columns.iter().any(|column| column.key == key);
        let other_cpu = [CPU_MACHINE, CPU_PROCESSES].contains(&key) && key != case.cpu_headline;
        if !known && !other_cpu && !DETAILS.contains(&key) {
            columns.push(figure);
        }
    }
    columns
}

fn cell(figure: &FigureReport) -> String {
    let ratio = figure.ratio_to_isthmus.map_or_else(String::new, |ratio| format!(" ×{ratio:.2}"));
    format!("{}{ratio}", spread(figure.summary))
}
