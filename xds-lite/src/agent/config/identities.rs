//! Checks `gateways[].identities`: workloads of the own trust domain, and nobody who runs Isthmus itself.

use isthmus_certs::{IdPattern, TrustDomain};
use isthmus_model::binding::check_limits;
use isthmus_model::problem::{Place, Report};
use isthmus_model::units::Scalar as _;

use super::raw;

/// Refuses what no gateway may have. The trust domain is compared where the file names it; the certificate's is
/// compared at start.
pub(super) fn check(report: &mut Report, file: &raw::File) {
    let domain = file.trust.as_ref().and_then(|trust| trust.value.domain.as_ref());
    let domain = domain.and_then(|written| TrustDomain::new(&written.value).ok());
    let gateways = file.gateways.iter().flatten().enumerate();
    for (index, gateway) in gateways {
        let place = Place::Root.key("gateways");
        let place = place.item(index);
        let place = place.key("identities");
        let Some(written) = &gateway.value.identities else { continue };
        if let Some(first) = written.first().filter(|_| file.issuing.is_none()) {
            let what = format_args!("{place}: has no effect, because the agent issues no certificates");
            report.add(first.spot, what, "add 'issuing: { certificate: …, key: … }', or remove it");
        }
        let patterns: Vec<_> = written.iter().filter_map(|one| one.value.read().ok()).collect();
        if let (Some(first), Err(error)) = (written.first(), check_limits(&patterns)) {
            let what = format_args!("{place}: {error}");
            report.add(first.spot, what, "write 'spiffe://…/ns/NAMESPACE/*' for all of a namespace");
        }
        for (index, one) in written.iter().enumerate() {
            let Ok(pattern) = one.value.read() else { continue };
            let place = place.item(index);
            if !is_of_workloads(&pattern) {
                let what = format_args!("{place}: {pattern} is not only of workloads");
                report.add(
                    one.spot,
                    what,
                    "write spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT, or …/ns/NAMESPACE/*",
                );
            }
            if let Some(own) = domain.as_ref().filter(|own| *own != pattern.trust_domain()) {
                let what = format_args!("{place}: {pattern} is of another trust domain than {own}");
                report.add(
                    one.spot,
                    what,
                    "remove it: an agent issues certificates of its own trust domain only",
                );
            }
        }
    }
}

/// Whether only workloads match: gateways, agents and authorities have other paths.
fn is_of_workloads(pattern: &IdPattern) -> bool {
    match pattern {
        IdPattern::Exactly(id) => id.path().starts_with("/ns/"),
        IdPattern::Below(above) => above.path() == "/ns" || above.path().starts_with("/ns/"),
    }
}
