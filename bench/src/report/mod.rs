//! The report of a comparison as data. Its JSON is the exchange format; tables, pages and charts are rendered
//! from it.

mod command;
mod digest;
mod machine;
mod markdown;
mod page;
mod summary;
mod svg;
pub(crate) mod table;

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

pub(crate) use command::Render;
pub(crate) use machine::{Machine, unix_time};
pub(crate) use summary::{Measurement, case_report};

use crate::stats::Summary;

/// Schema name; changes with every incompatible change.
pub(crate) const SCHEMA: &str = "isthmus-bench/compare/2";
/// The reference system of the ratios.
pub(crate) const US: &str = "isthmus";
/// The direct connection: the limit of the load generator and the kernel.
pub(crate) const DIRECT: &str = "direct";

/// The result of a comparison.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) schema: String,
    pub(crate) bench_version: String,
    /// Commit of the working directory; `None` if unknown.
    pub(crate) commit: Option<String>,
    pub(crate) machine: Machine,
    pub(crate) began_unix: u64,
    pub(crate) took_seconds: u64,
    pub(crate) rounds: u16,
    /// Length of one measurement, in seconds.
    pub(crate) seconds: f64,
    /// Share of the machine that was busy before the start, 0 to 1.
    pub(crate) busy_before: f64,
    /// Caveats such as a debug build or an interruption.
    pub(crate) warnings: Vec<String>,
    pub(crate) systems: Vec<SystemInfo>,
    /// Requested systems and cases that were not measured.
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) cases: Vec<CaseReport>,
}

/// A system in the comparison.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SystemInfo {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) program: String,
}

/// A skipped system or case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Skipped {
    pub(crate) what: String,
    pub(crate) why: String,
}

/// One case for all systems.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CaseReport {
    pub(crate) scenario: String,
    pub(crate) title: String,
    /// Key of the headline figure.
    pub(crate) headline: String,
    /// Minimum and maximum of `cpu_machine` minus `cpu_processes` over the measurements of this case, as a
    /// share of the machine; `None` without CPU figures.
    pub(crate) cpu_gap: Option<(f64, f64)>,
    /// Key of the more reliable CPU figure.
    pub(crate) cpu_headline: String,
    pub(crate) systems: Vec<Row>,
}

/// The figures of one system in one case.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) system: String,
    pub(crate) figures: Vec<FigureReport>,
    /// Latency quantiles over all rounds; empty if the case has no latency.
    pub(crate) latency: Vec<Point>,
    /// Within 10 % of the direct connection, or its only worker was idle for more than 10 % of the time: the load
    /// generator was the limit, not the system.
    pub(crate) bounded_by_generator: bool,
    pub(crate) failures: Vec<String>,
}

/// One figure over all rounds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FigureReport {
    pub(crate) key: String,
    pub(crate) title: String,
    pub(crate) unit: String,
    pub(crate) more_is_better: bool,
    #[serde(flatten)]
    pub(crate) summary: Summary,
    pub(crate) samples: Vec<f64>,
    /// This median divided by that of Isthmus.
    pub(crate) ratio_to_isthmus: Option<f64>,
    /// This median divided by that of the direct connection.
    pub(crate) ratio_to_direct: Option<f64>,
}

/// A point of a distribution: this share of the values is at most this many microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) quantile: f64,
    pub(crate) microseconds: f64,
}

/// Writes all forms of the report into a directory.
pub(crate) fn write(report: &Report, directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    // The JSON first: the other forms can be rendered from it again.
    write_file(directory, "report.json", &serde_json::to_string(report)?)?;
    eprintln!("wrote report.json to {}", directory.display());
    write_pages(report, directory)
}

/// Writes the human-readable forms.
fn write_pages(report: &Report, directory: &Path) -> anyhow::Result<()> {
    let charts = directory.join(markdown::CHARTS);
    fs::create_dir_all(&charts).with_context(|| format!("cannot create {}", charts.display()))?;
    for (name, chart) in markdown::charts(report) {
        write_file(&charts, &name, &chart)?;
    }
    write_file(directory, "report.html", &page::render(report))?;
    write_file(directory, "report.md", &markdown::render(report))?;
    eprintln!("wrote report.html, report.md and charts to {}", directory.display());
    Ok(())
}

fn write_file(directory: &Path, name: &str, content: &str) -> anyhow::Result<()> {
    let path = directory.join(name);
    fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
}

impl Row {
    pub(crate) fn figure(&self, key: &str) -> Option<&FigureReport> {
        self.figures.iter().find(|figure| figure.key == key)
    }
}
