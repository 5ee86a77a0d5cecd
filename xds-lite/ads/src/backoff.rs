//! Computes a client's pause before it reconnects: exponential, with full jitter. Pure: time and randomness come in as
//! arguments.

use std::time::Duration;

const SOONEST: Duration = Duration::from_millis(10);
const LATEST: Duration = Duration::from_secs(15);
/// A stream that lasted this long resets the backoff. A shorter one counts as a failed attempt, else a server that
/// breaks every stream would be asked without pause.
const GOOD: Duration = Duration::from_secs(1);

/// The backoff of one client.
#[derive(Debug)]
pub struct Backoff {
    /// Longest next pause.
    most: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { most: SOONEST }
    }
}

impl Backoff {
    /// The pause after an attempt. `lasted` is how long its stream lasted, if there was one; `random` is in 0..1.
    pub fn next(&mut self, lasted: Option<Duration>, random: f64) -> Duration {
        if lasted.is_some_and(|lasted| lasted >= GOOD) {
            self.most = SOONEST;
        }
        // Full jitter: a thousand gateways do not reconnect together.
        let wait = self.most.mul_f64(random.clamp(0.0, 1.0)).max(SOONEST);
        self.most = (self.most * 2).min(LATEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AWAY: Duration = Duration::from_secs(12 * 60);

    fn longest(attempts: usize) -> Vec<Duration> {
        let mut backoff = Backoff::default();
        (0..attempts).map(|_| backoff.next(None, 1.0)).collect()
    }

    #[test]
    fn backoff_doubles_up_to_the_longest_pause() {
        let millis: Vec<_> = longest(13).iter().map(Duration::as_millis).collect();
        assert_eq!(millis, [10, 20, 40, 80, 160, 320, 640, 1_280, 2_560, 5_120, 10_240, 15_000, 15_000]);
    }

    #[test]
    fn backoff_resets_after_a_good_stream_only() {
        let mut backoff = Backoff::default();
        for expected in longest(12) {
            assert_eq!(backoff.next(Some(GOOD / 2), 1.0), expected, "each stream broke at once");
        }
        assert_eq!(backoff.next(Some(GOOD), 1.0), SOONEST);
        assert_eq!(backoff.next(None, 1.0), SOONEST * 2);
    }

    /// Row 15 of the hazards: a server with many clients is down for more than 10 minutes.
    #[test]
    fn backoff_of_two_clients_does_not_coincide() {
        let times = |seed| {
            let (mut backoff, mut random) = (Backoff::default(), fastrand::Rng::with_seed(seed));
            let mut now = Duration::ZERO;
            let mut times = Vec::new();
            while now < AWAY {
                now += backoff.next(None, random.f64());
                times.push(now);
            }
            times
        };
        let (one, other) = (times(1), times(2));
        for times in [&one, &other] {
            assert!((AWAY.as_secs() / 15..500).contains(&(times.len() as u64)), "{} attempts", times.len());
        }
        // The first wait is the shortest there is.
        let together = one.iter().skip(1).filter(|time| other.contains(time)).count();
        assert_eq!(together, 0, "{one:?} {other:?}");
    }

    proptest! {
        #[test]
        fn backoff_is_always_bounded(
            attempts in proptest::collection::vec((proptest::option::of(0..100_000_u64), -1.0..2.0), 1..200)
        ) {
            let mut backoff = Backoff::default();
            for (lasted, random) in attempts {
                let wait = backoff.next(lasted.map(Duration::from_millis), random);
                prop_assert!((SOONEST..=LATEST).contains(&wait), "{wait:?}");
            }
        }
    }
}
