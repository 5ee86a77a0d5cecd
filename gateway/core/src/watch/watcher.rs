//! Watches the directories of one file for events. Events are only hints: the file's metadata decides, and the file is
//! also polled.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};
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

    fn event(&self, event: notify::Result<Event>, names: &[OsString]) {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(%error, "cannot watch the configuration file");
                return self.wake.notify_one();
            }
        };
        // Reads cause events, too, including the gateway's own.
        let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
        if event.kind.is_access() && event.kind != closed {
            return;
        }
        let is_ours =
            |path: &PathBuf| path.file_name().is_some_and(|name| names.iter().any(|own| own == name));
        if event.paths.iter().any(is_ours) {
            self.being_written.store(matches!(event.kind, EventKind::Modify(ModifyKind::Data(_))), Relaxed);
        }
        self.wake.notify_one();
    }
}

/// Watches directories, because a rename or swap changes a name in a directory. A Kubernetes ConfigMap swaps the link
/// `..data` beside the file.
pub(super) struct Watcher {
    seen: Arc<Seen>,
    watcher: Option<RecommendedWatcher>,
    places: Vec<Place>,
    has_complained: bool,
}

/// A directory with its device and inode: the same path may refer to another one later.
type Place = (PathBuf, u64, u64);

impl Watcher {
    pub(super) fn new(seen: Arc<Seen>) -> Watcher {
        Watcher { seen, watcher: None, places: Vec::new(), has_complained: false }
    }

    /// Whether a writer has the file open.
    pub(super) fn is_being_written(&self) -> bool {
        self.seen.being_written.load(Relaxed)
    }

    /// Watches the directory of `file` and the one of its link target.
    pub(super) fn turn_to(&mut self, file: &Path) {
        let target = fs::canonicalize(file).ok();
        let mut places: Vec<_> =
            [Some(file), target.as_deref()].into_iter().flatten().filter_map(place).collect();
        places.dedup_by_key(|(_, device, inode)| (*device, *inode));
        if self.watcher.is_some() && places == self.places {
            return;
        }
        let names = [Some(file), target.as_deref()].into_iter().flatten().filter_map(Path::file_name);
        match watch(&places, names.map(OsString::from).collect(), Arc::clone(&self.seen)) {
            Ok(watcher) => {
                self.watcher = Some(watcher);
                self.places = places;
                self.has_complained = false;
            }
            Err(error) => {
                self.watcher = None;
                if !std::mem::replace(&mut self.has_complained, true) {
                    tracing::warn!(file = %file.display(), %error, "no file events for the configuration; polling it");
                }
            }
        }
        self.seen.being_written.store(false, Relaxed);
    }
}

fn place(file: &Path) -> Option<Place> {
    let directory = match file.parent()? {
        parent if parent.as_os_str().is_empty() => Path::new("."),
        parent => parent,
    };
    let metadata = fs::metadata(directory).ok()?;
    Some((directory.to_owned(), metadata.dev(), metadata.ino()))
}

fn watch(places: &[Place], names: Vec<OsString>, seen: Arc<Seen>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event| seen.event(event, &names))?;
    for (directory, ..) in places {
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

#[cfg(test)]
mod tests {
    use notify::event::{CreateKind, DataChange, RenameMode};

    use super::*;

    #[test]
    fn watcher_sees_file_being_written_until_closed_or_replaced() {
        let seen = Seen::default();
        let names = [OsString::from("gateway.yaml")];
        let event = |kind, name: &str| {
            seen.event(Ok(Event::new(kind).add_path(Path::new("/etc").join(name))), &names);
            seen.being_written.load(Relaxed)
        };
        let written = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        assert!(!event(written, "gateway.yaml.swp"), "another file");
        assert!(event(written, "gateway.yaml"));
        assert!(event(EventKind::Access(AccessKind::Open(AccessMode::Any)), "gateway.yaml"), "read by us");
        assert!(event(EventKind::Create(CreateKind::Folder), "..data_tmp"), "another file");
        assert!(!event(EventKind::Access(AccessKind::Close(AccessMode::Write)), "gateway.yaml"));
        assert!(event(written, "gateway.yaml"));
        assert!(!event(EventKind::Modify(ModifyKind::Name(RenameMode::To)), "gateway.yaml"));
    }
}
