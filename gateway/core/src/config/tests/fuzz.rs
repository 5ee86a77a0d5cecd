//! Any text, and any change of a valid file, is read or refused.

use proptest::prelude::*;

use super::*;

/// Random words of the file reach deeper than random letters.
fn words() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("listeners:"),
        Just("services:"),
        Just("endpoints:"),
        Just("host:"),
        Just("address:"),
        Just("- "),
        Just("\n"),
        Just("\n  "),
        Just("\n    "),
        Just(" a.b "),
        Just(" 127.0.0.1:80 "),
        Just(" *.x "),
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just(", "),
        Just("&a "),
        Just("*a "),
        Just("<<: "),
        Just("timeouts:"),
        Just(" 5s "),
        Just("port:"),
        Just(" 0 "),
        Just("aliases:"),
        Just("sni_port:"),
        Just("\""),
        Just("'"),
        Just("|"),
        Just("!!binary "),
        Just("~"),
        Just("instance:"),
        Just("default:"),
    ];
    proptest::collection::vec(word, 0..40).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in prop_oneof![any::<String>(), words()]) {
        if let Err(problems) = read(&text) {
            prop_assert!(problems.count() > 0);
            for problem in problems.list() {
                prop_assert!(!problem.to_string().contains(char::is_control), "{:?}", problem);
                prop_assert!(problem.line > 0 && problem.column > 0, "{:?}", problem);
            }
        }
    }

    #[test]
    fn any_change_of_the_full_example_is_read_or_refused(at in 0..3000_usize, cut in 0..20_usize, with in "[a-z:\\- {}\\[\\]0-9\n]{0,4}") {
        let block = DOCUMENT.split("```yaml\n").nth(2).unwrap().split("```").next().unwrap();
        let start = block.floor_char_boundary(at.min(block.len()));
        let end = block.floor_char_boundary((start + cut).min(block.len()));
        let _ = read(&[&block[..start], &with, &block[end..]].concat());
    }
}
