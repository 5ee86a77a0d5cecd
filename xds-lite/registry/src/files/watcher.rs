//! Watches a registry directory: tells from file system events which files to scan, and has all of them
//! scanned every second. Events are hints only; a scan decides.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::is_ours;
use super::settling::Written;

/// The interval of full scans, which find what events miss: a write behind a link, or on a shared file
/// system.
const SCAN_INTERVAL: Duration = Duration::from_secs(1);
/// With more changed files than this, all are scanned.
const MAX_CHANGED: usize = 64;
/// The number of files whose write events are recorded; the changes of others show when they are scanned.
const MOST_WRITTEN: usize = 65_536;

/// The files to scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ChangedPaths {
    /// Files with these names; may be empty.
    At(BTreeSet<OsString>),
    /// All files.
    Everywhere,
}

impl Default for ChangedPaths {
    fn default() -> ChangedPaths {
        ChangedPaths::NOWHERE
    }
}

impl ChangedPaths {
    const NOWHERE: ChangedPaths = ChangedPaths::At(BTreeSet::new());

    /// Adds a path with an event. The watcher decides whether paths are absolute.
    fn add(&mut self, path: &Path) {
        let ChangedPaths::At(names) = self else { return };
        let name = path.file_name().unwrap_or_default();
        let (is_ours, bytes) = (is_ours(path), name.as_encoded_bytes());
        if is_ours && names.len() < MAX_CHANGED {
            names.insert(name.to_owned());
        } else if is_ours || !bytes.starts_with(b".") || bytes.starts_with(b"..") {
            // Of hidden files only `..data`, which Kubernetes swaps, leads to registry files.
            *self = ChangedPaths::Everywhere;
        }
    }
}

/// The events since the previous turn.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) at: ChangedPaths,
    /// The last write event of each file.
    pub(super) written: BTreeMap<OsString, Written>,
    /// Events may have been lost.
    pub(super) was_lost: bool,
}

impl Turn {
    fn note(&mut self, event: notify::Result<Event>) {
        let Ok(event) = event else { return self.lose() };
        if is_reading(&event) {
            return;
        }
        if event.paths.is_empty() || event.need_rescan() {
            return self.lose();
        }
        let written = written(&event.kind);
        for path in &event.paths {
            self.at.add(path);
            let Some((name, written)) = path.file_name().zip(written).filter(|_| is_ours(path)) else {
                continue;
            };
            if self.written.len() < MOST_WRITTEN || self.written.contains_key(name) {
                self.written.insert(name.to_owned(), written);
            }
        }
    }

    fn lose(&mut self) {
        *self = Turn { at: ChangedPaths::Everywhere, was_lost: true, ..Turn::default() };
    }
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

/// Watches one directory.
#[derive(Default)]
pub(super) struct Watcher {
    watched: Option<Watched>,
    happened: Arc<Mutex<Turn>>,
    looked: Option<Instant>,
    has_complained: bool,
}

/// A directory by device and inode: the same path may lead to another one later.
struct Watched {
    place: (u64, u64),
    _watcher: RecommendedWatcher,
}

impl Watcher {
    /// The files to scan now; all of them if the directory has no events.
    pub(super) fn turn(&mut self, folder: &Path, now: Instant) -> Turn {
        let is_due = self.looked.is_none_or(|at| now.saturating_duration_since(at) >= SCAN_INTERVAL);
        // Before the scan, so that no change falls between the two.
        if is_due {
            self.looked = Some(now);
            self.watch_directory(folder);
        }
        let mut happened = self.happened.lock().unwrap_or_else(PoisonError::into_inner);
        let mut happened = std::mem::take(&mut *happened);
        if is_due || self.watched.is_none() {
            happened.at = ChangedPaths::Everywhere;
        }
        happened
    }

    /// Makes the next turn scan all files.
    pub(super) fn expect_changes(&mut self) {
        self.looked = None;
    }

    fn watch_directory(&mut self, folder: &Path) {
        let place = fs::metadata(folder).map(|facts| (facts.dev(), facts.ino())).ok();
        if place.is_some() && self.watched.as_ref().map(|watched| watched.place) == place {
            return;
        }
        self.watched = None;
        self.happened.lock().unwrap_or_else(PoisonError::into_inner).lose();
        // The scan reports a missing directory.
        let Some(place) = place else { return };
        match watch(folder, Arc::clone(&self.happened)) {
            Ok(watcher) => {
                self.watched = Some(Watched { place, _watcher: watcher });
                self.has_complained = false;
            }
            Err(error) if !self.has_complained => {
                self.has_complained = true;
                tracing::warn!(folder = %folder.display(), %error, "no file system events for the registry; polling it");
            }
            Err(_) => {}
        }
    }
}

fn watch(folder: &Path, happened: Arc<Mutex<Turn>>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        happened.lock().unwrap_or_else(PoisonError::into_inner).note(event);
    })?;
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// Reads are events, too, some of them our own.
fn is_reading(event: &Event) -> bool {
    event.kind.is_access() && event.kind != EventKind::Access(AccessKind::Close(AccessMode::Write))
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher").field("has_events", &self.watched.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[track_caller]
    fn until_changed(watcher: &mut Watcher, folder: &Path, now: Instant) -> ChangedPaths {
        for _ in 0..2_000 {
            let paths = watcher.turn(folder, now).at;
            if paths != ChangedPaths::NOWHERE {
                return paths;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("no event came");
    }

    #[test]
    fn watcher_event_names_the_file_and_a_second_without_one_scans_all() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("registry");
        fs::create_dir(&folder).unwrap();
        let (mut watcher, now) = (Watcher::default(), Instant::now());
        assert_eq!(watcher.turn(&folder, now).at, ChangedPaths::Everywhere, "the first turn");
        assert_eq!(watcher.turn(&folder, now).at, ChangedPaths::NOWHERE, "no event");
        fs::write(folder.join("a.yaml"), "services: []").unwrap();
        assert_eq!(until_changed(&mut watcher, &folder, now), ChangedPaths::At(["a.yaml".into()].into()));
        let later = now + SCAN_INTERVAL;
        assert_eq!(watcher.turn(&folder, later).at, ChangedPaths::Everywhere, "without an event");
        std::os::unix::fs::symlink("elsewhere", folder.join("..data")).unwrap();
        while until_changed(&mut watcher, &folder, later) != ChangedPaths::Everywhere {}
    }

    #[test]
    fn watcher_reports_writers_until_they_close_or_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (mut watcher, now) = (Watcher::default(), Instant::now());
        assert!(watcher.turn(dir.path(), now).was_lost, "no events before");
        let mut until = |expected: Written| {
            for _ in 0..2_000 {
                let turn = watcher.turn(dir.path(), now);
                assert!(!turn.was_lost);
                match turn.written.get(std::ffi::OsStr::new("a.yaml")) {
                    Some(written) if *written == expected => return,
                    _ => thread::sleep(Duration::from_millis(5)),
                }
            }
            panic!("{expected:?} was not reported");
        };
        let path = dir.path().join("a.yaml");
        let mut file = fs::File::create(&path).unwrap();
        until(Written::Closed);
        std::io::Write::write_all(&mut file, b"services:").unwrap();
        until(Written::Open);
        drop(file);
        until(Written::Closed);
        fs::write(dir.path().join("new"), "services: []").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        until(Written::Replaced);
    }

    #[test]
    fn changed_paths_are_a_few_files_or_all() {
        let mut paths = ChangedPaths::NOWHERE;
        paths.add(Path::new("r/.a.yaml.swp"));
        assert_eq!(paths, ChangedPaths::NOWHERE);
        for index in 0..MAX_CHANGED {
            paths.add(Path::new(&format!("r/{index}.yaml")));
        }
        assert!(matches!(&paths, ChangedPaths::At(names) if names.len() == MAX_CHANGED));
        paths.add(Path::new("r/one-more.yaml"));
        assert_eq!(paths, ChangedPaths::Everywhere);
        let mut paths = ChangedPaths::NOWHERE;
        paths.add(Path::new("r/behind-a-link.txt"));
        assert_eq!(paths, ChangedPaths::Everywhere);
    }

    #[test]
    fn watcher_finds_a_directory_that_was_missing_or_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("registry");
        let (mut watcher, now) = (Watcher::default(), Instant::now());
        for _ in 0..2 {
            assert_eq!(
                watcher.turn(&folder, now).at,
                ChangedPaths::Everywhere,
                "without events every scan is one of all paths"
            );
        }
        fs::create_dir(&folder).unwrap();
        let now = now + SCAN_INTERVAL;
        assert_eq!(watcher.turn(&folder, now).at, ChangedPaths::Everywhere);
        fs::rename(&folder, dir.path().join("old")).unwrap();
        fs::create_dir(&folder).unwrap();
        let now = now + SCAN_INTERVAL;
        assert_eq!(watcher.turn(&folder, now).at, ChangedPaths::Everywhere);
        // Events of the old directory may arrive late, merged with one of a file: then all paths have changed, once.
        let names_a_file = (0..10).any(|number| {
            fs::write(folder.join(format!("{number}.yaml")), "services: []").unwrap();
            matches!(until_changed(&mut watcher, &folder, now), ChangedPaths::At(_))
        });
        assert!(names_a_file, "without events every scan is one of all paths");
    }
}
