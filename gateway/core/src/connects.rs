//! Counts the connects and retries of a service that are under way, and estimates how long connects take: the time that
//! 99 in 100 of them do not exceed. A second endpoint is tried after that (`connect::hedge`).

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// What a service's connections have under way before they are connected.
#[derive(Debug, Default)]
pub(crate) struct Connects {
    pub(crate) pending: AtomicU32,
    pub(crate) retries: AtomicU32,
    pub(crate) time: ConnectTime,
}

/// Connects before the estimate is used.
const SAMPLES: u32 = 20;
/// The minimum wait before a second endpoint is tried: on a near network a connect takes microseconds, and a busy
/// machine a few milliseconds more.
const LEAST: Duration = Duration::from_millis(50);
/// A longer connect raises the estimate by this part of it, a shorter one lowers it by a ninety-ninth of that. The two
/// are in balance where one connect in a hundred is longer.
const UP: u32 = 8;
const DOWN: u32 = UP * 99;

/// The connect times of one service. Workers may overwrite each other's last step, which is as good as an estimate.
#[derive(Debug, Default)]
pub(crate) struct ConnectTime {
    micros: AtomicU32,
    samples: AtomicU32,
}

impl ConnectTime {
    /// Records how long a connect took, or has taken so far in vain.
    pub(crate) fn record(&self, took: Duration) {
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let (before, samples) = (self.micros.load(Relaxed), self.samples.load(Relaxed));
        let after = if samples < SAMPLES {
            self.samples.store(samples + 1, Relaxed);
            before.max(took)
        } else if took > before {
            before.saturating_add(before / UP).saturating_add(1)
        } else {
            before - before / DOWN
        };
        if after != before {
            self.micros.store(after, Relaxed);
        }
    }

    /// Returns how long to wait for a connect before a second endpoint is tried; none while too few connects are known.
    pub(crate) fn hedge_after(&self) -> Option<Duration> {
        let is_known = self.samples.load(Relaxed) >= SAMPLES;
        is_known.then(|| Duration::from_micros(self.micros.load(Relaxed).into()).max(LEAST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn connect_time_is_known_after_20_connects() {
        let time = ConnectTime::default();
        for _ in 0..19 {
            time.record(ms(80));
            assert_eq!(time.hedge_after(), None);
        }
        time.record(ms(70));
        assert_eq!(time.hedge_after(), Some(ms(80)));
    }

    #[test]
    fn connect_time_is_never_below_50_ms() {
        let time = ConnectTime::default();
        (0..1_000).for_each(|_| time.record(Duration::from_micros(40)));
        assert_eq!(time.hedge_after(), Some(ms(50)));
    }

    #[test]
    fn connect_time_settles_where_one_in_a_hundred_is_longer() {
        let mut random = fastrand::Rng::with_seed(7);
        for start in [ms(1), ms(900)] {
            let time = ConnectTime::default();
            (0..20).for_each(|_| time.record(start));
            let mut above = 0;
            for round in 0..60_000 {
                // Between 0 and 200 ms, all alike: 99 in 100 take at most 198 ms.
                let took = Duration::from_micros(random.u64(0..200_000));
                if round >= 30_000 {
                    above += u32::from(time.hedge_after().unwrap() < took);
                }
                time.record(took);
            }
            assert!((200..400).contains(&above), "{above} of 30 000 connects were longer, from {start:?}");
        }
    }

    #[test]
    fn connect_time_forgets_one_slow_start() {
        let time = ConnectTime::default();
        time.record(Duration::from_secs(3));
        (0..5_000).for_each(|_| time.record(ms(1)));
        assert_eq!(time.hedge_after(), Some(ms(50)));
    }
}
