//! Watches directories for changes of the files in them. Events are only hints: whoever gets one checks the files
//! itself, and also checks them without any, because some file systems report nothing.

mod file;

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};

pub use file::FileWatcher;

/// What an event says of a file's writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The file was written, and its writer still has it open.
    Open,
    /// Its writer closed it, or it was created.
    Closed,
    /// Another file was renamed over it.
    Replaced,
}

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint<'a> {
    /// Something happened to a file.
    Changed {
        /// Its path.
        path: &'a Path,
        /// What happened to its content, if the event tells.
        written: Option<Written>,
    },
    /// Events may have been lost.
    Lost,
}

/// Watches directories rather than files, because a rename or a swapped link changes a name in a directory.
pub struct Watcher {
    what: &'static str,
    watcher: Option<RecommendedWatcher>,
    places: Vec<Place>,
    has_complained: bool,
}

/// A directory with its device and inode: the same path may lead to another one later.
type Place = (PathBuf, u64, u64);

impl Watcher {
    /// A watcher that watches nothing yet; `what` names its files in the log.
    #[must_use]
    pub fn new(what: &'static str) -> Watcher {
        Watcher { what, watcher: None, places: Vec::new(), has_complained: false }
    }

    /// Whether events arrive.
    #[must_use]
    pub fn has_events(&self) -> bool {
        self.watcher.is_some()
    }

    /// Watches the existing ones of these directories. Returns whether events of earlier changes may be missing, because
    /// a directory is another one than before, or because none can be watched.
    pub fn watch<'a>(
        &mut self,
        directories: impl IntoIterator<Item = &'a Path>,
        on_hint: impl Fn(Hint<'_>) + Send + 'static,
    ) -> bool {
        let mut places: Vec<_> = directories.into_iter().filter_map(place).collect();
        places.dedup_by_key(|(_, device, inode)| (*device, *inode));
        if self.watcher.is_some() && places == self.places {
            return false;
        }
        self.watcher = None;
        if places.is_empty() {
            return true;
        }
        match start(self.what, &places, on_hint) {
            Ok(watcher) => {
                self.watcher = Some(watcher);
                self.places = places;
                self.has_complained = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.has_complained, true) {
                    let what = self.what;
                    let directories: Vec<_> = places.iter().map(|(directory, ..)| directory).collect();
                    tracing::warn!(?directories, %error, "no file system events for {what}; polling it");
                }
            }
        }
        true
    }
}

fn place(directory: &Path) -> Option<Place> {
    let metadata = fs::metadata(directory).ok()?;
    Some((directory.to_owned(), metadata.dev(), metadata.ino()))
}

fn start(
    what: &'static str,
    places: &[Place],
    on_hint: impl Fn(Hint<'_>) + Send + 'static,
) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event| match event {
        Ok(event) => hints(&event, &on_hint),
        Err(error) => {
            tracing::warn!(%error, "file system events of {what} may be lost");
            on_hint(Hint::Lost);
        }
    })?;
    for (directory, ..) in places {
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

fn hints(event: &Event, on_hint: &impl Fn(Hint<'_>)) {
    // Reads are events, too, some of them our own.
    if event.kind.is_access() && event.kind != EventKind::Access(AccessKind::Close(AccessMode::Write)) {
        return;
    }
    if event.paths.is_empty() || event.need_rescan() {
        return on_hint(Hint::Lost);
    }
    let written = written(&event.kind);
    event.paths.iter().for_each(|path| on_hint(Hint::Changed { path, written }));
}

fn written(kind: &EventKind) -> Option<Written> {
    match kind {
        EventKind::Modify(ModifyKind::Data(_)) => Some(Written::Open),
        // Creating a link is an event, too, without a close.
        EventKind::Create(_) | EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
            Some(Written::Closed)
        }
        EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both)) => Some(Written::Replaced),
        _ => None,
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher")
            .field("what", &self.what)
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use notify::event::{CreateKind, DataChange, Flag};

    use super::*;

    fn hints_of(event: Event) -> Vec<Option<Option<Written>>> {
        let seen = RefCell::new(Vec::new());
        hints(&event, &|hint| {
            seen.borrow_mut().push(match hint {
                Hint::Changed { path, written } => {
                    assert_eq!(path, Path::new("/etc/a.yaml"));
                    Some(written)
                }
                Hint::Lost => None,
            });
        });
        seen.into_inner()
    }

    #[test]
    fn hint_tells_whether_a_writer_has_the_file_open() {
        let of = |kind| hints_of(Event::new(kind).add_path("/etc/a.yaml".into()));
        assert_eq!(of(EventKind::Modify(ModifyKind::Data(DataChange::Any))), [Some(Some(Written::Open))]);
        assert_eq!(
            of(EventKind::Access(AccessKind::Close(AccessMode::Write))),
            [Some(Some(Written::Closed))]
        );
        assert_eq!(of(EventKind::Create(CreateKind::File)), [Some(Some(Written::Closed))]);
        assert_eq!(of(EventKind::Modify(ModifyKind::Name(RenameMode::To))), [Some(Some(Written::Replaced))]);
        assert_eq!(of(EventKind::Modify(ModifyKind::Name(RenameMode::From))), [Some(None)]);
        assert_eq!(of(EventKind::Access(AccessKind::Open(AccessMode::Any))), [], "a read");
    }

    #[test]
    fn hint_tells_that_events_were_lost() {
        assert_eq!(hints_of(Event::new(EventKind::Any)), [None], "no path");
        let overflow = Event::new(EventKind::Other).add_path("/etc/a.yaml".into()).set_flag(Flag::Rescan);
        assert_eq!(hints_of(overflow), [None]);
    }
}
