//! Prints an error with its causes on one line, each once, although many errors quote their cause.

use std::error::Error;

/// The text of an error and its causes. A cause that the text already contains is omitted.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        if !text.contains(&why) {
            text = format!("{text}: {why}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Caused(&'static str, #[source] Option<Box<Caused>>);

    #[test]
    fn causes_are_printed_once() {
        let causes = |texts: &[&'static str]| {
            let all = texts.iter().rev().fold(None, |cause, text| Some(Box::new(Caused(text, cause))));
            with_causes(&*all.unwrap())
        };
        assert_eq!(
            causes(&["trust: a.pem: no key", "a.pem: no key", "no key", "no key"]),
            "trust: a.pem: no key"
        );
        assert_eq!(causes(&["cannot dial", "refused", "os error 111"]), "cannot dial: refused: os error 111");
        assert_eq!(causes(&["alone"]), "alone");
    }
}
