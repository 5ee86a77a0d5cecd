//! An answer of an admin API as a client reads it. Anything may listen at an admin address, so no text of it reaches a
//! terminal unescaped.

use isthmus_certs::printable::{printable, printable_json, printable_lines};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A JSON answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer(Value);

/// Why an answer is not the page that was asked for.
#[derive(Debug, thiserror::Error)]
#[error(
    "the answer cannot be read: {0}; is it a program of another kind or version? --json prints the answer as it is"
)]
pub struct NotThePage(String);

impl Answer {
    /// Parses a body; none if it is not JSON.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Answer> {
        serde_json::from_slice(body).ok().map(Answer)
    }

    /// The answer as a page, its texts escaped for a terminal.
    ///
    /// # Errors
    /// The answer is another page, or none.
    pub fn page<T: DeserializeOwned>(&self) -> Result<T, NotThePage> {
        let mut value = self.0.clone();
        escape(&mut value);
        serde_path_to_error::deserialize(value).map_err(|error| {
            let cause = printable(&error.inner().to_string());
            match error.path().to_string().as_str() {
                "." => NotThePage(cause),
                path => NotThePage(format!("{path}: {cause}")),
            }
        })
    }

    /// The reason in an answer to a request that failed.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        self.0.get("error").and_then(Value::as_str).map(printable_lines)
    }

    /// The whole answer, unknown fields included.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// The whole answer as indented JSON.
    #[must_use]
    pub fn json(&self) -> String {
        printable_json(&format!("{:#}", self.0))
    }
}

fn escape(value: &mut Value) {
    match value {
        Value::String(text) => *text = printable(text),
        Value::Array(items) => items.iter_mut().for_each(escape),
        Value::Object(map) => {
            *map = std::mem::take(map)
                .into_iter()
                .map(|(key, mut value)| {
                    escape(&mut value);
                    (printable(&key), value)
                })
                .collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Failure, Index, StoreHealth};
    use super::*;

    #[test]
    fn answer_reaches_a_terminal_escaped() {
        let body = "{\"error\": \"\\u001b[31m\\na\", \"get\": [\"\u{9b}\u{202e}\"]}";
        let answer = Answer::parse(body.as_bytes()).unwrap();
        assert_eq!(answer.page::<Failure>().unwrap().error, "\\u{1b}[31m\\na");
        assert_eq!(answer.page::<Index>().unwrap().get, ["\\u{9b}\\u{202e}"]);
        assert_eq!(answer.error().unwrap(), "\\u{1b}[31m\na");
        let json = answer.json();
        assert!(json.contains(r"\u001b[31m\na") && json.contains(r"\u009b\u202e"), "{json}");
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), *answer.value());
    }

    #[test]
    fn answer_of_another_version_is_read_and_another_page_is_named() {
        let newer = br#"{"store": "slices", "usable": true, "since_tomorrow": 1}"#;
        let store: StoreHealth = Answer::parse(newer).unwrap().page().unwrap();
        assert!(store.usable && store.lost_records == 0);
        let wrong = Answer::parse(br#"{"store": "slices", "usable": "yes\u001b"}"#).unwrap();
        let why = wrong.page::<StoreHealth>().unwrap_err().to_string();
        assert!(why.contains("usable: ") && !why.contains('\u{1b}'), "{why}");
        let missing = Answer::parse(b"{}").unwrap().page::<StoreHealth>().unwrap_err().to_string();
        assert!(missing.contains("missing field `store`"), "{missing}");
        assert_eq!(Answer::parse(b"hi"), None);
    }
}
