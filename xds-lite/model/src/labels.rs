//! Labels of endpoints: keys and values in the form of Kubernetes, few and short. What they mean is up to whoever
//! selects by them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::at::At;
use crate::problem::{Place, Quoted, Report};

/// The limit of labels of one endpoint, and of one selection.
pub const MAX_LABELS: usize = 32;
const MAX_PREFIX: usize = 253;
const MAX_NAME: usize = 63;

/// The labels of an endpoint. Clones share them, and having none costs nothing.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(Option<Arc<BTreeMap<String, String>>>);

/// Why texts are not labels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// The key has another form.
    #[error("{} is not a label key", Quoted(.0))]
    Key(String),
    /// The value has another form.
    #[error("{} is not a label value", Quoted(.0))]
    Value(String),
    /// One key has two values.
    #[error("{} is listed twice", Quoted(.0))]
    Twice(String),
    /// There are too many.
    #[error("has more than {MAX_LABELS} labels")]
    TooMany,
}

impl LabelError {
    /// The remedy.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            LabelError::Key(_) => {
                "write NAME or PREFIX/NAME: NAME of 1 to 63 letters, digits, '-', '_' or '.', with a letter or digit at \
                 both ends, and a DNS name as PREFIX"
            }
            LabelError::Value(_) => {
                "write up to 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends"
            }
            LabelError::Twice(_) => "write each key once",
            LabelError::TooMany => "write fewer",
        }
    }
}

impl Labels {
    /// Checks texts, of which each key must be given once.
    ///
    /// # Errors
    /// The first text that is not a label.
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Labels, LabelError> {
        let mut labels = BTreeMap::new();
        for (key, value) in pairs {
            if labels.len() == MAX_LABELS {
                return Err(LabelError::TooMany);
            }
            if !is_key(key) {
                return Err(LabelError::Key(shortened(key)));
            }
            if !value.is_empty() && !is_name(value) {
                return Err(LabelError::Value(shortened(value)));
            }
            if labels.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(LabelError::Twice(key.to_owned()));
            }
        }
        Ok(Labels((!labels.is_empty()).then(|| Arc::new(labels))))
    }

    /// Resolves labels of a file; problems go to the report.
    pub(crate) fn read(
        report: &mut Report,
        place: Place<'_>,
        written: &At<BTreeMap<String, String>>,
    ) -> Option<Labels> {
        let pairs = written.value.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let labels = Labels::new(pairs);
        if let Err(error) = &labels {
            report.add(written.spot, format_args!("{place}: {error}"), error.remedy());
        }
        labels.ok()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The pairs of key and value, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|labels| labels.iter()).map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.as_ref()?.get(key).map(String::as_str)
    }

    /// Whether an endpoint with these labels has all that are asked for.
    #[must_use]
    pub fn match_all(&self, wanted: &Labels) -> bool {
        wanted.iter().all(|(key, value)| self.get(key) == Some(value))
    }
}

/// `KEY=VALUE`, separated by commas, as in selectors of Kubernetes.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

fn is_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_prefix(prefix) && is_name(name),
        None => is_name(key),
    }
}

/// Whether a text is a DNS name, in lower case.
fn is_prefix(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_part = |part: &str| {
        has_ends(part, is_letter)
            && part.len() <= MAX_NAME
            && part.bytes().all(|byte| is_letter(byte) || byte == b'-')
    };
    text.len() <= MAX_PREFIX && text.split('.').all(is_part)
}

fn is_name(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.len() <= MAX_NAME
        && has_ends(text, |byte| byte.is_ascii_alphanumeric())
        && text.bytes().all(is_inner)
}

fn has_ends(text: &str, is_end: impl Fn(u8) -> bool) -> bool {
    let mut bytes = text.bytes();
    let first = bytes.next();
    first.is_some_and(&is_end) && bytes.next_back().or(first).is_some_and(is_end)
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_NAME).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        Labels::new(pairs.iter().copied()).unwrap()
    }

    #[test]
    fn labels_have_the_form_of_kubernetes() {
        let long = "x".repeat(63);
        for good in
            ["a", "app", "App_1.x-y", "app.kubernetes.io/version", "a.b/c", &long, &format!("a/{long}")]
        {
            assert!(Labels::new([(good, "v")]).is_ok(), "{good}");
        }
        let longer = "x".repeat(64);
        for bad in
            ["", "-a", "a-", "a b", "ä", "/a", "a/", "A.b/c", "a..b/c", "-a/b", "a/b/c", "a\0", &longer]
        {
            let refused = Labels::new([(bad, "v")]);
            assert!(matches!(refused, Err(LabelError::Key(_))), "{bad:?}: {refused:?}");
        }
        assert!(Labels::new([("a", ""), ("b", "v2"), ("c", &*long)]).is_ok());
        for bad in ["-", "v 2", "v2\n", ".v", "v/2", &longer] {
            let refused = Labels::new([("a", bad)]);
            assert!(matches!(refused, Err(LabelError::Value(_))), "{bad:?}: {refused:?}");
        }
        assert_eq!(Labels::new([("a", "1"), ("a", "1")]), Err(LabelError::Twice("a".to_owned())));
    }

    #[test]
    fn labels_are_bounded_before_they_are_kept() {
        let keys: Vec<_> = (0..=MAX_LABELS).map(|number| format!("k{number}")).collect();
        let pairs = |count| keys.iter().take(count).map(|key| (key.as_str(), "v"));
        assert_eq!(Labels::new(pairs(MAX_LABELS)).unwrap().iter().count(), MAX_LABELS);
        assert_eq!(Labels::new(pairs(MAX_LABELS + 1)), Err(LabelError::TooMany));
        let error = Labels::new([(&*"k".repeat(1 << 20), "v")]).unwrap_err();
        assert!(error.to_string().len() < 120);
    }

    #[test]
    fn labels_match_when_all_wanted_are_there() {
        let endpoint = labels(&[("app", "shop"), ("version", "v2")]);
        assert!(endpoint.match_all(&labels(&[("version", "v2")])));
        assert!(endpoint.match_all(&endpoint));
        assert!(!endpoint.match_all(&labels(&[("version", "v1")])));
        assert!(!endpoint.match_all(&labels(&[("version", "v2"), ("track", "")])));
        assert!(!Labels::default().match_all(&endpoint));
        assert_eq!(endpoint.to_string(), "app=shop,version=v2");
        assert_eq!(size_of::<Labels>(), size_of::<usize>());
    }
}
