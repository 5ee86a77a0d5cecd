//! When to look at the directory of a registry: at once when the file system says that something happened there, and
//! now and then without that. Its events are hints only; what is true is what a look finds.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};

/// What no event tells of is seen after this: a write behind a link, or by another machine on a shared file system.
const UNTOLD: Duration = Duration::from_secs(1);

/// Eyes on one directory.
#[derive(Default)]
pub(super) struct Eyes {
    watched: Option<Watched>,
    happened: Arc<AtomicBool>,
    looked: Option<Instant>,
    has_complained: bool,
}

/// A directory, by its device and inode: the same path may lead to another one later.
struct Watched {
    place: (u64, u64),
    _watcher: RecommendedWatcher,
}

impl Eyes {
    /// Whether it is time to look. Without events it always is: a look is what finds out.
    pub(super) fn want(&mut self, folder: &Path, now: Instant) -> bool {
        let is_due = self.looked.is_none_or(|at| now.saturating_duration_since(at) >= UNTOLD);
        // Before the look, so that nothing happens unseen between the two.
        if is_due {
            self.looked = Some(now);
            self.turn_to(folder);
        }
        self.happened.swap(false, Ordering::Relaxed) || is_due || self.watched.is_none()
    }

    fn turn_to(&mut self, folder: &Path) {
        let place = fs::metadata(folder).map(|facts| (facts.dev(), facts.ino())).ok();
        if place.is_some() && self.watched.as_ref().map(|watched| watched.place) == place {
            return;
        }
        self.watched = None;
        // A directory that is away is what a look complains of.
        let Some(place) = place else { return };
        match watch(folder, Arc::clone(&self.happened)) {
            Ok(watcher) => {
                self.watched = Some(Watched { place, _watcher: watcher });
                self.has_complained = false;
            }
            Err(error) if !self.has_complained => {
                self.has_complained = true;
                tracing::warn!(folder = %folder.display(), %error, "no events for the registry: it is polled");
            }
            Err(_) => {}
        }
    }
}

fn watch(folder: &Path, happened: Arc<AtomicBool>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // Reading is an event, too, and some of it is ours.
        let is_reading = event.is_ok_and(|event| {
            event.kind.is_access() && event.kind != EventKind::Access(AccessKind::Close(AccessMode::Write))
        });
        if !is_reading {
            happened.store(true, Ordering::Relaxed);
        }
    })?;
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

impl fmt::Debug for Eyes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Eyes").field("has_events", &self.watched.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[track_caller]
    fn until_wanted(eyes: &mut Eyes, folder: &Path, now: Instant) {
        let mut looks = 0..2_000;
        while !eyes.want(folder, now) {
            assert!(looks.next().is_some(), "no event came");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn an_event_asks_for_a_look_and_without_one_a_second_does() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("registry");
        fs::create_dir(&folder).unwrap();
        let (mut eyes, now) = (Eyes::default(), Instant::now());
        assert!(eyes.want(&folder, now), "the first look");
        assert!(!eyes.want(&folder, now), "nothing happened");
        fs::write(folder.join("a.yaml"), "services: []").unwrap();
        until_wanted(&mut eyes, &folder, now);
        let later = now + UNTOLD;
        assert!(eyes.want(&folder, later), "nothing need have happened");
        fs::rename(folder.join("a.yaml"), folder.join("b.yaml")).unwrap();
        until_wanted(&mut eyes, &folder, later);
    }

    #[test]
    fn a_directory_that_is_away_or_another_one_is_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("registry");
        let (mut eyes, now) = (Eyes::default(), Instant::now());
        assert!(eyes.want(&folder, now) && eyes.want(&folder, now), "without events each look is wanted");
        fs::create_dir(&folder).unwrap();
        let now = now + UNTOLD;
        assert!(eyes.want(&folder, now));
        fs::rename(&folder, dir.path().join("old")).unwrap();
        fs::create_dir(&folder).unwrap();
        let now = now + UNTOLD;
        assert!(eyes.want(&folder, now));
        while eyes.want(&folder, now) {}
        fs::write(folder.join("a.yaml"), "services: []").unwrap();
        until_wanted(&mut eyes, &folder, now);
    }
}
