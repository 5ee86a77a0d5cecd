//! Limits probes of all kinds to a number each second, so that the cost of health does not grow with the tables.

use std::sync::{Mutex, PoisonError};

use crate::socket::Millis;

/// Probes a second.
pub(crate) const PROBES_A_SECOND: u64 = 500;
/// Probes at once after a pause.
const BURST: u64 = 10;
/// Thousandths of a probe.
const ONE: u64 = 1_000;

/// A token bucket.
#[derive(Debug, Default)]
pub(crate) struct Rate(Mutex<Bucket>);

#[derive(Debug, Default)]
struct Bucket {
    filled: Millis,
    tokens: u64,
}

impl Rate {
    /// Takes one probe; false if there have been enough.
    pub(crate) fn take(&self, now: Millis) -> bool {
        let mut bucket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let earned = now.saturating_sub(bucket.filled).saturating_mul(PROBES_A_SECOND);
        bucket.tokens = bucket.tokens.saturating_add(earned).min(BURST * ONE);
        bucket.filled = bucket.filled.max(now);
        let is_there = bucket.tokens >= ONE;
        if is_there {
            bucket.tokens -= ONE;
        }
        is_there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_500_a_second_whatever_is_asked() {
        let rate = Rate::default();
        let taken = (1_000..11_000).flat_map(|now| [now; 3]).filter(|now| rate.take(*now)).count();
        assert!((5_000..=5_000 + 10).contains(&taken), "{taken}");
        let burst = (0..1_000).filter(|_| rate.take(1_000_000)).count();
        assert_eq!(burst, 10);
    }
}
