//! The shape of a link and its text form: `delay=20ms,jitter=0ms,bandwidth=100Mbit`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::units;

/// Smallest queue: ten initial TCP windows.
const LEAST_QUEUE: u64 = 64 * 1024;

/// The shape of each direction of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// One-way delay.
    pub(crate) delay: Duration,
    /// Largest additional delay, uniformly distributed.
    pub(crate) jitter: Duration,
    /// Bits per second, not 0.
    pub(crate) bandwidth: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self { delay: Duration::from_millis(20), jitter: Duration::ZERO, bandwidth: 100_000_000 }
    }
}

impl Shape {
    /// This shape with the overrides of `change`.
    pub(crate) fn changed(self, change: &Change) -> Self {
        Self {
            delay: change.delay.unwrap_or(self.delay),
            jitter: change.jitter.unwrap_or(self.jitter),
            bandwidth: change.bandwidth.unwrap_or(self.bandwidth),
        }
    }

    /// Size of the queue in bytes: one bandwidth-delay product, as in routers.
    pub(crate) fn queue(&self) -> u64 {
        self.bytes_in(2 * self.delay).max(LEAST_QUEUE)
    }

    /// Transmission time of this many bytes, rounded up.
    pub(crate) fn time_of(&self, bytes: u64) -> Duration {
        let nanoseconds = (u128::from(bytes) * 8 * NANOSECONDS).div_ceil(u128::from(self.bandwidth));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// Bytes transmitted in this time.
    pub(crate) fn bytes_in(&self, time: Duration) -> u64 {
        let bytes = time.as_nanos().saturating_mul(u128::from(self.bandwidth)) / (8 * NANOSECONDS);
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

const NANOSECONDS: u128 = 1_000_000_000;

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_duration(self.delay))?;
        if !self.jitter.is_zero() {
            write!(f, " + 0..{}", humantime::format_duration(self.jitter))?;
        }
        write!(f, ", {}/s", units::Bits(self.bandwidth))
    }
}

impl Serialize for Shape {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Overrides for one link: any of `delay=`, `jitter=`, `bandwidth=`, separated by commas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    delay: Option<Duration>,
    jitter: Option<Duration>,
    bandwidth: Option<u64>,
}

impl FromStr for Change {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut change = Self::default();
        for part in text.split(',') {
            match part.trim().split_once('=') {
                Some(("delay", value)) => change.delay = Some(units::delay(value)?),
                Some(("jitter", value)) => change.jitter = Some(units::delay(value)?),
                Some(("bandwidth", value)) => change.bandwidth = Some(units::bandwidth(value)?),
                _ => {
                    return Err(format!(
                        "'{part}' is not one of delay=, jitter=, bandwidth=; write for example \
                         delay=35ms,bandwidth=1Gbit"
                    ));
                }
            }
        }
        Ok(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shape_change_sets_only_named_fields() {
        let base = Shape::default();
        let changed = base.changed(&"delay=35ms, bandwidth=1Gbit".parse().unwrap());
        let expected = Shape { delay: Duration::from_millis(35), bandwidth: 1_000_000_000, ..base };
        assert_eq!(changed, expected);
        assert_eq!(changed.to_string(), "35ms, 1Gbit/s");
        assert_eq!(base.changed(&"jitter=2ms".parse().unwrap()).to_string(), "20ms + 0..2ms, 100Mbit/s");
    }

    #[test]
    fn shape_parse_error_shows_the_right_form() {
        for wrong in ["", "speed=1", "delay", "delay=20", "bandwidth=0Mbit", "delay=20ms,"] {
            let why = wrong.parse::<Change>().unwrap_err();
            assert!(why.contains("write"), "{wrong}: {why}");
        }
    }

    #[test]
    fn shape_transmission_time_rounds_up() {
        let shape = Shape { bandwidth: 3_000_000, ..Shape::default() };
        for bytes in [1, 7, 1500, 1 << 20] {
            let time = shape.time_of(bytes);
            assert!((bytes..=bytes + 1).contains(&shape.bytes_in(time)), "{bytes}");
            assert!(time.as_secs_f64() >= bytes as f64 * 8.0 / 3e6 - 1e-12);
        }
        assert_eq!(shape.bytes_in(Duration::MAX), u64::MAX);
    }

    #[test]
    fn default_queue_holds_one_bandwidth_delay_product_or_its_minimum() {
        assert_eq!(Shape::default().queue(), 500_000);
        assert_eq!(Shape { delay: Duration::ZERO, ..Shape::default() }.queue(), 64 * 1024);
    }
}
