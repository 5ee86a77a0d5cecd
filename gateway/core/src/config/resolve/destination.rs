//! Resolves where a listener for applications without TLS leads: its one service, or how a connection tells; and the
//! sockets that this takes.

use isthmus_model::at::{At, Spot};
use isthmus_model::problem::{Place, Quoted, Report};
use isthmus_model::services::{Entry, Table, TlsMode, defaults};
use isthmus_model::{HostName, HostPattern, sni};

use super::xds;
use crate::config::raw;
use crate::config::settings::{Destination, Mode, OriginalDestination, Sockets};

/// The keys of which a listener for applications has one.
const KEYS: &str = "'service', 'ports', 'original_destination' or 'virtual_addresses'";

/// Resolves the sockets of a listener.
pub(super) fn sockets(
    report: &mut Report,
    place: Place<'_>,
    listener: &At<raw::Listener>,
) -> Option<Sockets> {
    let raw = &listener.value;
    let originates = raw.mode.as_ref().is_some_and(|mode| mode.value == Mode::Originate);
    if originates && raw.virtual_addresses.is_some() {
        if let Some(address) = &raw.address {
            let what = format_args!("{}: has no effect with virtual_addresses", place.key("address"));
            report.add(address.spot, what, "remove it; the addresses are those of bindings");
        }
        return Some(Sockets::Virtual);
    }
    let address = report.required(raw.address.as_ref(), listener, place, "address")?;
    if originates && let Some(ports) = &raw.ports {
        if address.port() != 0 {
            let spot = raw.address.as_ref().map_or(listener.spot, |address| address.spot);
            let what = format_args!("{}: {address} has a port beside ports", place.key("address"));
            report.add(spot, what, "write port 0; the ports are those of bindings");
        }
        let ports = report.value(Some(ports), place.key("ports"))?;
        return Some(Sockets::Ports(address.ip(), ports));
    }
    let is_transparent =
        raw.original_destination.as_ref().map(|how| how.value) == Some(OriginalDestination::Tproxy);
    Some(if originates && is_transparent { Sockets::Transparent(address) } else { Sockets::Address(address) })
}

/// Resolves how the service of a connection is found.
pub(super) fn destination(
    report: &mut Report,
    place: Place<'_>,
    (listener, file): (&At<raw::Listener>, &raw::File),
    services: &Table<'_>,
) -> Option<Destination> {
    let raw = &listener.value;
    let keys = [
        raw.service.as_ref().map(|value| ("service", value.spot)),
        raw.ports.as_ref().map(|value| ("ports", value.spot)),
        raw.original_destination.as_ref().map(|value| ("original_destination", value.spot)),
        raw.virtual_addresses.as_ref().map(|value| ("virtual_addresses", value.spot)),
    ];
    let mut written = keys.into_iter().flatten();
    let first = written.next();
    if let (Some((one, _)), Some((other, spot))) = (first, written.next()) {
        let what = format_args!("{place} has both {one} and {other}");
        report.add(spot, what, format_args!("write one of {KEYS}"));
        return None;
    }
    if let (Some(port), None) = (&raw.port, &raw.service) {
        let what = format_args!("{}: has no effect without service", place.key("port"));
        report.add(port.spot, what, "remove it; the port is that of the binding");
    }
    match first {
        Some(("service", _)) => service(report, place, (listener, file), services),
        Some(("ports", _)) => Some(Destination::ListenerPort),
        Some(("virtual_addresses", _)) => Some(Destination::Dialled),
        Some(_) => raw.original_destination.as_ref().map(|how| match how.value {
            OriginalDestination::Redirect => Destination::Redirected,
            OriginalDestination::Tproxy => Destination::Dialled,
        }),
        None => {
            let what = format_args!("{place} has no service");
            report.add(listener.spot, what, format_args!("add {KEYS}"));
            None
        }
    }
}

/// Resolves the one service of a listener.
fn service(
    report: &mut Report,
    place: Place<'_>,
    (listener, file): (&At<raw::Listener>, &raw::File),
    services: &Table<'_>,
) -> Option<Destination> {
    let raw = &listener.value;
    let host = report.required(raw.service.as_ref(), listener, place, "service")?;
    let port = report.port(raw.port.as_ref(), place.key("port")).unwrap_or(defaults::PORT);
    let spot = raw.service.as_ref().map_or(listener.spot, |service| service.spot);
    let host = name(report, place.key("service"), spot, host, port)?;
    let entry = known(report, place.key("service"), spot, (&host, port), (file, services))?;
    if let Some(entry) = entry
        && entry.service.identities().is_empty()
        && entry.service.tls_mode() == TlsMode::Passthrough
    {
        let what = format_args!(
            "{}: {} port {port} has no identities, so its server cannot be told from another",
            place.key("service"),
            entry.service.host
        );
        report.add(spot, what, "add 'identities: [spiffe://…]' to the service");
    }
    Some(Destination::Service { host, port })
}

/// Returns the name of one host, which is short enough for an SNI with its port.
pub(super) fn name(
    report: &mut Report,
    place: Place<'_>,
    spot: Spot,
    host: HostPattern,
    port: u16,
) -> Option<HostName> {
    let HostPattern::Exact(name) = host else {
        report.add(spot, format_args!("{place}: {host} is not one host"), "write a whole name");
        return None;
    };
    if HostName::parse(sni::name(name.as_str(), port)).is_err() {
        report.add(spot, format_args!("{place}: {name} is too long"), "write at most 235 bytes");
        return None;
    }
    Some(name)
}

/// Finds the service of a host, or of an instance of it, in the file; without one the outer `None` is reported, unless
/// agents may tell of it.
pub(super) fn known<'a>(
    report: &mut Report,
    place: Place<'_>,
    spot: Spot,
    (name, port): (&HostName, u16),
    (file, services): (&raw::File, &'a Table<'a>),
) -> Option<Option<&'a Entry<'a>>> {
    let of_instance = || {
        let (label, parent) = name.as_str().split_once('.')?;
        let entry = services.entry(&HostPattern::Exact(HostName::parse(parent).ok()?), port)?;
        let mut endpoints = entry.service.endpoints.iter();
        let is_it = |instance: &HostName| instance.as_str() == label;
        endpoints.any(|endpoint| endpoint.instance.as_ref().is_some_and(is_it)).then_some(entry)
    };
    let entry = services.entry(&HostPattern::Exact(name.clone()), port).or_else(of_instance);
    if entry.is_none() && !xds::has_agents(file) {
        let what = format_args!("{place}: there is no service {} with port {port}", Quoted(name.as_str()));
        report.add(spot, what, "write HOST or INSTANCE.HOST of a service in this file, and its port");
        return None;
    }
    Some(entry)
}
