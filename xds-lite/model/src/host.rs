//! Host names in the form in which they are compared: lower-case, without the trailing dot. Resolves nothing;
//! the `outbound_` forms belong to routes.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// The longest name, without its trailing dot.
pub const MAX_NAME: usize = 253;
/// The longest label of a name.
pub const MAX_LABEL: usize = 63;
/// The zone of names that gateways use among themselves; no service has such a name.
const RESERVED: &str = "isthmus.invalid";
/// The name by which gateways probe each other: every gateway refuses it with an alert.
pub const PROBE: &str = "_probe.isthmus.invalid";

/// Why a text is not a host name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is empty, or only a dot.
    #[error("the name is empty")]
    Empty,
    /// The name exceeds 253 bytes.
    #[error("the name is longer than 253 bytes")]
    TooLong,
    /// There are two dots in a row, or a leading dot.
    #[error("a label is empty")]
    EmptyLabel,
    /// A label exceeds 63 bytes.
    #[error("a label is longer than 63 bytes")]
    LongLabel,
    /// A character is not a letter, a digit, `-` or `_`.
    #[error("a label has characters other than ASCII letters, digits, '-' and '_'")]
    Character,
    /// The name is reserved for the gateways themselves.
    #[error("names under isthmus.invalid are reserved for the gateways themselves")]
    Reserved,
}

/// One host name: ASCII letters in lower case, digits, `-` and `_` in labels of 1 to 63 bytes, 253
/// bytes in all, no trailing dot.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

impl HostName {
    /// Validates the bytes, drops one trailing dot and folds the case.
    ///
    /// # Errors
    /// The first violated rule.
    pub fn parse(name: impl AsRef<[u8]>) -> Result<HostName, NameError> {
        let name = name.as_ref();
        let name = name.strip_suffix(b".").unwrap_or(name);
        match name.len() {
            0 => return Err(NameError::Empty),
            1..=MAX_NAME => {}
            _ => return Err(NameError::TooLong),
        }
        for label in name.split(|byte| *byte == b'.') {
            match label.len() {
                0 => return Err(NameError::EmptyLabel),
                1..=MAX_LABEL => {}
                _ => return Err(NameError::LongLabel),
            }
            if !label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
                return Err(NameError::Character);
            }
        }
        let folded: String = name.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect();
        Ok(HostName(folded.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Parses a name that a service or an instance is to have.
    ///
    /// # Errors
    /// As for [`HostName::parse`], and [`NameError::Reserved`].
    pub fn parse_own(name: impl AsRef<[u8]>) -> Result<HostName, NameError> {
        let name = HostName::parse(name)?;
        let above = name.0.strip_suffix(RESERVED);
        if above.is_some_and(|above| above.is_empty() || above.ends_with('.')) {
            return Err(NameError::Reserved);
        }
        Ok(name)
    }
}

impl Borrow<str> for HostName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl serde::Serialize for HostName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for HostName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<HostName, D::Error> {
        HostName::parse(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A name pattern of a service: exact, or everything under a suffix.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// This name only.
    Exact(HostName),
    /// `*.suffix`: one or more labels under it, never the suffix itself.
    Suffix(HostName),
}

impl HostPattern {
    /// Parses `name` or `*.suffix`.
    ///
    /// # Errors
    /// The first rule that the name, or the part after `*.`, violates.
    pub fn parse(text: &str) -> Result<HostPattern, NameError> {
        match text.strip_prefix("*.") {
            Some(suffix) => HostName::parse_own(suffix).map(HostPattern::Suffix),
            None => HostName::parse_own(text).map(HostPattern::Exact),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Exact(name) => name.fmt(f),
            HostPattern::Suffix(name) => write!(f, "*.{name}"),
        }
    }
}

impl serde::Serialize for HostPattern {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn host_name_is_folded_and_drops_one_trailing_dot() {
        assert_eq!(HostName::parse("Details.BookInfo.").unwrap().as_str(), "details.bookinfo");
        assert_eq!(HostName::parse("outbound_.8080_._.a-b").unwrap().as_str(), "outbound_.8080_._.a-b");
        assert_eq!(HostName::parse(""), Err(NameError::Empty));
        assert_eq!(HostName::parse("."), Err(NameError::Empty));
        assert_eq!(HostName::parse("a.."), Err(NameError::EmptyLabel));
        assert_eq!(HostName::parse(".a"), Err(NameError::EmptyLabel));
        assert_eq!(HostName::parse("a b"), Err(NameError::Character));
        assert_eq!(HostName::parse("a\0"), Err(NameError::Character));
        assert_eq!(HostName::parse("é"), Err(NameError::Character));
        assert_eq!(HostName::parse("a".repeat(64)), Err(NameError::LongLabel));
        assert!(HostName::parse("a".repeat(63)).is_ok());
        let longest = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
        assert!(HostName::parse(format!("{longest}.")).is_ok());
        assert_eq!(HostName::parse(format!("{longest}e")), Err(NameError::TooLong));
    }

    #[test]
    fn host_pattern_has_a_star_only_before_the_first_dot() {
        assert_eq!(HostPattern::parse("*.Apps.example").unwrap().to_string(), "*.apps.example");
        assert_eq!(HostPattern::parse("a.*.b"), Err(NameError::Character));
        assert_eq!(HostPattern::parse("*"), Err(NameError::Character));
        assert_eq!(HostPattern::parse("*."), Err(NameError::Empty));
    }

    #[test]
    fn names_of_the_gateways_themselves_are_no_services() {
        for name in
            [PROBE, "isthmus.invalid", "*.isthmus.invalid", "*.a.Isthmus.Invalid.", "db-0.isthmus.invalid"]
        {
            assert_eq!(HostPattern::parse(name), Err(NameError::Reserved), "{name}");
        }
        for name in ["isthmus.invalid.example", "notisthmus.invalid", "*.invalid", "probe.isthmus.example"] {
            assert!(HostPattern::parse(name).is_ok(), "{name}");
        }
        assert!(HostName::parse(PROBE).is_ok(), "a ClientHello may carry it");
    }

    proptest! {
        #[test]
        fn host_parser_is_total_and_idempotent(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(name) = HostName::parse(&bytes) {
                prop_assert_eq!(HostName::parse(name.as_str()).unwrap(), name);
            }
        }
    }
}
