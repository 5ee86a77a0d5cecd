//! An error as one line: with its causes, each said once, though many errors name their cause in their own text.

use std::error::Error;

/// The text of an error and of what caused it. A cause that was said already is left out.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
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
    struct Said(&'static str, #[source] Option<Box<Said>>);

    #[test]
    fn causes_are_said_once() {
        let causes = |texts: &[&'static str]| {
            let all = texts.iter().rev().fold(None, |cause, text| Some(Box::new(Said(text, cause))));
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
