//! Parses YAML text into its written form, with the place of whatever does not fit.

use serde::de::{DeserializeOwned, Error as _, Unexpected};
use serde::{Deserialize, Deserializer};
use serde_path_to_error::{Path, Segment};
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::{Error, MessageFormatter, UserMessageFormatter};

use super::at::{At, Spot};
use super::problem::{Plain, Quoted, Report};

/// Far beyond the nodes of a file of 256 MiB; the parser's own limits suit small files.
const NODES: usize = 100_000_000;
/// Values that the aliases of any file may expand to: a thousand services may share one list of 20 endpoints.
const REPLAYED: usize = 100_000;
/// The limit for larger files, which may have one value for each two bytes.
const MOST_REPLAYED: usize = 8_000_000;
/// Bytes that the aliases of any file may expand to, beyond the file's own size.
const REPLAYED_BYTES: usize = 4 << 20;

/// What a key without one needs.
const A_VALUE: &str = "a value";

/// Reads a key that must not be written without a value. Of rules for callers, `allow:` alone could be meant as
/// everybody or nobody.
///
/// # Errors
/// It has no value, or a wrong one.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let value = Option::<T>::deserialize(deserializer)?;
    value.map(Some).ok_or_else(|| D::Error::invalid_type(Unexpected::Unit, &A_VALUE))
}

/// Parses the structure of a file. Returns `None`, with a problem in the report, if it does not fit; an empty
/// file has no keys.
pub fn read<T: DeserializeOwned + Default>(text: &str, report: &mut Report) -> Option<T> {
    match serde_saphyr::from_str_with_options(text, options(text.len())) {
        Ok(None) => Some(T::default()),
        Ok(Some(At { value, .. })) => Some(value),
        Err(error) => {
            let spot = error.location().map_or(Spot::START, Spot::from);
            let (what, remedy) = unfolded(innermost(&error))
                .unwrap_or_else(|| explain(innermost(&error), &place_of_error::<T>(text)));
            report.add(spot, what, remedy);
            None
        }
    }
}

/// The path of keys to the first error, found by parsing again: tracking the path is slow, and most files are
/// valid.
fn place_of_error<T: DeserializeOwned>(text: &str) -> String {
    let mut place = String::new();
    let read: Result<Option<At<T>>, Error> =
        serde_saphyr::with_deserializer_from_str_with_options(text, options(text.len()), |deserializer| {
            serde_path_to_error::deserialize(deserializer).map_err(|error| {
                place = show(error.path());
                error.into_inner()
            })
        });
    drop(read);
    place
}

/// The limits for a file of this length.
fn options(length: usize) -> serde_saphyr::Options {
    let replayed = (length / 2).clamp(REPLAYED, MOST_REPLAYED);
    serde_saphyr::options! {
        with_snippet: false,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: replayed },
        budget: serde_saphyr::budget! {
            max_events: NODES,
            max_nodes: NODES,
            max_aliases: NODES,
            max_merge_keys: NODES,
            max_recorded_anchor_events: MOST_REPLAYED,
            max_total_scalar_bytes: length.saturating_mul(2).saturating_add(REPLAYED_BYTES),
            // One anchor for the timeouts of a thousand services is good style.
            enforce_alias_anchor_ratio: false,
        },
    }
}

/// Explains an excessive expansion of aliases; such a file is not parsed again.
fn unfolded(error: &Error) -> Option<(String, String)> {
    let what = match error {
        Error::AliasReplayLimitExceeded { max_total_replayed_events: most, .. } => {
            format!("its aliases expand to more than {most} values")
        }
        Error::Budget { breach: BudgetBreach::ScalarBytes { .. }, .. } => {
            "its aliases expand to far more text than the file has".to_owned()
        }
        _ => return None,
    };
    Some((what, "write shorter anchors (&name), fewer aliases (*name), or several files".to_owned()))
}

fn innermost(mut error: &Error) -> &Error {
    while let Error::AliasError { error: inner, .. } | Error::WithSnippet { error: inner, .. } = error {
        error = inner;
    }
    error
}

/// The problem and its remedy.
fn explain(error: &Error, place: &str) -> (String, String) {
    match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            let parent = place.strip_suffix(field.as_str()).unwrap_or(place).trim_end_matches('.');
            let within = if parent.is_empty() { String::new() } else { format!(" in {}", Plain(parent)) };
            (format!("unknown key {}{within}", Quoted(field)), nearest(field, expected))
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            (format!("{}: unknown value {}", Plain(place), Quoted(variant)), nearest(variant, expected))
        }
        Error::DuplicateMappingKey { key, .. } => {
            let within = if place.is_empty() { String::new() } else { format!(" in {}", Plain(place)) };
            let key = Quoted(key.as_deref().unwrap_or_default());
            (format!("duplicate key {key}{within}"), "remove one of them".to_owned())
        }
        Error::MultipleDocuments { .. } => (
            "the file has a second document".to_owned(),
            "write one document, without --- or ... lines".to_owned(),
        ),
        Error::Unexpected { expected, .. } => wrong_shape(expected, place),
        Error::NullIntoString { .. } => {
            (format!("{}: no value", Plain(place)), "write one, or remove the entry".to_owned())
        }
        Error::SerdeInvalidType { expected, .. } if expected == A_VALUE => {
            let remedy = "write one, or remove the key; an empty list is []";
            (format!("{}: no value", Plain(place)), remedy.to_owned())
        }
        Error::InvalidScalar { .. } | Error::InvalidBooleanStrict { .. } => {
            (format!("{}: wrong kind of value", Plain(place)), "write true or false".to_owned())
        }
        Error::ExternalMessage { msg, .. } => {
            let remedy = if msg.contains("tab") { "indent with spaces" } else { "" };
            (format!("not valid YAML: {}", Plain(msg)), remedy.to_owned())
        }
        other => {
            let message = UserMessageFormatter.format_message(other);
            let at = if place.is_empty() { String::new() } else { format!("{}: ", Plain(place)) };
            (format!("{at}{}", Plain(&message)), String::new())
        }
    }
}

fn wrong_shape(expected: &str, place: &str) -> (String, String) {
    let place = if place.is_empty() { "the file" } else { place };
    let remedy = match expected {
        "string scalar" => "write a single value",
        "sequence start" => "write a list: [a, b], or lines that begin with '- '",
        "mapping start" => "write keys and values: lines of 'key: value', or {key: value}",
        other => {
            return (format!("{}: wrong kind of value", Plain(place)), format!("expected {}", Plain(other)));
        }
    };
    (format!("{}: wrong kind of value", Plain(place)), remedy.to_owned())
}

/// The known name that was probably meant, otherwise all of them.
fn nearest(name: &str, known: &[&'static str]) -> String {
    // A third of the letters may be wrong, swapped, missing or extra; a long text is near no name.
    let most = if name.len() > 64 { 0 } else { name.chars().count().div_ceil(3) };
    let near = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance);
    match near {
        Some((_, candidate)) => format!("did you mean '{candidate}'?"),
        None => format!("expected one of {}", known.join(", ")),
    }
}

/// The path in the format of [`Place`](crate::problem::Place), without the steps through [`At`].
fn show(path: &Path) -> String {
    let mut shown = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => shown.push_str(&format!("[{index}]")),
            Segment::Map { key } | Segment::Enum { variant: key } if key != "value" => {
                if !shown.is_empty() {
                    shown.push('.');
                }
                shown.push_str(key);
            }
            _ => {}
        }
    }
    shown
}
