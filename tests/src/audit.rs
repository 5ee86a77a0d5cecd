//! Reads the audit log of a gateway.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;

use crate::log::Line;
use crate::wait::until_some;

/// A file for an audit log.
#[derive(Debug)]
pub struct Audit {
    folder: TempDir,
}

impl Default for Audit {
    fn default() -> Self {
        Audit::new()
    }
}

impl Audit {
    /// A file that does not exist yet.
    #[must_use]
    pub fn new() -> Audit {
        Audit { folder: tempfile::Builder::new().prefix("isthmus-audit-").tempdir().unwrap() }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("audit.log")
    }

    /// The key of a gateway's file that names it.
    #[must_use]
    pub fn yaml(&self) -> String {
        format!("audit_log: {}", self.path().display())
    }

    /// Every line so far.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        let text = fs::read_to_string(self.path()).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| Line(serde_json::from_str::<Value>(line).unwrap())).collect()
    }

    /// Waits for a matching line.
    #[track_caller]
    pub fn wait(&self, what: &str, wanted: impl Fn(&Line) -> bool) -> Line {
        until_some(&format!("the audit log has {what}; it has {:?}", self.lines()), || {
            self.lines().into_iter().find(|line| wanted(line))
        })
    }
}
