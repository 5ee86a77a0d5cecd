//! `report`: renders an earlier comparison from its JSON.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Deserialize;

use super::{Report, SCHEMA, table, write, write_pages};

/// Render the page, the Markdown and the charts of a comparison from its JSON.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  isthmus-bench report bench-report/report.json --out site/figures")]
pub(crate) struct Render {
    /// The report.json of `compare`.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Output directory [default: the directory of FILE]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Render {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let report = load(&self.file)?;
        match &self.out {
            Some(out) => write(&report, out)?,
            // A report.json in the directory may belong to another run: it is replaced on request only.
            None => write_pages(&report, beside(&self.file))?,
        }
        io::stdout().write_all(table::render(&report).as_bytes()).context("cannot print the report")
    }
}

/// The directory of a file; the working directory for a bare name.
fn beside(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn load(file: &Path) -> anyhow::Result<Report> {
    #[derive(Deserialize)]
    struct Header {
        schema: String,
    }
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let wrong = || format!("{} is not a report of isthmus-bench compare", file.display());
    let header: Header = serde_json::from_str(&text).with_context(wrong)?;
    if header.schema != SCHEMA {
        let schema = header.schema.escape_default();
        bail!("{}: schema \"{schema}\" is not supported; this version reads \"{SCHEMA}\"", file.display());
    }
    serde_json::from_str(&text).with_context(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        format!("{:#}", load(file.path()).unwrap_err())
    }

    #[test]
    fn report_command_keeps_existing_report_of_another_run() {
        let folder = tempfile::tempdir().unwrap();
        let (file, other) = (folder.path().join("mine.json"), folder.path().join("report.json"));
        let machine = serde_json::json!({"cpu": "", "cores": 1, "memory_kib": 1, "kernel": ""});
        let report = serde_json::json!({
            "schema": SCHEMA, "bench_version": "", "commit": null, "machine": machine, "began_unix": 0,
            "took_seconds": 0, "rounds": 1, "seconds": 1.0, "busy_before": 0.0, "warnings": [], "systems": [],
            "skipped": [], "cases": [],
        });
        fs::write(&file, report.to_string()).unwrap();
        fs::write(&other, "of another run").unwrap();
        Render { file: file.clone(), out: None }.run().unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "of another run");
        assert!(folder.path().join("report.html").exists());
        Render { file, out: Some(folder.path().into()) }.run().unwrap();
        assert!(fs::read_to_string(&other).unwrap().contains(SCHEMA), "replaced on request");
    }

    #[test]
    fn report_path_without_directory_is_in_working_directory() {
        assert_eq!(beside(Path::new("report.json")), Path::new("."));
        assert_eq!(beside(Path::new("a/report.json")), Path::new("a"));
    }

    #[test]
    fn report_command_explains_unreadable_input() {
        assert!(refusal("{\n  \"schema\": ").contains("line 2 column"), "broken JSON");
        assert!(refusal("{}").contains("missing field `schema`"));
        let other = refusal("{\"schema\": \"isthmus-bench/compare/1\"}");
        assert!(other.contains("compare/1") && other.contains(SCHEMA), "{other}");
        let half = refusal(&format!("{{\"schema\": \"{SCHEMA}\"}}"));
        assert!(half.contains("missing field"), "{half}");
        let nothing = load(Path::new("/no/such/file.json")).unwrap_err();
        assert!(format!("{nothing:#}").contains("/no/such/file.json"));
    }
}
