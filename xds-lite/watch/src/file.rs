//! Watches the directories of one file. Events are hints only: whoever gets one reads the file, and also reads it
//! without any.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::{Hint, Watcher, Written};

/// Watches the directory of a file and that of its link target. A Kubernetes ConfigMap swaps the link `..data` beside
/// the file.
pub struct FileWatcher {
    seen: Arc<Seen>,
    events: Watcher,
}

struct Seen {
    wake: Box<dyn Fn() + Send + Sync>,
    being_written: AtomicBool,
}

impl Seen {
    fn note(&self, hint: Hint<'_>, names: &[OsString]) {
        if let Hint::Changed { path, written } = hint
            && path.file_name().is_some_and(|name| names.iter().any(|own| own == name))
        {
            self.being_written.store(written == Some(Written::Open), Relaxed);
        }
        (self.wake)();
    }
}

impl FileWatcher {
    /// A watcher that watches nothing yet; `what` names the file in the log, and each event calls `wake`.
    #[must_use]
    pub fn new(what: &'static str, wake: impl Fn() + Send + Sync + 'static) -> FileWatcher {
        let seen = Seen { wake: Box::new(wake), being_written: AtomicBool::new(false) };
        FileWatcher { seen: Arc::new(seen), events: Watcher::new(what) }
    }

    /// Whether a writer has the file open.
    #[must_use]
    pub fn is_being_written(&self) -> bool {
        self.seen.being_written.load(Relaxed)
    }

    /// Watches this file, wherever its link leads now.
    pub fn turn_to(&mut self, file: &Path) {
        let target = fs::canonicalize(file).ok();
        let paths = || [Some(file), target.as_deref()].into_iter().flatten();
        let names: Vec<_> = paths().filter_map(Path::file_name).map(OsString::from).collect();
        let seen = Arc::clone(&self.seen);
        if self.events.watch(paths().filter_map(directory), move |hint| seen.note(hint, &names)) {
            self.seen.being_written.store(false, Relaxed);
        }
    }
}

impl fmt::Debug for FileWatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileWatcher").field("events", &self.events).finish_non_exhaustive()
    }
}

fn directory(file: &Path) -> Option<&Path> {
    let parent = file.parent()?;
    Some(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_watcher_sees_file_being_written_until_closed_or_replaced() {
        let seen = Seen { wake: Box::new(|| {}), being_written: AtomicBool::new(false) };
        let names = [OsString::from("gateway.yaml")];
        let event = |written, name: &str| {
            seen.note(Hint::Changed { path: &Path::new("/etc").join(name), written }, &names);
            seen.being_written.load(Relaxed)
        };
        assert!(!event(Some(Written::Open), "gateway.yaml.swp"), "another file");
        assert!(event(Some(Written::Open), "gateway.yaml"));
        assert!(event(Some(Written::Closed), "..data_tmp"), "another file");
        assert!(!event(Some(Written::Closed), "gateway.yaml"));
        assert!(event(Some(Written::Open), "gateway.yaml"));
        assert!(!event(Some(Written::Replaced), "gateway.yaml"));
    }
}
