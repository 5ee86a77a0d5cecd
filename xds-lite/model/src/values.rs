//! Reads single values: text → checked value, with its default.

use std::time::Duration;

use super::at::At;
use super::problem::{Place, Quoted, Report};
use super::units::{
    Count, CountOrOff, Scalar, Share, Size, SizeOrAuto, Time, TimeOrOff, show_duration, show_size,
};

/// The smallest and the largest value of a number.
pub type Range = (u64, u64);

/// The range of ports.
pub const PORTS: Range = (1, 65_535);
/// The longest duration, so that a deadline can always be added to now: 365 days.
pub const LONGEST: Duration = Duration::from_hours(365 * 24);

/// Whether a duration may be zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    /// Zero means "at once".
    Allowed,
    /// With zero nothing would ever succeed.
    Refused,
}

impl Report {
    /// The value, or `None` if it is missing or invalid.
    pub fn value<S: Scalar>(&mut self, raw: Option<&At<S>>, place: Place<'_>) -> Option<S::Value> {
        let raw = raw?;
        match raw.value.read() {
            Ok(value) => Some(value),
            Err(wrong) => {
                let what = format_args!("{place}: {} {}", Quoted(raw.value.text()), wrong.what);
                self.add(raw.spot, what, wrong.remedy);
                None
            }
        }
    }

    /// The valid items, in their order.
    pub fn values<S: Scalar>(&mut self, raw: Option<&Vec<At<S>>>, place: Place<'_>) -> Vec<S::Value> {
        let items = raw.map(Vec::as_slice).unwrap_or_default().iter().enumerate();
        items.filter_map(|(index, item)| self.value(Some(item), place.item(index))).collect()
    }

    /// Likewise for a required key; `whole` is the mapping that should have it.
    pub fn required<T, S: Scalar>(
        &mut self,
        raw: Option<&At<S>>,
        whole: &At<T>,
        parent: Place<'_>,
        key: &'static str,
    ) -> Option<S::Value> {
        if raw.is_none() {
            self.add(whole.spot, format_args!("{parent} has no {key}"), format_args!("add '{key}: …'"));
        }
        self.value(raw, parent.key(key))
    }

    /// A number within `range`, bounds included; an invalid one becomes the default or the nearest bound.
    pub fn count(&mut self, raw: Option<&At<Count>>, place: Place<'_>, range: Range, default: u32) -> u32 {
        let value = self.value(raw, place).unwrap_or(default.into());
        u32::try_from(self.within(raw, place, range, value, |number| number.to_string())).unwrap_or(default)
    }

    /// Likewise, where `off` is the same as no value.
    pub fn count_or_off(
        &mut self,
        raw: Option<&At<CountOrOff>>,
        place: Place<'_>,
        range: Range,
    ) -> Option<u32> {
        let value = self.value(raw, place)??;
        u32::try_from(self.within(raw, place, range, value, |number| number.to_string())).ok()
    }

    /// A port, 1 to 65535.
    pub fn port(&mut self, raw: Option<&At<Count>>, place: Place<'_>) -> Option<u16> {
        let value = self.value(raw, place)?;
        u16::try_from(self.within(raw, place, PORTS, value, |port| port.to_string())).ok()
    }

    /// Bytes within `range`, bounds included; an invalid number becomes the default or the nearest bound.
    pub fn size(&mut self, raw: Option<&At<Size>>, place: Place<'_>, range: Range, default: u64) -> usize {
        let value = self.value(raw, place).unwrap_or(default);
        usize::try_from(self.within(raw, place, range, value, show_size)).unwrap_or(usize::MAX)
    }

    /// Likewise, where `auto` is the same as no value.
    pub fn size_or_auto(
        &mut self,
        raw: Option<&At<SizeOrAuto>>,
        place: Place<'_>,
        range: Range,
    ) -> Option<usize> {
        let value = self.value(raw, place)??;
        usize::try_from(self.within(raw, place, range, value, show_size)).ok()
    }

    /// A number up to 1, from 0 or above it.
    pub fn share(&mut self, raw: Option<&At<Share>>, place: Place<'_>, zero: Zero, default: f64) -> f64 {
        let value = self.value(raw, place).unwrap_or(default);
        let allowed = (0.0..=1.0).contains(&value) && (value > 0.0 || zero == Zero::Allowed);
        if let (Some(raw), false) = (raw, allowed) {
            let remedy = match zero {
                Zero::Allowed => "write a number from 0 to 1",
                Zero::Refused => "write a number above 0, up to 1",
            };
            self.add(raw.spot, format_args!("{place}: {} is out of range", Quoted(raw.value.text())), remedy);
        }
        value
    }

    /// A duration of at most [`LONGEST`].
    pub fn time(
        &mut self,
        raw: Option<&At<Time>>,
        place: Place<'_>,
        zero: Zero,
        default: Duration,
    ) -> Duration {
        let value = self.value(raw, place).unwrap_or(default);
        self.reasonable(raw, place, zero, value);
        value
    }

    /// Likewise above zero, or `None` for `off`.
    pub fn time_or_off(
        &mut self,
        raw: Option<&At<TimeOrOff>>,
        place: Place<'_>,
        default: Option<Duration>,
    ) -> Option<Duration> {
        let value = self.value(raw, place).unwrap_or(default)?;
        self.reasonable(raw, place, Zero::Refused, value);
        Some(value)
    }

    fn reasonable<S: Scalar>(&mut self, raw: Option<&At<S>>, place: Place<'_>, zero: Zero, value: Duration) {
        let Some(raw) = raw else { return };
        let text = Quoted(raw.value.text());
        if value.is_zero() && zero == Zero::Refused {
            self.add(
                raw.spot,
                format_args!("{place}: {text} would let nothing succeed"),
                "write more than zero",
            );
        } else if value > LONGEST {
            let remedy = format_args!("write at most {}", show_duration(LONGEST));
            self.add(raw.spot, format_args!("{place}: {text} is too long"), remedy);
        }
    }

    /// Checks only written values: defaults are in range.
    fn within<S: Scalar>(
        &mut self,
        raw: Option<&At<S>>,
        place: Place<'_>,
        (least, most): Range,
        value: u64,
        show: fn(u64) -> String,
    ) -> u64 {
        if let (Some(raw), false) = (raw, (least..=most).contains(&value)) {
            let what = format_args!("{place}: {} is out of range", Quoted(raw.value.text()));
            self.add(raw.spot, what, format_args!("write {} to {}", show(least), show(most)));
        }
        value.clamp(least, most)
    }
}
