//! Waiting on conditions, with a deadline that is far past what any of them should take.

use std::thread;
use std::time::{Duration, Instant};

/// Whatever is waited for has failed if it takes longer.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    until_some(what, || condition().then_some(()));
}

/// Waits until `find` finds something.
#[track_caller]
pub fn until_some<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} until {what}");
        thread::park_timeout(Duration::from_millis(2));
    }
}

/// Whether `condition` comes to hold within `limit`.
pub fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if started.elapsed() > limit {
            return false;
        }
        thread::park_timeout(Duration::from_millis(2));
    }
}

/// Watches for the whole of `span` that `condition` never fails: for what must *not* happen.
#[track_caller]
pub fn throughout(span: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while started.elapsed() < span {
        assert!(condition(), "after {:?} it no longer held that {what}", started.elapsed());
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// The middle one; of an even number the upper middle.
#[must_use]
pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The one that `share` (0 to 1) of them do not exceed.
#[must_use]
#[expect(clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "a few thousand samples")]
pub fn quantile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * share).round() as usize]
}
