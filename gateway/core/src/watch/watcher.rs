//! Watches the directories of one file for events. Events are hints only: the file's metadata decides, and the file is
//! also polled.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use isthmus_watch::{Hint, Written};
use tokio::sync::Notify;

/// What events have reported.
#[derive(Debug, Default)]
pub(super) struct Seen {
    wake: Notify,
    being_written: AtomicBool,
}

impl Seen {
    /// Waits for an event.
    pub(super) async fn something(&self) {
        self.wake.notified().await;
    }

    fn note(&self, hint: Hint<'_>, names: &[OsString]) {
        if let Hint::Changed { path, written } = hint
            && path.file_name().is_some_and(|name| names.iter().any(|own| own == name))
        {
            self.being_written.store(written == Some(Written::Open), Relaxed);
        }
        self.wake.notify_one();
    }
}

/// Watches the directory of a file and that of its link target. A Kubernetes ConfigMap swaps the link `..data` beside
/// the file.
pub(super) struct Watcher {
    seen: Arc<Seen>,
    events: isthmus_watch::Watcher,
}

impl Watcher {
    pub(super) fn new(seen: Arc<Seen>) -> Watcher {
        Watcher { seen, events: isthmus_watch::Watcher::new("the configuration file") }
    }

    /// Whether a writer has the file open.
    pub(super) fn is_being_written(&self) -> bool {
        self.seen.being_written.load(Relaxed)
    }

    pub(super) fn turn_to(&mut self, file: &Path) {
        let target = fs::canonicalize(file).ok();
        let paths = || [Some(file), target.as_deref()].into_iter().flatten();
        let names: Vec<_> = paths().filter_map(Path::file_name).map(OsString::from).collect();
        let seen = Arc::clone(&self.seen);
        if self.events.watch(paths().filter_map(directory), move |hint| seen.note(hint, &names)) {
            self.seen.being_written.store(false, Relaxed);
        }
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
    fn watcher_sees_file_being_written_until_closed_or_replaced() {
        let seen = Seen::default();
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
