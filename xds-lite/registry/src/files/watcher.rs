//! Watches a registry directory: tells from file system events which files to scan, and has all of them
//! scanned every second, or less often where a scan takes long. Events are hints only; a scan decides.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use isthmus_watch::{Hint, Written};

use super::is_ours;

/// The interval of full scans, which find what events miss: a write behind a link, or on a shared file
/// system.
const SCAN_INTERVAL: Duration = Duration::from_secs(1);
/// Least interval of full scans, in multiples of the time that the last one took, and its limit: a directory of
/// many files costs no more of a core than one of a few.
const SCAN_SHARE: u32 = 200;
const LONGEST_INTERVAL: Duration = Duration::from_secs(10);
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

/// The events since the previous poll.
#[derive(Debug, Default)]
pub(super) struct Events {
    pub(super) at: ChangedPaths,
    /// The last write event of each file.
    pub(super) written: BTreeMap<OsString, Written>,
    /// Events may have been lost.
    pub(super) was_lost: bool,
}

impl Events {
    fn note(&mut self, hint: Hint<'_>) {
        let Hint::Changed { path, written } = hint else { return self.lose() };
        self.at.add(path);
        let Some((name, written)) = path.file_name().zip(written).filter(|_| is_ours(path)) else { return };
        if self.written.len() < MOST_WRITTEN || self.written.contains_key(name) {
            self.written.insert(name.to_owned(), written);
        }
    }

    fn lose(&mut self) {
        *self = Events { at: ChangedPaths::Everywhere, was_lost: true, ..Events::default() };
    }
}

/// Watches one directory.
pub(super) struct Watcher {
    events: isthmus_watch::Watcher,
    happened: Arc<Mutex<Events>>,
    /// When all files are scanned next; none: at once.
    next_scan: Option<Instant>,
    wake: Arc<Wake>,
}

/// Called when an event has arrived.
pub(super) type Wake = dyn Fn() + Send + Sync;

impl Default for Watcher {
    fn default() -> Watcher {
        Watcher {
            events: isthmus_watch::Watcher::new("the registry"),
            happened: Arc::default(),
            next_scan: None,
            wake: Arc::new(|| {}),
        }
    }
}

impl Watcher {
    /// The files to scan now; all of them if the directory has no events.
    pub(super) fn poll(&mut self, folder: &Path, now: Instant) -> Events {
        let is_due = self.next_scan.is_none_or(|at| now >= at);
        // Before the scan, so that no change falls between the two.
        if is_due {
            self.next_scan = now.checked_add(SCAN_INTERVAL);
            self.watch_directory(folder);
        }
        let mut happened = self.happened.lock().unwrap_or_else(PoisonError::into_inner);
        let mut happened = std::mem::take(&mut *happened);
        if is_due || !self.events.has_events() {
            happened.at = ChangedPaths::Everywhere;
        }
        happened
    }

    /// Makes the next turn scan all files.
    pub(super) fn expect_changes(&mut self) {
        self.next_scan = None;
    }

    /// When a turn is due without an event; none: at once.
    pub(super) fn next_scan(&self) -> Option<Instant> {
        self.next_scan
    }

    /// All files were scanned at `now`, which took this long.
    pub(super) fn scanned(&mut self, now: Instant, took: Duration) {
        let interval = took.saturating_mul(SCAN_SHARE).clamp(SCAN_INTERVAL, LONGEST_INTERVAL);
        self.next_scan = now.checked_add(interval);
    }

    /// Has this called after each event from the next watched directory on.
    pub(super) fn on_event(&mut self, wake: Arc<Wake>) {
        self.wake = wake;
    }

    fn watch_directory(&mut self, folder: &Path) {
        let (happened, wake) = (Arc::clone(&self.happened), Arc::clone(&self.wake));
        let may_be_lost = self.events.watch([folder], move |hint| {
            happened.lock().unwrap_or_else(PoisonError::into_inner).note(hint);
            wake();
        });
        if may_be_lost {
            self.happened.lock().unwrap_or_else(PoisonError::into_inner).lose();
        }
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher").field("events", &self.events).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::*;

    #[track_caller]
    fn until_changed(watcher: &mut Watcher, folder: &Path, now: Instant) -> ChangedPaths {
        for _ in 0..2_000 {
            let paths = watcher.poll(folder, now).at;
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
        assert_eq!(watcher.poll(&folder, now).at, ChangedPaths::Everywhere, "the first poll");
        assert_eq!(watcher.poll(&folder, now).at, ChangedPaths::NOWHERE, "no event");
        fs::write(folder.join("a.yaml"), "services: []").unwrap();
        assert_eq!(until_changed(&mut watcher, &folder, now), ChangedPaths::At(["a.yaml".into()].into()));
        let later = now + SCAN_INTERVAL;
        assert_eq!(watcher.poll(&folder, later).at, ChangedPaths::Everywhere, "without an event");
        std::os::unix::fs::symlink("elsewhere", folder.join("..data")).unwrap();
        while until_changed(&mut watcher, &folder, later) != ChangedPaths::Everywhere {}
    }

    #[test]
    fn watcher_scans_less_often_where_a_scan_takes_long() {
        let dir = tempfile::tempdir().unwrap();
        let (mut watcher, now) = (Watcher::default(), Instant::now());
        let mut due = |took| {
            watcher.scanned(now, took);
            let due = watcher.next_scan().unwrap();
            let before = due.checked_sub(Duration::from_nanos(1)).unwrap();
            watcher.poll(dir.path(), before);
            assert_eq!(watcher.next_scan(), Some(due), "no scan is due before");
            watcher.poll(dir.path(), due);
            assert!(watcher.next_scan() > Some(due));
            due - now
        };
        assert_eq!(due(Duration::from_millis(1)), SCAN_INTERVAL);
        assert_eq!(due(Duration::from_millis(20)), Duration::from_secs(4));
        assert_eq!(due(Duration::from_secs(60)), LONGEST_INTERVAL);
    }

    #[test]
    fn watcher_reports_writers_until_they_close_or_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (mut watcher, now) = (Watcher::default(), Instant::now());
        assert!(watcher.poll(dir.path(), now).was_lost, "no events before");
        let mut until = |expected: Written| {
            for _ in 0..2_000 {
                let events = watcher.poll(dir.path(), now);
                assert!(!events.was_lost);
                match events.written.get(std::ffi::OsStr::new("a.yaml")) {
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
                watcher.poll(&folder, now).at,
                ChangedPaths::Everywhere,
                "without events every scan is one of all paths"
            );
        }
        fs::create_dir(&folder).unwrap();
        let now = now + SCAN_INTERVAL;
        assert_eq!(watcher.poll(&folder, now).at, ChangedPaths::Everywhere);
        fs::rename(&folder, dir.path().join("old")).unwrap();
        fs::create_dir(&folder).unwrap();
        let now = now + SCAN_INTERVAL;
        assert_eq!(watcher.poll(&folder, now).at, ChangedPaths::Everywhere);
        // Events of the old directory may arrive late, merged with one of a file: then all paths have changed, once.
        let names_a_file = (0..10).any(|number| {
            fs::write(folder.join(format!("{number}.yaml")), "services: []").unwrap();
            matches!(until_changed(&mut watcher, &folder, now), ChangedPaths::At(_))
        });
        assert!(names_a_file, "without events every scan is one of all paths");
    }
}
