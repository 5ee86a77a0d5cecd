//! Smooths the round trips to one address as TCP does (RFC 6298), and counts the loss of the last probes.

use std::time::Duration;

/// Probes over which loss is counted: the bits of [`Window`].
const PROBES: u32 = 32;

/// A smoothed round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RoundTrip {
    pub(super) smoothed: Duration,
    pub(super) deviation: Duration,
    samples: u32,
}

impl RoundTrip {
    /// After the first sample.
    pub(super) fn first(sample: Duration) -> RoundTrip {
        RoundTrip { smoothed: sample, deviation: sample / 2, samples: 1 }
    }

    pub(super) fn add(&mut self, sample: Duration) {
        self.deviation = (self.deviation * 3 + self.smoothed.abs_diff(sample)) / 4;
        self.smoothed = (self.smoothed * 7 + sample) / 8;
        self.samples = self.samples.saturating_add(1);
    }

    /// Forgets what was measured before.
    pub(super) fn restart(&mut self, sample: Duration) {
        *self = RoundTrip { samples: self.samples, ..RoundTrip::first(sample) };
    }

    pub(super) fn samples(&self) -> u32 {
        self.samples
    }
}

/// The results of the last probes; a bit is a loss.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    losses: u32,
    probes: u32,
}

impl Window {
    pub(super) fn add(&mut self, is_lost: bool) {
        self.losses = (self.losses << 1) | u32::from(is_lost);
        self.probes = (self.probes + 1).min(PROBES);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.probes == 0
    }

    /// Per cent of the probes that were lost.
    pub(super) fn loss_percent(&self) -> u8 {
        let percent = self.losses.count_ones() * 100 / self.probes.max(1);
        u8::try_from(percent).unwrap_or(100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn round_trip_is_smoothed_as_in_rfc_6298() {
        let mut trip = RoundTrip::first(ms(80));
        assert_eq!((trip.smoothed, trip.deviation), (ms(80), ms(40)));
        trip.add(ms(160));
        assert_eq!((trip.smoothed, trip.deviation), (ms(90), ms(50)));
        for _ in 0..200 {
            trip.add(ms(30));
        }
        assert!(trip.smoothed.abs_diff(ms(30)) < ms(1) && trip.deviation < ms(1), "{trip:?}");
        assert_eq!(trip.samples(), 202);
    }

    #[test]
    fn loss_is_that_of_the_last_probes() {
        let mut window = Window::default();
        assert!(window.is_empty() && window.loss_percent() == 0);
        window.add(true);
        assert_eq!(window.loss_percent(), 100);
        for _ in 0..3 {
            window.add(false);
        }
        assert_eq!(window.loss_percent(), 25);
        for _ in 0..PROBES {
            window.add(false);
        }
        assert_eq!(window.loss_percent(), 0, "the loss is forgotten");
    }
}
