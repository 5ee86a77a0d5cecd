//! Renders the report as a table for a terminal.

use std::fmt::Write as _;

use comfy_table::{Cell, CellAlignment, LineStyle, Table, TableStyle};

use super::report::{Report, RouteReport};
use super::visit::Plan;
use super::world::Shapes;
use crate::report::Machine;
use crate::stats::Summary;
use crate::wan::units::Bytes;

/// A row on the routes: its title and its value.
type Fact = (&'static str, fn(&RouteReport) -> String);

const FACTS: [Fact; 6] = [
    ("links a byte crosses", |route| route.links.to_string()),
    ("times a byte is encrypted", |route| route.encryptions.to_string()),
    ("times a byte is decrypted", |route| route.encryptions.to_string()),
    ("link round trips to the first byte", |route| route.link_round_trips_to_first_byte.to_string()),
    ("round trip of the links alone, ms", |route| format!("{:.1}", route.links_round_trip_ms)),
    ("key exchange of the client", |route| route.key_exchange.clone()),
];

/// Renders the report as text.
pub(super) fn render(report: &Report) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = header(&mut text, report);
    let _ = writeln!(text, "{}", table(report).trim_fmt());
    let _ = footer(&mut text, report);
    text
}

fn header(text: &mut String, report: &Report) -> std::fmt::Result {
    let Machine { cpu, cores, kernel, .. } = &report.machine;
    writeln!(text, "{cpu}, {cores} cores, Linux {kernel}, TCP with {}", report.setting.congestion_control)?;
    for version in &report.setting.versions {
        writeln!(text, "  {version}")?;
    }
    let Shapes { west_centre, centre_east, west_east } = report.setting.shapes;
    writeln!(text, "  west-centre  {west_centre}\n  centre-east  {centre_east}\n  west-east    {west_east}")?;
    let (rounds, Plan { round_trips, size }) = (report.rounds, report.setting.plan);
    let size = Bytes(size);
    writeln!(
        text,
        "{rounds} interleaved rounds of {round_trips} round trips, downloads of {size}; median (min..max)"
    )
}

fn table(report: &Report) -> Table {
    let mut table = Table::new();
    let line = |fill| LineStyle::none().fill(fill).junction(fill);
    let style = TableStyle::new().top_border(line('─')).header_separator(line('═'));
    table.load_style(style.bottom_border(line('─')));
    table.set_header(["", "direct", "hairpin", "direct/hairpin"]);
    let mut add = |title: String, cells: [String; 3]| {
        let cells = cells.map(|cell| Cell::new(cell).set_alignment(CellAlignment::Right));
        table.add_row(std::iter::once(Cell::new(title)).chain(cells));
    };
    for (title, fact) in FACTS {
        add(title.into(), [fact(&report.direct), fact(&report.hairpin), String::new()]);
    }
    for figure in &report.figures {
        let ratio = figure.ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"));
        add(format!("{}, {}", figure.title, figure.unit), [cell(figure.direct), cell(figure.hairpin), ratio]);
    }
    table
}

fn footer(text: &mut String, report: &Report) -> std::fmt::Result {
    for (name, route) in [("direct", &report.direct), ("hairpin", &report.hairpin)] {
        let whose =
            if route.service_saw == report.setting.client_id { "the client" } else { "not the client" };
        writeln!(text, "{name}: the service saw {}, {whose}", route.service_saw)?;
    }
    let [west_centre, centre_east, west_east] = report.setting.dropped;
    let dropped = format!("west-centre {west_centre}, centre-east {centre_east}, west-east {west_east}");
    writeln!(text, "packets dropped at full queues: {dropped}")?;
    writeln!(text, "{}", report.verdict)
}

fn cell(summary: Summary) -> String {
    let digits = if summary.max < 10.0 { 3 } else { 1 };
    format!("{:.digits$} ({:.digits$}..{:.digits$})", summary.median, summary.min, summary.max)
}
