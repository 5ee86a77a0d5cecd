//! Fuzzes the parser of join tokens. `cargo test` runs it for a bounded time; `cargo bolero test` runs it for as long as
//! you like, guided by coverage.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use isthmus_trust::join::Token;
use sha2::{Digest as _, Sha256};

const TIME: Duration = Duration::from_secs(3);
const PREFIX: &str = "isthmus1.";

/// A token's text, with its checksum.
fn text_of(content: &[u8]) -> String {
    let sum = Sha256::new().chain_update(PREFIX).chain_update(content).finalize();
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode([content, &sum[..4]].concat()))
}

/// A token's content: expiry, root, secret, then the texts, each after its length.
fn content_of(fixed: &[u8; 56], texts: &[&[u8]]) -> Vec<u8> {
    let mut content = fixed.to_vec();
    for text in texts {
        content.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
        content.extend(*text);
    }
    content
}

/// Parsing never panics; a parsed token is written back the same, except the case of names; debug output has no secret.
fn check(text: &str) {
    if let Ok(token) = text.parse::<Token>() {
        assert_eq!(token.reveal().parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&token.reveal()));
    }
}

#[test]
fn fuzz_token() {
    let good: [&[u8]; 5] = [b"192.0.2.7:15011", b"east", b"east.example", b"west", b"west.example"];
    let check_all = |(bytes, place): &(Vec<u8>, u8)| {
        check(&String::from_utf8_lossy(bytes));
        check(&text_of(bytes));
        let mut texts = good;
        texts[usize::from(*place) % good.len()] = bytes;
        check(&text_of(&content_of(&[7; 56], &texts)));
        check(&text_of(&content_of(&[7; 56], &[good[0], good[1], good[2], b"", bytes])));
        check(&text_of(
            &[content_of(&[7; 56], &good[..usize::from(*place) % good.len()]), bytes.clone()].concat(),
        ));
    };
    bolero::check!().with_test_time(TIME).with_type::<(Vec<u8>, u8)>().for_each(check_all);
    assert!(
        text_of(&content_of(&[7; 56], &good)).parse::<Token>().is_ok(),
        "a token built by this test must parse"
    );
}
