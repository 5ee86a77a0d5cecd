//! Watches the configuration file and passes edits to `control`: decides when to check the file, when it is complete,
//! and when it is missing. `config` validates an edit.

use std::fs::{self, Metadata};
use std::hash::Hasher as _;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use isthmus_certs::input;
use isthmus_model::file::LARGEST;
use isthmus_watch::FileWatcher;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::config;
use crate::control::Control;

/// A file that has not changed for this long is complete.
const QUIET: Duration = Duration::from_millis(50);
/// The same while a writer has the file open.
const WRITING: Duration = Duration::from_secs(2);
/// Maximum interval between checks, for file systems without events.
const POLL: Duration = Duration::from_secs(5);
/// A file may be missing for this long, between a removal and a rename.
const AWAY: Duration = Duration::from_secs(2);
/// The coarsest timestamp granularity in use (FAT): within it, two edits may look like one.
const GRAIN: Duration = Duration::from_secs(3);
/// Minimum interval between checks, however busy the directory is.
const PACE: Duration = Duration::from_millis(20);

/// Applies edits of `file`, forever. Reading, checking and compiling happen on a blocking thread.
pub(crate) async fn run(file: PathBuf, control: Arc<Control>) -> io::Result<()> {
    let news = Arc::new(Notify::new());
    let wake = Arc::clone(&news);
    let watch = Watch {
        watcher: FileWatcher::new("the configuration file", move || wake.notify_one()),
        settling: Settling::default(),
        content: None,
        is_first: true,
        file,
        control: Arc::clone(&control),
    };
    let watch = Arc::new(Mutex::new(watch));
    loop {
        let watching = Arc::clone(&watch);
        let poll = move || watching.lock().unwrap_or_else(PoisonError::into_inner).poll();
        let wait = tokio::task::spawn_blocking(poll).await.unwrap_or_else(|error| {
            control.refuse(format!("checking the edit failed ({error}); this is a bug, please report it"));
            POLL
        });
        let woken = async {
            tokio::select! {
                () = news.notified() => {}
                () = control.recheck.notified() => {}
            }
        };
        if timeout(wait, woken).await.is_ok() {
            sleep(PACE).await;
        }
    }
}

struct Watch {
    file: PathBuf,
    control: Arc<Control>,
    watcher: FileWatcher,
    settling: Settling,
    /// Hash of the last content that was checked.
    content: Option<u64>,
    is_first: bool,
}

impl Watch {
    /// Checks the file once and returns how long to wait for an event before the next check.
    fn poll(&mut self) -> Duration {
        // Before the file is checked, so that no edit is missed in between.
        self.watcher.turn_to(&self.file);
        let now = Instant::now();
        match fs::metadata(&self.file) {
            Err(error) => self.missing(&error, now),
            Ok(metadata) => {
                match self.settling.saw(Fingerprint::new(&metadata), self.watcher.is_being_written(), now) {
                    Verdict::Same => POLL,
                    Verdict::Wait(more) => more,
                    Verdict::Judge(print) => self.judge(print, now),
                }
            }
        }
    }

    fn missing(&mut self, error: &io::Error, now: Instant) -> Duration {
        match self.settling.missed(now) {
            Verdict::Wait(more) => return more,
            Verdict::Same => {}
            Verdict::Judge(()) => {
                let file = self.file.display();
                self.control.refuse(match error.kind() {
                    io::ErrorKind::NotFound => format!("{file} is missing; keeping the last tables"),
                    _ => format!("{file} cannot be read: {error}; keeping the last tables"),
                });
                // When the file returns it is checked again, even if unchanged, to clear the refusal.
                self.content = None;
                self.is_first = false;
            }
        }
        POLL
    }

    fn judge(&mut self, print: Fingerprint, now: Instant) -> Duration {
        let content = Some(hash(&self.file));
        if content == self.content {
            self.settling.judged(print, now);
            return POLL;
        }
        // Recorded before the check, so that an edit that causes a panic is not retried forever.
        let before = std::mem::replace(&mut self.content, content);
        self.settling.judged(print, now);
        if self.is_first && !print.is_fresh(self.control.started) {
            // The gateway started with this content.
            self.is_first = false;
            return POLL;
        }
        let checked = config::load(&self.file);
        if fs::metadata(&self.file).map(|metadata| Fingerprint::new(&metadata)).ok() != Some(print) {
            // The file changed while it was read.
            self.content = before;
            return QUIET;
        }
        let is_first = std::mem::take(&mut self.is_first);
        match checked {
            Err(problems) => self.control.refuse(problems.to_string()),
            // There may have been an edit between the start and the first check; usually there was none.
            Ok(settings) if is_first && self.control.runs(&settings) => {}
            Ok(settings) => match self.control.apply(settings) {
                Ok(()) => tracing::info!(file = %self.file.display(), "configuration applied"),
                Err(why) => self.control.refuse(why),
            },
        }
        isthmus_sys::trim_memory();
        POLL
    }
}

/// Identifies the content of a path without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    fn new(metadata: &Metadata) -> Fingerprint {
        Fingerprint {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether another edit could leave the same fingerprint.
    fn is_fresh(self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let latest = self.modified.0.max(self.changed.0);
        u64::try_from(latest).is_ok_and(|latest| latest.saturating_add(GRAIN.as_secs()) >= now)
    }
}

/// Decides when a changing file is complete, and when an absent one is missing.
#[derive(Debug, Default)]
struct Settling {
    judged: Option<Fingerprint>,
    /// The file was checked soon after a change; from this time on its content must be compared once more.
    unsure_until: Option<Instant>,
    /// The last fingerprint, and since when it has not changed.
    seen: Option<(Fingerprint, Instant)>,
    away_since: Option<Instant>,
    is_gone: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict<T> {
    /// Nothing new.
    Same,
    /// Check again after this long.
    Wait(Duration),
    /// The file is complete, or missing.
    Judge(T),
}

impl Settling {
    fn saw(&mut self, print: Fingerprint, is_being_written: bool, now: Instant) -> Verdict<Fingerprint> {
        let was_gone = std::mem::take(&mut self.is_gone);
        self.away_since = None;
        if self.judged == Some(print) && !was_gone {
            self.seen = None;
            return match self.unsure_until {
                Some(until) if now >= until => Verdict::Judge(print),
                _ => Verdict::Same,
            };
        }
        self.judged = None;
        let since = match self.seen {
            Some((seen, since)) if seen == print => since,
            _ => now,
        };
        self.seen = Some((print, since));
        let quiet = if is_being_written { WRITING } else { QUIET };
        match quiet.saturating_sub(now.saturating_duration_since(since)) {
            Duration::ZERO => Verdict::Judge(print),
            more => Verdict::Wait(more),
        }
    }

    fn judged(&mut self, print: Fingerprint, now: Instant) {
        self.judged = Some(print);
        self.unsure_until = print.is_fresh(SystemTime::now()).then(|| now + GRAIN);
    }

    fn missed(&mut self, now: Instant) -> Verdict<()> {
        self.seen = None;
        if self.is_gone {
            return Verdict::Same;
        }
        let since = *self.away_since.get_or_insert(now);
        match AWAY.saturating_sub(now.saturating_duration_since(since)) {
            Duration::ZERO => {
                self.is_gone = true;
                Verdict::Judge(())
            }
            more => Verdict::Wait(more),
        }
    }
}

/// Hashes the content of a file, or the error if it cannot be read.
fn hash(file: &Path) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    let hashed = input::open(file).and_then(|file| {
        let mut file = file.take(LARGEST.saturating_add(1));
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                length => hasher.write(buffer.get(..length).unwrap_or_default()),
            }
        }
    });
    if let Err(error) = hashed {
        hasher.write(error.to_string().as_bytes());
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(length: u64) -> Fingerprint {
        Fingerprint { device: 1, inode: 1, length, modified: (0, 0), changed: (0, 0) }
    }

    #[test]
    fn settling_judges_file_once_quiet() {
        let start = Instant::now();
        let mut settling = Settling::default();
        assert_eq!(settling.saw(print(1), false, start), Verdict::Wait(QUIET));
        assert_eq!(settling.saw(print(2), false, start + QUIET), Verdict::Wait(QUIET), "still growing");
        assert_eq!(settling.saw(print(2), false, start + QUIET * 2), Verdict::Judge(print(2)));
        settling.judged(print(2), start + QUIET * 2);
        assert_eq!(settling.saw(print(2), false, start + QUIET * 3), Verdict::Same);
        assert_eq!(settling.saw(print(1), false, start + QUIET * 4), Verdict::Wait(QUIET));
    }

    #[test]
    fn settling_waits_for_open_writer() {
        let start = Instant::now();
        let mut settling = Settling::default();
        settling.saw(print(1), true, start);
        let later = start + QUIET * 2;
        assert_eq!(settling.saw(print(1), true, later), Verdict::Wait(WRITING - QUIET * 2));
        assert_eq!(settling.saw(print(1), false, later), Verdict::Judge(print(1)), "closed by the writer");
        assert_eq!(settling.saw(print(1), true, start + WRITING), Verdict::Judge(print(1)), "not forever");
    }

    #[test]
    fn settling_rechecks_content_within_clock_granularity() {
        let start = Instant::now();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let fresh = Fingerprint { modified: (i64::try_from(now).unwrap(), 0), ..print(1) };
        let mut settling = Settling::default();
        settling.judged(fresh, start);
        assert_eq!(settling.saw(fresh, false, start + QUIET), Verdict::Same);
        assert_eq!(settling.saw(fresh, false, start + GRAIN), Verdict::Judge(fresh));
        settling.judged(print(1), start);
        assert_eq!(
            settling.saw(print(1), false, start + GRAIN * 2),
            Verdict::Same,
            "an old file needs no recheck"
        );
    }

    #[test]
    fn settling_reports_file_missing_after_delay() {
        let start = Instant::now();
        let mut settling = Settling::default();
        settling.judged(print(1), start);
        assert_eq!(settling.missed(start), Verdict::Wait(AWAY));
        assert_eq!(settling.saw(print(1), false, start + QUIET), Verdict::Same, "only renamed");
        assert_eq!(settling.missed(start + QUIET), Verdict::Wait(AWAY), "the delay starts again");
        assert_eq!(settling.missed(start + QUIET + AWAY), Verdict::Judge(()));
        assert_eq!(settling.missed(start + AWAY * 3), Verdict::Same, "reported once");
        assert_eq!(settling.saw(print(1), false, start + AWAY * 4), Verdict::Wait(QUIET), "checked again");
    }
}
