//! Parses and formats delays, bandwidths and sizes: `20ms`, `100Mbit`, `4MiB`.

use std::fmt;
use std::time::Duration;

/// Largest delay: beyond this TCP's own timers dominate.
const MOST_DELAY: Duration = Duration::from_secs(2);

const BITS: [(&str, u64); 4] = [("Gbit", 1_000_000_000), ("Mbit", 1_000_000), ("kbit", 1_000), ("bit", 1)];
const BYTES: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1)];

/// Parses a delay.
///
/// # Errors
/// If the text is invalid, with the valid form.
pub(crate) fn delay(text: &str) -> Result<Duration, String> {
    let delay = humantime::parse_duration(text)
        .map_err(|_| format!("'{text}' is not a duration; write a number with a unit: 20ms or 1500us"))?;
    if delay > MOST_DELAY {
        return Err(format!("'{text}' is too long; write at most 2s"));
    }
    Ok(delay)
}

/// Parses a bandwidth in bits per second, at least 1 kbit.
///
/// # Errors
/// If the text is invalid, with the valid form.
pub(crate) fn bandwidth(text: &str) -> Result<u64, String> {
    let per_second = text.strip_suffix("/s").unwrap_or(text);
    scaled(per_second, &BITS).filter(|bits| *bits >= 1_000).ok_or_else(|| {
        format!("'{text}' is not a bandwidth; write a whole number with kbit, Mbit or Gbit: 100Mbit")
    })
}

/// Parses a size in bytes, at least one.
///
/// # Errors
/// If the text is invalid, with the valid form.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    scaled(text, &BYTES).filter(|bytes| *bytes > 0).ok_or_else(|| {
        format!(
            "'{text}' is not a size; write a number of bytes, or a whole number with a unit: 256KiB or 4MiB"
        )
    })
}

/// Parses a number with one of the units; longer suffixes come first, as the first match counts.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (digits, factor) =
        units.iter().find_map(|(unit, factor)| text.strip_suffix(unit).map(|digits| (digits, factor)))?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
    digits.parse::<u64>().ok()?.checked_mul(*factor)
}

/// Formats with the largest unit that leaves a whole number.
fn write_scaled(f: &mut fmt::Formatter<'_>, count: u64, units: &[(&str, u64)]) -> fmt::Result {
    match units.iter().find(|(_, factor)| count.is_multiple_of(*factor)) {
        Some((unit, factor)) => write!(f, "{}{unit}", count / factor),
        None => write!(f, "{count}"),
    }
}

/// A number of bits, for display.
pub(crate) struct Bits(pub(crate) u64);

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_scaled(f, self.0, &BITS)
    }
}

/// A number of bytes, for display.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_scaled(f, self.0, &BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_round_trip_through_text() {
        for text in ["100Mbit", "1Gbit", "1500kbit", "1001bit"] {
            assert_eq!(Bits(bandwidth(text).unwrap()).to_string(), text);
            assert_eq!(bandwidth(&format!("{text}/s")), bandwidth(text));
        }
        for text in ["4MiB", "256KiB", "1GiB", "1000"] {
            assert_eq!(Bytes(size(text).unwrap()).to_string(), text);
        }
        assert_eq!(delay("0ms"), Ok(Duration::ZERO));
        assert_eq!(delay("1500us"), Ok(Duration::from_micros(1500)));
    }

    #[test]
    fn unit_parse_error_names_a_remedy() {
        let huge = format!("{}GiB", u64::MAX);
        for text in ["", "0", "-1", "+1MiB", "4MB", "MiB", "4 MiB", "1.5MiB", &huge] {
            assert!(size(text).unwrap_err().contains("write"), "{text}");
        }
        for text in ["", "100", "1bit", "0Mbit", "100MB", "100Mbit/h", "fast"] {
            assert!(bandwidth(text).unwrap_err().contains("write"), "{text}");
        }
        for text in ["", "20", "3s", "-1ms"] {
            assert!(delay(text).unwrap_err().contains("write"), "{text}");
        }
    }
}
