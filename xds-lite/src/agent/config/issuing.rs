//! Resolves `issuing:` of an agent's file.

use std::time::Duration;

use isthmus_model::at::At;
use isthmus_model::problem::{Place, Report};
use isthmus_model::units::show_duration;
use isthmus_model::values::Zero;
use isthmus_trust::issuing::IntermediateFiles;

use super::resolve::needed;
use super::{Issuing, LONGEST, LONGEST_EVER, raw};

/// Needs a state directory, where the tokens for first certificates are stored.
pub(super) fn issuing(report: &mut Report, raw: &At<raw::Issuing>, has_state: bool) -> Option<Issuing> {
    let place = Place::Root.key("issuing");
    if !has_state {
        report.add(raw.spot, format_args!("{place} needs a state directory"), "add 'state: DIRECTORY'");
    }
    let certificate = needed(report, place, raw.spot, "certificate", raw.value.certificate.as_ref());
    let key = needed(report, place, raw.spot, "key", raw.value.key.as_ref());
    let written = raw.value.longest.as_ref();
    let longest = report.time(written, place.key("longest"), Zero::Refused, LONGEST);
    if let Some(written) = written
        && !(Duration::from_secs(1)..=LONGEST_EVER).contains(&longest)
    {
        let most = show_duration(LONGEST_EVER);
        let what = format_args!("{} is not between 1s and {most}", place.key("longest"));
        report.add(written.spot, what, "write 24h or less: certificates are renewed automatically");
    }
    let files =
        IntermediateFiles { certificate: certificate?.value.clone().into(), key: key?.value.clone().into() };
    Some(Issuing { files, longest })
}
