//! Resolves `trust:`.

use std::path::PathBuf;

use isthmus_certs::{TrustDomain, TrustFiles};
use isthmus_model::at::At;
use isthmus_model::problem::{Place, Quoted, Report};

use super::raw;
use super::resolve::needed;

pub(super) fn trust_files(report: &mut Report, trust: &At<raw::Trust>) -> Option<TrustFiles> {
    let place = Place::Root.key("trust");
    let domain = trust.value.domain.as_ref().map(|written| domain(report, place.key("domain"), written));
    let mut path = |key, written: Option<&At<String>>| {
        needed(report, place, trust.spot, key, written).map(|path| PathBuf::from(&path.value))
    };
    let certificate = path("certificate", trust.value.certificate.as_ref());
    let key = path("key", trust.value.key.as_ref());
    let bundles = path("bundles", trust.value.bundles.as_ref());
    if domain == Some(None) {
        return None;
    }
    Some(TrustFiles {
        certificate: certificate?,
        key: key?,
        bundles: bundles?,
        deny: trust.value.deny.as_ref().map(|deny| PathBuf::from(&deny.value)),
        ..TrustFiles::default()
    })
}

pub(super) fn domain(report: &mut Report, place: Place<'_>, written: &At<String>) -> Option<TrustDomain> {
    let domain = TrustDomain::new(&written.value);
    if let Err(error) = &domain {
        report.add(written.spot, format_args!("{place}: {} cannot be used", Quoted(&written.value)), error);
    }
    domain.ok()
}
