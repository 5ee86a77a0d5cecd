//! A report: what a run found out, as JSON keeps it. The only form that figures are passed on in; tables,
//! pages and charts are made from it, now or later, here or elsewhere. Measures nothing.

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

/// Changes when a reader of the JSON would have to change.
pub(crate) const SCHEMA: &str = "isthmus-bench/compare/2";
/// The system that ratios refer to.
pub(crate) const US: &str = "isthmus";
/// No proxy: what the load generator and the kernel can do by themselves.
pub(crate) const DIRECT: &str = "direct";

/// Everything that a run found out.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) schema: String,
    pub(crate) bench_version: String,
    /// Of the checkout that the programs were built in; none if that is not known.
    pub(crate) commit: Option<String>,
    pub(crate) machine: Machine,
    pub(crate) began_unix: u64,
    pub(crate) took_seconds: u64,
    pub(crate) rounds: u16,
    /// Length of one measurement.
    pub(crate) seconds: f64,
    /// The part of the machine that was busy before anything ran, 0 to 1.
    pub(crate) busy_before: f64,
    /// What a reader has to know before believing the figures: a debug build, an interruption.
    pub(crate) warnings: Vec<String>,
    pub(crate) systems: Vec<SystemInfo>,
    /// Systems and cases that were asked for and not measured.
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) cases: Vec<CaseReport>,
}

/// A system that took part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SystemInfo {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) program: String,
}

/// What was left out.
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
    /// The key of the figure that the case is about.
    pub(crate) headline: String,
    /// The least and the most that `cpu_machine` was above `cpu_processes` in any measurement of this
    /// case, as a part of the whole machine; none where no CPU was counted.
    pub(crate) cpu_gap: Option<(f64, f64)>,
    /// The key of the count of the machine's CPU to believe.
    pub(crate) cpu_headline: String,
    pub(crate) systems: Vec<Row>,
}

/// One system's figures in one case.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) system: String,
    pub(crate) figures: Vec<FigureReport>,
    /// Latency at many quantiles, all rounds together; empty where the case has none.
    pub(crate) latency: Vec<Point>,
    /// As fast as without a proxy, within a tenth: the load generator was the limit, not the system.
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
    /// This median divided by ours.
    pub(crate) ratio_to_isthmus: Option<f64>,
    /// This median divided by that without a proxy.
    pub(crate) ratio_to_direct: Option<f64>,
}

/// A point of a distribution: this part of all values is at most so many microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) quantile: f64,
    pub(crate) microseconds: f64,
}

/// Writes every form of the report into a directory, and says so.
pub(crate) fn write(report: &Report, directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    // First what cannot be made again from the rest.
    put(directory, "report.json", &serde_json::to_string(report)?)?;
    eprintln!("wrote report.json into {}", directory.display());
    write_pages(report, directory)
}

/// Writes what is made for people, and says so.
fn write_pages(report: &Report, directory: &Path) -> anyhow::Result<()> {
    let charts = directory.join(markdown::CHARTS);
    fs::create_dir_all(&charts).with_context(|| format!("cannot make {}", charts.display()))?;
    for (name, chart) in markdown::charts(report) {
        put(&charts, &name, &chart)?;
    }
    put(directory, "report.html", &page::render(report))?;
    put(directory, "report.md", &markdown::render(report))?;
    eprintln!("wrote report.html, report.md and charts into {}", directory.display());
    Ok(())
}

fn put(directory: &Path, name: &str, content: &str) -> anyhow::Result<()> {
    let path = directory.join(name);
    fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
}

impl Row {
    pub(crate) fn figure(&self, key: &str) -> Option<&FigureReport> {
        self.figures.iter().find(|figure| figure.key == key)
    }
}
