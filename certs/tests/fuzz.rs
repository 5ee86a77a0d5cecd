//! Fuzz targets of the trust bundle readers: SPIFFE JSON, and joined PEM. `cargo test` runs each for a bounded time;
//! `cargo bolero test` runs them without limit, guided by coverage.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

use std::sync::LazyLock;
use std::time::Duration;

use isthmus_certs::{Authority, Bundle, TrustDomain, pem, spiffe_bundle};

const TIME: Duration = Duration::from_secs(3);

static ROOT: LazyLock<Authority> = LazyLock::new(|| Authority::generate(domain()).unwrap());

fn domain() -> TrustDomain {
    TrustDomain::new("west.example").unwrap()
}

/// Valid bytes with a part replaced.
fn spliced(good: &[u8], bytes: &[u8], from: u16, cut: u8) -> Vec<u8> {
    let from = usize::from(from) % (good.len() + 1);
    let to = (from + usize::from(cut)).min(good.len());
    [&good[..from], bytes, &good[to..]].concat()
}

/// No panic; a bundle that is read has roots, and round-trips.
#[test]
fn fuzz_bundle() {
    let good = Bundle::new(&domain(), 7, [ROOT.certificate()]).unwrap();
    let good = spiffe_bundle::write(&good).unwrap().into_bytes();
    bolero::check!().with_test_time(TIME).with_type::<(Vec<u8>, u16, u8)>().for_each(|(bytes, from, cut)| {
        for text in [bytes.clone(), spliced(&good, bytes, *from, *cut)] {
            if let Ok(bundle) = spiffe_bundle::read(&domain(), &text) {
                assert!(!bundle.roots().is_empty());
                let written = spiffe_bundle::write(&bundle).unwrap();
                assert_eq!(spiffe_bundle::read(&domain(), written).unwrap(), bundle);
            }
        }
    });
}

/// No panic; no certificate is lost in silence, unless its BEGIN was removed or commented out.
#[test]
fn fuzz_pem() {
    let root = ROOT.certificate_pem();
    let good = format!("{root}{root}").into_bytes();
    let begins = |text: &[u8]| text.windows(11).filter(|window| *window == b"-----BEGIN ").count();
    bolero::check!().with_test_time(TIME).with_type::<(Vec<u8>, u16, u8)>().for_each(|(bytes, from, cut)| {
        for text in [bytes.clone(), spliced(&good, bytes, *from, *cut)] {
            if let Ok(read) = pem::certificates(&text) {
                assert!(
                    text.contains(&b'#') || read.len() == begins(&text),
                    "{}",
                    String::from_utf8_lossy(&text)
                );
            }
        }
    });
}
