//! Fuzz targets of the two parsers that read untrusted bytes first. `cargo test` runs each for a bounded time;
//! `cargo bolero test` runs them for any time, guided by coverage. Targets of private parsers are beside the parsers;
//! all are called `fuzz_…`, and `cargo bolero list` names them. DNS answers and the system's files:
//! `gateway/core/src/resolve/lookup.rs`; slices: `xds-lite/model/src/slice/wire/tests.rs`; join messages:
//! `xds-lite/trust/src/join/wire.rs`; tokens: `xds-lite/tests/fuzz.rs`; bundles: `certs/tests/fuzz.rs`.

use std::time::Duration;

use isthmus_core::hello::{MAX_HELLO, Parser, Verdict};
use isthmus_core::proxy;

const TIME: Duration = Duration::from_secs(10);

/// No panic, and the verdict does not depend on how the bytes were split.
#[test]
fn fuzz_hello_parser() {
    bolero::check!().with_test_time(TIME).with_type::<(Vec<u8>, u8)>().for_each(|(bytes, cut)| {
        for start in [&b""[..], b"\x16\x03\x01", b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c\x03\x03"] {
            let wire = [start, bytes].concat();
            let whole = Parser::new(MAX_HELLO).advance(&wire);
            let mut parser = Parser::new(MAX_HELLO);
            let mut end = 0;
            let in_pieces = loop {
                end = (end + usize::from(*cut) + 1).min(wire.len());
                let verdict = parser.advance(&wire[..end]);
                if verdict != Verdict::More || end == wire.len() {
                    break verdict;
                }
            };
            assert_eq!(in_pieces, whole);
        }
    });
}

/// No panic, and no prefix gets a verdict that contradicts the whole.
#[test]
fn fuzz_proxy_header() {
    bolero::check!().with_test_time(TIME).with_type::<Vec<u8>>().for_each(|bytes| {
        for start in [&b""[..], b"PROXY TCP4 ", b"\r\n\r\n\0\r\nQUIT\n\x21\x11"] {
            let wire = [start, bytes].concat();
            let whole = proxy::read(&wire);
            for end in 0..wire.len() {
                let earlier = proxy::read(&wire[..end]);
                assert!(earlier == proxy::Verdict::More || earlier == whole);
            }
        }
    });
}

/// The same for version 2 with a correct length and arbitrary addresses and TLVs; bytes after the header never belong
/// to it.
#[test]
fn fuzz_proxy_header_v2() {
    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    bolero::check!().with_test_time(TIME).with_type::<(u8, u8, Vec<u8>)>().for_each(
        |(command, family, bytes)| {
            let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
            let body = &bytes[..usize::from(length)];
            let wire = [SIGNATURE, &[0x20 | command & 0xf, *family], &length.to_be_bytes(), body].concat();
            let whole = proxy::read(&wire);
            for end in 0..wire.len() {
                let earlier = proxy::read(&wire[..end]);
                assert!(earlier == proxy::Verdict::More || earlier == whole, "{wire:?} after {end}");
            }
            assert_eq!(proxy::read(&[&wire[..], b"\x16\x03\x01"].concat()), whole, "{wire:?}");
        },
    );
}
