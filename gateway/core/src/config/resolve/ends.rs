//! Checks that TLS of the gateway's own has what it needs: bundles to verify peers by, and for each caller and service a
//! certificate, from files or from an agent.

use isthmus_model::at::Spot;
use isthmus_model::problem::{Place, Report};
use isthmus_model::services::{Table, TlsMode};

use crate::config::raw;
use crate::config::settings::{Listener, Mode};

/// Reports what is missing, or cannot be used together.
pub(super) fn check(report: &mut Report, raw: &raw::File, listeners: &[Listener], services: &Table<'_>) {
    let of_listener = raw.listeners.iter().flat_map(|listeners| &listeners.value).find_map(|listener| {
        let mode = listener.value.mode.as_ref()?;
        (mode.value == Mode::Originate).then_some(("mode: originate", mode.spot))
    });
    let of_service = services.first_terminated().map(|spot| ("tls: terminate", spot));
    let Some((what, spot)) = of_listener.or(of_service) else { return };
    if raw.trust.is_none() {
        let what = format_args!("{what} needs trust: peers are verified by its bundles");
        report.add(spot, what, "add 'trust: { directory: …, token: … }', or 'trust: { certificate: …, key: …, bundles: DIRECTORY }'");
    }
    let has_agents = raw.xds.as_ref().is_some_and(|xds| xds.value.agents.is_some());
    let is_managed = raw.trust.as_ref().is_some_and(|trust| trust.value.directory.is_some());
    for (who, from_files, spot) in holders(raw, listeners, services) {
        if !from_files && !has_agents {
            let what = format_args!("{who} but no certificate");
            let remedy = "add 'certificate: FILE' and 'key: FILE', or 'xds: { agents: [ADDRESS:15012] }' for one of the agent";
            report.add(spot, what, remedy);
        } else if from_files && is_managed {
            let what = format_args!(
                "{who} and a certificate in files, which cannot be verified before trust.directory has a bundle"
            );
            report.add(spot, what, "remove its certificate and key: the agent issues them");
        }
    }
}

/// Everybody who presents a certificate: who it is, whether that is in files, and its place.
fn holders<'a>(
    raw: &'a raw::File,
    listeners: &'a [Listener],
    services: &'a Table<'_>,
) -> impl Iterator<Item = (String, bool, Spot)> {
    let written = raw.listeners.iter().flat_map(|listeners| &listeners.value);
    let callers = written.zip(listeners).enumerate().flat_map(|(index, (written, listener))| {
        let callers = listener.originate.iter().flat_map(|originate| originate.callers.of_file());
        callers.enumerate().map(move |(position, caller)| {
            let place = Place::Root.key("listeners");
            let place = place.item(index);
            let who = match &written.value.callers {
                None => format!("{place} has an identity"),
                Some(_) => format!("{} has an identity", place.key("callers").item(position)),
            };
            (who, caller.files.is_some(), written.spot)
        })
    });
    let doors = services.entries().filter(|entry| entry.service.tls_mode() == TlsMode::Terminate);
    let doors = doors.map(|entry| {
        let has_files = entry.service.tls.as_ref().is_some_and(|tls| tls.files.is_some());
        (format!("services[{}] has tls: terminate", entry.index), has_files, entry.host_spot())
    });
    callers.chain(doors)
}
