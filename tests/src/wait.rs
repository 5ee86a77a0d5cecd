//! Waits for conditions, with a deadline far beyond their usual time.

use std::thread;
use std::time::{Duration, Instant};

/// A wait that takes longer fails the test.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    until_some(what, || condition().then_some(()));
}

/// Waits until `find` returns something.
#[track_caller]
pub fn until_some<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(started.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        thread::park_timeout(Duration::from_millis(2));
    }
}

/// Whether `condition` becomes true within `limit`.
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

/// Checks during the whole of `span` that `condition` holds: for events that must *not* happen.
#[track_caller]
pub fn throughout(span: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while started.elapsed() < span {
        assert!(condition(), "after {:?} no longer true: {what}", started.elapsed());
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// The median; the upper one of an even number.
#[must_use]
pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The quantile `share` (0 to 1).
#[must_use]
#[expect(clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "a few thousand samples")]
pub fn quantile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * share).round() as usize]
}
