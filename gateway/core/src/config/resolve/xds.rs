//! Resolves `xds:`: agents or another control plane, and how they are authenticated.

use isthmus_certs::SpiffeId;
use isthmus_model::HostName;
use isthmus_model::at::{At, Spot};
use isthmus_model::problem::{Place, Quoted, Report};

use crate::config::defaults;
use crate::config::raw;
use crate::config::settings::{ControlPlane, Known, Source, Xds};

pub(crate) fn xds(report: &mut Report, raw: &raw::File) -> Option<Xds> {
    let At { value, spot } = raw.xds.as_ref()?;
    let place = Place::Root.key("xds");
    if raw.trust.is_none() {
        let what = format_args!("{place} needs trust: agents serve only clients with a certificate");
        report.add(*spot, what, "add 'trust: …' with this gateway's certificate");
    }
    let source = source(report, place, value, *spot);
    Some(Xds { source: source?, state: value.state.as_ref().map(|state| state.value.clone().into()) })
}

/// Whether agents supply services.
pub(crate) fn has_agents(raw: &raw::File) -> bool {
    raw.xds.as_ref().is_some_and(|xds| xds.value.agents.is_some())
}

fn source(report: &mut Report, place: Place<'_>, raw: &raw::Xds, spot: Spot) -> Option<Source> {
    let agents: Vec<_> = report.values(raw.agents.as_ref(), place.key("agents"));
    let foreign =
        raw.control_plane.as_ref().map(|raw| control_plane(report, place.key("control_plane"), raw));
    match foreign {
        Some(_) if raw.agents.is_some() => {
            report.add(
                spot,
                format_args!("{place} has both agents and a control_plane"),
                "remove one of them",
            );
            None
        }
        Some(foreign) => {
            if let Some(state) = &raw.state {
                let what =
                    format_args!("{}: tables of a control_plane cannot be persisted yet", place.key("state"));
                report.add(state.spot, what, "remove it");
            }
            foreign.map(Source::ControlPlane)
        }
        None => {
            if raw.agents.as_ref().is_none_or(Vec::is_empty) {
                report.add(spot, format_args!("{place} has no agents"), "add 'agents: [ADDRESS:15012]'");
            }
            Some(Source::Agents(agents))
        }
    }
}

fn control_plane(report: &mut Report, place: Place<'_>, raw: &At<raw::ControlPlane>) -> Option<ControlPlane> {
    let At { value, spot } = raw;
    let addresses = report.values(value.addresses.as_ref(), place.key("addresses"));
    if value.addresses.as_ref().is_none_or(Vec::is_empty) {
        report.add(*spot, format_args!("{place} has no addresses"), "add 'addresses: [ADDRESS:15012]'");
    }
    let port = report.port(value.port.as_ref(), place.key("port"));
    let node_id = value.node_id.as_ref().map(|id| {
        let text = &id.value;
        if !(1..=defaults::FOREIGN_ID).contains(&text.len()) || text.chars().any(char::is_control) {
            let remedy = format!("write 1 to {} bytes without control characters", defaults::FOREIGN_ID);
            report.add(
                id.spot,
                format_args!("{}: {} cannot be used", place.key("node_id"), Quoted(text)),
                remedy,
            );
        }
        text.clone()
    });
    let server = known(report, place, raw);
    Some(ControlPlane {
        addresses,
        server: server?,
        port: port.unwrap_or(defaults::CONTROL_PLANE_PORT),
        node_id,
        metadata: value.metadata.clone().unwrap_or_default(),
    })
}

fn known(report: &mut Report, place: Place<'_>, raw: &At<raw::ControlPlane>) -> Option<Known> {
    match (&raw.value.identity, &raw.value.tls_name) {
        (Some(id), None) => match SpiffeId::parse(&id.value) {
            Ok(parsed) => Some(Known::Identity(parsed)),
            Err(error) => {
                let what = format_args!(
                    "{}: {} is not a SPIFFE ID: {error}",
                    place.key("identity"),
                    Quoted(&id.value)
                );
                report.add(id.spot, what, "write spiffe://TRUST-DOMAIN/PATH");
                None
            }
        },
        (None, Some(name)) => match HostName::parse(&name.value) {
            Ok(parsed) => Some(Known::Name(parsed)),
            Err(error) => {
                let what = format_args!(
                    "{}: {} is not a DNS name: {error}",
                    place.key("tls_name"),
                    Quoted(&name.value)
                );
                report.add(
                    name.spot,
                    what,
                    "write a name of its certificate, such as istiod.istio-system.svc",
                );
                None
            }
        },
        (Some(_), Some(_)) => {
            report.add(
                raw.spot,
                format_args!("{place} has both an identity and a tls_name"),
                "remove one of them",
            );
            None
        }
        (None, None) => {
            let remedy = "add 'identity: spiffe://…' or 'tls_name: …' to authenticate the control plane";
            report.add(raw.spot, format_args!("{place} has no identity"), remedy);
            None
        }
    }
}
