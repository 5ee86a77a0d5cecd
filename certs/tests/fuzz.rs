//! Fuzz targets of trust bundles as others make them: SPIFFE's JSON, and PEM as people join it. `cargo test` runs each
//! for a bounded time; `cargo bolero test` runs them for as long as you like, guided by coverage.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

use std::sync::LazyLock;
use std::time::Duration;

use isthmus_certs::{Authority, Bundle, TrustDomain, pem, spiffe_bundle};

const TIME: Duration = Duration::from_secs(3);

static ROOT: LazyLock<Authority> = LazyLock::new(|| Authority::generate(domain()).unwrap());

fn domain() -> TrustDomain {
    TrustDomain::new("west.example").unwrap()
}

/// A part of something good, replaced.
fn spliced(good: &[u8], bytes: &[u8], from: u16, cut: u8) -> Vec<u8> {
    let from = usize::from(from) % (good.len() + 1);
    let to = (from + usize::from(cut)).min(good.len());
    [&good[..from], bytes, &good[to..]].concat()
}

/// No panic; what is read has roots, and is read the same after it was written.
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

/// No panic; of two certificates none is lost in silence, unless its BEGIN or all of it was made a remark or cut out.
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
