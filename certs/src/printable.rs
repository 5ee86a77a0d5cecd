//! Makes text that somebody else wrote safe for a terminal or a log line: certificates, peers' reasons, answers of
//! other programs. Control characters and those that reorder or hide text are escaped.

use std::fmt::Write as _;

/// The text on one line.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), escaped)
}

/// The text in its lines.
#[must_use]
pub fn printable_lines(text: &str) -> String {
    let keep = |printed: String, c| if c == '\n' { printed + "\n" } else { escaped(printed, c) };
    text.chars().fold(String::with_capacity(text.len()), keep)
}

/// The first `most` characters of the text on one line, and `…` where it is longer.
#[must_use]
pub fn excerpt(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => printable(text.get(..end).unwrap_or_default()) + "…",
        None => printable(text),
    }
}

/// A JSON document with the same values.
#[must_use]
pub fn printable_json(json: &str) -> String {
    let escape = |mut printed: String, c: char| {
        if c == '\n' || is_printable(c) {
            printed.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _infallible = write!(printed, "\\u{unit:04x}");
            }
        }
        printed
    };
    // Outside its strings JSON is ASCII, so what is escaped stands in a string.
    json.chars().fold(String::with_capacity(json.len()), escape)
}

fn escaped(mut printed: String, c: char) -> String {
    if is_printable(c) {
        printed.push(c);
    } else {
        printed.extend(c.escape_debug());
    }
    printed
}

fn is_printable(c: char) -> bool {
    matches!(c, '\\' | '\'' | '"') || c.escape_debug().len() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOREIGN: &str = "a\u{1b}[2J\r\n\u{202e}'é\\\"\u{9b}";

    #[test]
    fn printable_text_is_one_line_without_terminal_sequences() {
        assert_eq!(printable(FOREIGN), r#"a\u{1b}[2J\r\n\u{202e}'é\"\u{9b}"#);
        assert_eq!(printable_lines("a\u{7}\nb"), "a\\u{7}\nb");
    }

    #[test]
    fn excerpt_is_bounded() {
        assert_eq!(excerpt("ééé", 3), "ééé");
        assert_eq!(excerpt("éé\u{1b}é", 3), "éé\\u{1b}…");
        assert_eq!(excerpt(&"x".repeat(1 << 20), 2), "xx…");
    }

    #[test]
    fn printable_json_has_the_same_values() {
        let json = serde_json::to_string_pretty(&[FOREIGN, "\u{e0041}"]).unwrap();
        let printed = printable_json(&json);
        assert!(printed.contains(r"\u009b") && printed.contains(r"\udb40\udc41"), "{printed}");
        assert_eq!(serde_json::from_str::<[String; 2]>(&printed).unwrap(), [FOREIGN, "\u{e0041}"]);
    }
}
