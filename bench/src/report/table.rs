//! The report as tables for a terminal.

use std::fmt::Write as _;

use comfy_table::{Cell, CellAlignment, Table, presets::UTF8_HORIZONTAL_ONLY};

use super::{CaseReport, FigureReport, Report, Row};

/// The whole report as text.
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
    writeln!(text, "{rounds} interleaved rounds of {seconds} s; median (min..max) ×ratio to isthmus")?;
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
    table.load_style(UTF8_HORIZONTAL_ONLY);
    let titles = columns.iter().map(|figure| {
        let headline = if figure.key == case.cpu_headline { " *" } else { "" };
        format!("{}{headline}\n{}", figure.title, figure.unit)
    });
    table.set_header(std::iter::once(String::new()).chain(titles));
    for row in &case.systems {
        let cells = columns.iter().map(|column| {
            let figure = row.figure(&column.key);
            Cell::new(figure.map_or_else(|| "-".into(), cell)).set_alignment(CellAlignment::Right)
        });
        let mark = if row.bounded_by_generator { " ≈" } else { "" };
        table.add_row(std::iter::once(Cell::new(format!("{}{mark}", row.system))).chain(cells));
    }
    writeln!(text, "{}", table.trim_fmt())?;
    if let Some((least, most)) = case.cpu_gap {
        let (least, most) = (least * 100.0, most * 100.0);
        let gap = format!("/proc/stat saw {least:+.1}..{most:+.1} % of the machine beyond bench + proxy");
        let counted = columns.iter().any(|figure| figure.key == case.cpu_headline);
        let mark = if counted { "* the count of CPU to compare by: " } else { "" };
        writeln!(text, "{mark}{gap}")?;
    }
    if case.systems.iter().any(|row| row.bounded_by_generator) {
        writeln!(
            text,
            "≈ as fast as no proxy, within a tenth: the load generator is the limit, not the system"
        )?;
    }
    for Row { system, failures, .. } in &case.systems {
        for failure in failures {
            writeln!(text, "FAILED {system}: {failure}")?;
        }
    }
    Ok(())
}

/// What is left to the JSON and the page, so that a table fits a terminal.
const DETAILS: [&str; 6] = ["p90", "cpu_user", "cpu_system", "peak_rss", "descriptors", "switches"];

/// Every figure that any system has, in the order of its first appearance, without the details.
fn columns(case: &CaseReport) -> Vec<&FigureReport> {
    let mut columns: Vec<&FigureReport> = Vec::new();
    for figure in case.systems.iter().flat_map(|row| &row.figures) {
        let known = columns.iter().any(|column| column.key == figure.key);
        if !known && !DETAILS.contains(&figure.key.as_str()) {
            columns.push(figure);
        }
    }
    columns
}

fn cell(figure: &FigureReport) -> String {
    let summary = figure.summary;
    let digits = match summary.max {
        _ if figure.unit.is_empty() => 0,
        small if small < 10.0 => 3,
        large => usize::from(large < 1000.0),
    };
    let mut text =
        format!("{:.digits$} ({:.digits$}..{:.digits$})", summary.median, summary.min, summary.max);
    if let Some(ratio) = figure.ratio_to_isthmus {
        // Writing into a String cannot fail.
        let _ = write!(text, " ×{ratio:.2}");
    }
    text
}
