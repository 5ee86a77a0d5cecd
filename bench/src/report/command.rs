//! `report`: an earlier comparison, as JSON keeps it, shown again.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Deserialize;

use super::{Report, SCHEMA, table, write};

/// Make the page, the Markdown and the charts of a comparison from its JSON.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  isthmus-bench report bench-report/report.json --out site/figures")]
pub(crate) struct Render {
    /// What `compare` wrote.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Where page, Markdown and charts are written [default: beside the file]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Render {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let report = load(&self.file)?;
        let beside = self.file.parent().unwrap_or(Path::new("."));
        write(&report, self.out.as_deref().unwrap_or(beside))?;
        io::stdout().write_all(table::render(&report).as_bytes()).context("cannot print the report")
    }
}

fn load(file: &Path) -> anyhow::Result<Report> {
    #[derive(Deserialize)]
    struct Header {
        schema: String,
    }
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let wrong = || format!("{} is no report of isthmus-bench compare", file.display());
    let header: Header = serde_json::from_str(&text).with_context(wrong)?;
    if header.schema != SCHEMA {
        let schema = header.schema.escape_default();
        bail!("{}: its schema is \"{schema}\"; this program reads \"{SCHEMA}\"", file.display());
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
    fn what_cannot_be_read_says_why() {
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
