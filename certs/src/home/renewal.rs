//! Computes when a certificate is renewed.

use time::OffsetDateTime;

use crate::authority::BACKDATE;
use crate::facts::Facts;

/// After two thirds of a certificate's life, and up to a twentieth of it earlier, so that certificates issued together
/// are not renewed together. The time depends only on the certificate, so a restart does not change it.
pub fn renew_at(certificate: &Facts) -> OffsetDateTime {
    let end = certificate.not_after;
    let start = (certificate.not_before + BACKDATE).min(end);
    let life = end - start;
    let draw = u16::from_str_radix(certificate.fingerprint.get(..4).unwrap_or_default(), 16);
    let jitter = f64::from(draw.unwrap_or_default()) / f64::from(u16::MAX);
    start + life * (2.0 / 3.0 - jitter / 20.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Authority, SpiffeId, TrustDomain};

    #[test]
    fn renewal_is_at_two_thirds_of_life_with_jitter() {
        let authority = Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap();
        let id = SpiffeId::workload(authority.trust_domain(), "a", "b").unwrap();
        let life = Duration::from_secs(24 * 3600);
        let shares: Vec<f64> = (0..50)
            .map(|_| {
                let leaf = authority.issue(&id, &[], life).unwrap();
                let facts = Facts::read(&leaf.chain()[0]).unwrap();
                let lived = renew_at(&facts) - (facts.not_before + BACKDATE);
                assert_eq!(renew_at(&facts), renew_at(&facts));
                lived / life
            })
            .collect();
        assert!(shares.iter().all(|share| (0.616..=0.667).contains(share)), "{shares:?}");
        let (least, most) = shares.iter().fold((1.0_f64, 0.0_f64), |(a, b), s| (a.min(*s), b.max(*s)));
        assert!(most - least > 0.01, "{least} to {most}");
    }
}
