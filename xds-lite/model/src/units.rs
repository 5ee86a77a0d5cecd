//! Durations, sizes, counts and shares as written in YAML: `5s`, `16KiB`, `10`, `0.2`, and the words `off`
//! and `auto`. Ranges are checked where a key is read.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

/// A scalar value of a file. It stays text until it is resolved, so that an invalid one is reported next to
/// the others instead of ending the parsing.
pub trait Scalar {
    /// The parsed type.
    type Value;

    /// The text as written.
    fn text(&self) -> &str;

    /// Parses the text.
    ///
    /// # Errors
    /// The error and its remedy.
    fn read(&self) -> Result<Self::Value, Wrong>;
}

/// Why a text is refused: completes "the text 'x' …".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The error: `is not a duration`.
    pub what: &'static str,
    /// The remedy.
    pub remedy: &'static str,
}

const NO_DURATION: Wrong =
    Wrong { what: "is not a duration", remedy: "write a whole number and its unit: 500ms, 5s, 3m or 1h" };
const NO_SIZE: Wrong = Wrong {
    what: "is not a size",
    remedy: "write a number of bytes, or a whole number and its unit: 16KiB, 1MiB or 1GiB",
};
const NO_COUNT: Wrong = Wrong { what: "is not a whole number", remedy: "write digits only" };
const NO_SHARE: Wrong = Wrong { what: "is not a number", remedy: "write a decimal number such as 0.5" };

/// A duration: a whole number and `ms`, `s`, `m` or `h`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("pattern" = "^[0-9]+(ms|s|m|h)$"))]
pub struct Time(String);

/// A duration, or `off`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("pattern" = "^([0-9]+(ms|s|m|h)|off)$"))]
pub struct TimeOrOff(String);

/// A size: a number of bytes, or a whole number and `KiB`, `MiB` or `GiB`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("type" = ["string", "integer"]))]
#[schemars(extend("pattern" = "^[0-9]+(KiB|MiB|GiB)?$", "minimum" = 0))]
pub struct Size(String);

/// A size, or `auto`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("type" = ["string", "integer"]))]
#[schemars(extend("pattern" = "^([0-9]+(KiB|MiB|GiB)?|auto)$", "minimum" = 0))]
pub struct SizeOrAuto(String);

/// A whole number.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("type" = "integer"))]
pub struct Count(String);

/// A whole number, or `off`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("type" = ["integer", "string"], "pattern" = "^off$"))]
pub struct CountOrOff(String);

/// A share between 0 and 1.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("type" = "number", "minimum" = 0, "maximum" = 1))]
pub struct Share(String);

impl Scalar for Time {
    type Value = Duration;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<Duration, Wrong> {
        read_duration(&self.0).ok_or(NO_DURATION)
    }
}

impl Scalar for TimeOrOff {
    type Value = Option<Duration>;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<Option<Duration>, Wrong> {
        let wrong = Wrong {
            remedy: "write a whole number and its unit, such as 500ms, 5s, 3m or 1h, or off",
            ..NO_DURATION
        };
        unless("off", &self.0, |text| read_duration(text).ok_or(wrong))
    }
}

impl Scalar for Size {
    type Value = u64;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<u64, Wrong> {
        read_size(&self.0).ok_or(NO_SIZE)
    }
}

impl Scalar for SizeOrAuto {
    type Value = Option<u64>;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<Option<u64>, Wrong> {
        let wrong =
            Wrong { remedy: "write a number of bytes, a size such as 256KiB or 1MiB, or auto", ..NO_SIZE };
        unless("auto", &self.0, |text| read_size(text).ok_or(wrong))
    }
}

impl Scalar for Count {
    type Value = u64;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<u64, Wrong> {
        read_digits(&self.0).ok_or(NO_COUNT)
    }
}

impl Scalar for CountOrOff {
    type Value = Option<u64>;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<Option<u64>, Wrong> {
        let wrong = Wrong { remedy: "write digits only, or off", ..NO_COUNT };
        unless("off", &self.0, |text| read_digits(text).ok_or(wrong))
    }
}

impl Scalar for Share {
    type Value = f64;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<f64, Wrong> {
        self.0.parse().ok().filter(|share: &f64| share.is_finite()).ok_or(NO_SHARE)
    }
}

fn unless<T>(
    word: &str,
    text: &str,
    read: impl FnOnce(&str) -> Result<T, Wrong>,
) -> Result<Option<T>, Wrong> {
    if text == word { Ok(None) } else { read(text).map(Some) }
}

pub(crate) fn read_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(milliseconds).map(Duration::from_millis)
}

fn read_size(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let bytes = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(bytes)
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    Some((read_digits(number)?, unit))
}

/// Unlike `str::parse`, accepts no sign.
fn read_digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A duration as written in files, in the largest exact unit.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    for (unit, length) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if milliseconds > 0 && milliseconds.is_multiple_of(length) {
            return format!("{}{unit}", milliseconds / length);
        }
    }
    if milliseconds == 0 { "0s".to_owned() } else { format!("{milliseconds}ms") }
}

/// Likewise, with `off` for no limit.
#[must_use]
pub fn show_duration_or_off(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "off".to_owned(), show_duration)
}

/// A size as written in files, in the largest exact unit.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    for (unit, length) in [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes > 0 && bytes.is_multiple_of(length) {
            return format!("{}{unit}", bytes / length);
        }
    }
    bytes.to_string()
}

/// For `serialize_with`: settings are shown as they are written in files.
///
/// # Errors
/// The serializer's.
pub fn duration<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&show_duration(*value))
}

/// For `serialize_with`: a duration or `off`.
///
/// # Errors
/// The serializer's.
pub fn duration_or_off<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&show_duration_or_off(*value))
}

/// For `serialize_with`: a count or `off`.
///
/// # Errors
/// The serializer's.
pub fn count_or_off<S: Serializer>(value: &Option<u32>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(count) => serializer.serialize_u32(*count),
        None => serializer.serialize_str("off"),
    }
}

/// For `serialize_with`: bytes or `auto`.
///
/// # Errors
/// The serializer's.
pub fn size_or_auto<S: Serializer>(value: &Option<usize>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(bytes) => bytes.serialize(serializer),
        None => serializer.serialize_str("auto"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn duration_is_a_number_and_a_unit() {
        let read = |text: &str| Time(text.to_owned()).read();
        assert_eq!(read("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(read("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(read("3m"), Ok(Duration::from_mins(3)));
        assert_eq!(read("1h"), Ok(Duration::from_hours(1)));
        assert_eq!(read("0s"), Ok(Duration::ZERO));
        let refused = [
            "",
            "5",
            "s",
            "5 s",
            "-5s",
            "+5s",
            "1.5s",
            "5S",
            "5sec",
            "1d",
            "off",
            "٣s",
            "99999999999999999h",
        ];
        for wrong in refused {
            assert_eq!(read(wrong), Err(NO_DURATION), "{wrong}");
        }
        assert_eq!(TimeOrOff("off".to_owned()).read(), Ok(None));
        assert_eq!(TimeOrOff("5s".to_owned()).read(), Ok(Some(Duration::from_secs(5))));
        assert!(TimeOrOff("never".to_owned()).read().is_err());
    }

    #[test]
    fn size_is_bytes_or_a_number_and_a_unit() {
        let read = |text: &str| Size(text.to_owned()).read();
        assert_eq!(read("100"), Ok(100));
        assert_eq!(read("16KiB"), Ok(16_384));
        assert_eq!(read("1MiB"), Ok(1_048_576));
        assert_eq!(read("2GiB"), Ok(2_147_483_648));
        for wrong in ["", "KiB", "16kib", "16KB", "16 KiB", "1.5MiB", "-1", "auto", "99999999999999999GiB"] {
            assert_eq!(read(wrong), Err(NO_SIZE), "{wrong}");
        }
        assert_eq!(SizeOrAuto("auto".to_owned()).read(), Ok(None));
        assert_eq!(SizeOrAuto("1KiB".to_owned()).read(), Ok(Some(1024)));
    }

    #[test]
    fn count_and_share_have_no_sign_and_no_infinity() {
        assert_eq!(Count("10".to_owned()).read(), Ok(10));
        for wrong in ["", "-1", "+1", "1.0", "ten", "18446744073709551616"] {
            assert_eq!(Count(wrong.to_owned()).read(), Err(NO_COUNT), "{wrong}");
        }
        assert_eq!(CountOrOff("off".to_owned()).read(), Ok(None));
        assert_eq!(Share("0.5".to_owned()).read(), Ok(0.5));
        for wrong in ["NaN", "inf", ".5.", ""] {
            assert_eq!(Share(wrong.to_owned()).read(), Err(NO_SHARE), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn duration_and_size_read_back_as_shown(number in 0..u64::from(u32::MAX)) {
            let duration = Duration::from_millis(number);
            prop_assert_eq!(read_duration(&show_duration(duration)), Some(duration));
            prop_assert_eq!(read_size(&show_size(number)), Some(number));
        }

        #[test]
        fn scalar_parsers_are_total(text in ".{0,12}") {
            let _ = (read_duration(&text), read_size(&text), read_digits(&text));
        }
    }
}
