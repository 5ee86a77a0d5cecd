//! Limits how often one stream reports. Pure: time is an argument.

use std::time::{Duration, Instant};

/// Reports that may come at once.
const BURST: u32 = 20;
/// One more after each of these.
const EVERY: Duration = Duration::from_millis(500);

/// The pace of one stream.
#[derive(Debug)]
pub(crate) struct Pace {
    /// When the burst is whole again.
    whole: Instant,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Pace {
        Pace { whole: now }
    }

    /// Counts a report; false if there are too many.
    pub(crate) fn admits(&mut self, now: Instant) -> bool {
        let whole = self.whole.max(now) + EVERY;
        let admits = whole.saturating_duration_since(now) <= EVERY * BURST;
        if admits {
            self.whole = whole;
        }
        admits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_pace_allows_a_burst_and_two_a_second() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert_eq!((0..100).filter(|_| pace.admits(start)).count(), 20);
        let later = start + Duration::from_secs(3);
        assert_eq!((0..100).filter(|_| pace.admits(later)).count(), 6);
        assert_eq!((0..100).filter(|_| pace.admits(later + Duration::from_secs(3600))).count(), 20);
    }
}
