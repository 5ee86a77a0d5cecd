//! Counts failures and successes of the last minute.

use std::sync::{Mutex, PoisonError};

use crate::socket::Millis;

/// Time that one slot counts.
const SLOT_MS: Millis = 5_000;
/// Slots of a minute.
const SLOTS: usize = 12;
/// With fewer samples than this, the share of failures says nothing.
const MIN_SAMPLES: u32 = 100;

/// The counts of the last minute.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<[Slot; SLOTS]>);

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Number of the slot since the start of time.
    number: Millis,
    samples: u32,
    failed: u32,
}

impl Failures {
    /// Counts one.
    pub(crate) fn record(&self, has_failed: bool, now: Millis) {
        let number = now / SLOT_MS;
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let index = usize::try_from(number % SLOTS as Millis).unwrap_or_default();
        let Some(slot) = slots.get_mut(index) else { return };
        if slot.number != number {
            *slot = Slot { number, ..Slot::default() };
        }
        slot.samples = slot.samples.saturating_add(1);
        slot.failed = slot.failed.saturating_add(u32::from(has_failed));
    }

    /// Whether more than this share of the last minute failed, in per cent; false with less than 100 samples.
    pub(crate) fn exceed(&self, per_cent: u8, now: Millis) -> bool {
        let newest = now / SLOT_MS;
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = slots.iter().filter(|slot| newest.saturating_sub(slot.number) < SLOTS as Millis);
        let (samples, failed) = recent.fold((0_u64, 0_u64), |(samples, failed), slot| {
            (samples + u64::from(slot.samples), failed + u64::from(slot.failed))
        });
        samples >= u64::from(MIN_SAMPLES) && failed * 100 > samples * u64::from(per_cent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_count_from_a_hundred_samples_on() {
        let failures = Failures::default();
        for sample in 0..99 {
            failures.record(sample % 10 == 0, 1_000);
        }
        assert!(!failures.exceed(0, 1_000), "99 samples");
        failures.record(false, 1_000);
        assert!(failures.exceed(9, 1_000) && !failures.exceed(10, 1_000), "10 of 100");
    }

    #[test]
    fn failures_are_forgotten_after_a_minute() {
        let failures = Failures::default();
        for _ in 0..100 {
            failures.record(true, 0);
        }
        assert!(failures.exceed(5, 59_999) && !failures.exceed(5, 60_000));
        for second in 0..100 {
            failures.record(second % 20 == 0, 60_000 + second * 500);
        }
        assert!(!failures.exceed(5, 110_000), "5 of 100");
    }
}
