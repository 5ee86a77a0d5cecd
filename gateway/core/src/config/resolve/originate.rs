//! Resolves `mode: originate` of a listener: who its callers are; `destination` resolves where it leads.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use isthmus_certs::SpiffeId;
use isthmus_model::at::{At, Spot};
use isthmus_model::problem::{Place, Quoted, Report};
use isthmus_model::services::{CertificateFiles, Table};
use isthmus_model::units::Scalar as _;

use super::{destination, xds};
use crate::config::raw;
use crate::config::settings::{Caller, Callers, Mode, Originate, Side};

/// Resolves the keys of a listener; `None` if applications do not speak plaintext there.
pub(crate) fn resolve(
    report: &mut Report,
    place: Place<'_>,
    (listener, file): (&At<raw::Listener>, &raw::File),
    services: &Table<'_>,
) -> Option<Box<Originate>> {
    let raw = &listener.value;
    if raw.mode.as_ref().is_none_or(|mode| mode.value == Mode::Passthrough) {
        without_mode(report, place, raw);
        return None;
    }
    let spot = raw.mode.as_ref().map_or(listener.spot, |mode| mode.spot);
    if raw.side != Some(Side::Outbound) {
        let what = format_args!("{place}: mode: originate serves local applications alone");
        report.add(spot, what, "add 'side: outbound'");
    }
    if let Some(default) = &raw.default {
        let what = format_args!("{}: has no effect with mode: originate", place.key("default"));
        report.add(default.spot, what, "remove it; the listener's own keys name the destination");
    }
    let to = destination::destination(report, place, (listener, file), services);
    let callers = match (&raw.identity, &raw.callers) {
        (None, None) if xds::has_agents(file) => {
            only_with_identity(report, place, raw);
            Some(Callers::OfAgent)
        }
        _ => callers(report, place, listener).map(Callers::OfFile),
    };
    Some(Box::new(Originate { to: to?, callers: callers? }))
}

fn without_mode(report: &mut Report, place: Place<'_>, raw: &raw::Listener) {
    let keys = [
        ("service", raw.service.as_ref().map(|value| value.spot)),
        ("port", raw.port.as_ref().map(|value| value.spot)),
        ("ports", raw.ports.as_ref().map(|value| value.spot)),
        ("original_destination", raw.original_destination.as_ref().map(|value| value.spot)),
        ("virtual_addresses", raw.virtual_addresses.as_ref().map(|value| value.spot)),
        ("identity", raw.identity.as_ref().map(|value| value.spot)),
        ("sources", first(raw.sources.as_ref())),
        ("certificate", raw.certificate.as_ref().map(|value| value.spot)),
        ("key", raw.key.as_ref().map(|value| value.spot)),
        ("callers", first(raw.callers.as_ref())),
    ];
    for (key, spot) in keys.into_iter().filter_map(|(key, spot)| Some((key, spot?))) {
        let what = format_args!("{}: has no effect without 'mode: originate'", place.key(key));
        report.add(spot, what, "add 'mode: originate', or remove it");
    }
}

fn first<T>(list: Option<&Vec<At<T>>>) -> Option<Spot> {
    list.and_then(|list| list.first()).map(|item| item.spot)
}

/// Returns the callers; `None` if none is valid.
fn callers(report: &mut Report, place: Place<'_>, listener: &At<raw::Listener>) -> Option<Vec<Caller>> {
    let raw = &listener.value;
    let callers: Vec<Caller> = match (&raw.identity, &raw.callers) {
        (Some(identity), Some(_)) => {
            let what = format_args!("{place} has both an identity and callers");
            report.add(identity.spot, what, "remove one of them");
            return None;
        }
        (None, None) => {
            let what = format_args!("{place} has neither an identity nor callers");
            report.add(listener.spot, what, "add 'callers: [{ sources: […], identity: spiffe://… }]'");
            return None;
        }
        (Some(_), None) => {
            let sources = sources_of_all(report, place, listener);
            let identity = report.value(raw.identity.as_ref(), place.key("identity"));
            let files = files(report, place, listener.spot, raw.certificate.as_ref(), raw.key.as_ref());
            identity.map(|identity| Caller { sources, identity, files }).into_iter().collect()
        }
        (None, Some(callers)) => {
            only_with_identity(report, place, raw);
            let place = place.key("callers");
            if callers.is_empty() {
                let what = format_args!("{place}: has no entry, so everybody would be refused");
                report.add(listener.spot, what, "add '{ sources: […], identity: spiffe://… }'");
            }
            let each = callers.iter().enumerate();
            each.filter_map(|(index, one)| {
                let (place, raw) = (place.item(index), &one.value);
                if raw.sources.as_ref().is_none_or(Vec::is_empty) {
                    report.add(one.spot, format_args!("{place} has no sources"), "add 'sources: [CIDR, …]'");
                }
                let sources = report.values(raw.sources.as_ref(), place.key("sources"));
                let identity = report.required(raw.identity.as_ref(), one, place, "identity");
                let files = files(report, place, one.spot, raw.certificate.as_ref(), raw.key.as_ref());
                Some(Caller { sources, identity: identity?, files })
            })
            .collect()
        }
    };
    one_identity_each(report, place, raw, &callers);
    (!callers.is_empty()).then_some(callers)
}

/// Refuses keys of a listener's own identity where callers have theirs.
fn only_with_identity(report: &mut Report, place: Place<'_>, raw: &raw::Listener) {
    let keys = [
        ("sources", first(raw.sources.as_ref())),
        ("certificate", raw.certificate.as_ref().map(|value| value.spot)),
        ("key", raw.key.as_ref().map(|value| value.spot)),
    ];
    for (key, spot) in keys.into_iter().filter_map(|(key, spot)| Some((key, spot?))) {
        let what = format_args!("{}: has no effect beside callers", place.key(key));
        report.add(spot, what, "write it for each caller, or add 'identity: …' to the listener");
    }
}

fn files(
    report: &mut Report,
    place: Place<'_>,
    spot: Spot,
    certificate: Option<&At<String>>,
    key: Option<&At<String>>,
) -> Option<CertificateFiles> {
    CertificateFiles::resolve(certificate, key).unwrap_or_else(|missing| {
        let what = format_args!("{place} has an identity but no {missing}");
        report.add(spot, what, format_args!("add '{missing}: FILE' with the identity's own, PEM"));
        None
    })
}

/// The sources of an identity for all callers. Behind any other address than loopback they must be written: whoever
/// reaches the listener would have the identity.
fn sources_of_all(report: &mut Report, place: Place<'_>, listener: &At<raw::Listener>) -> Vec<IpNet> {
    let raw = &listener.value;
    if raw.sources.is_some() {
        return report.values(raw.sources.as_ref(), place.key("sources"));
    }
    let address = raw.address.as_ref().and_then(|address| address.value.read().ok());
    let is_loopback = match address {
        Some(address) => address.ip().is_loopback(),
        // Whoever reaches a virtual address; without it, the missing address is reported.
        None => raw.virtual_addresses.is_none(),
    };
    if !is_loopback {
        let spot = raw.identity.as_ref().map_or(listener.spot, |identity| identity.spot);
        let what = format_args!("{place} gives its identity to whoever reaches its address");
        report.add(spot, what, "add 'sources: [CIDR, …]' with the callers, or listen on 127.0.0.1");
    }
    LOOPBACK.to_vec()
}

const LOOPBACK: [IpNet; 2] = [
    IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
    IpNet::new_assert(IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
];

/// Refuses a range with two identities.
fn one_identity_each(report: &mut Report, place: Place<'_>, raw: &raw::Listener, callers: &[Caller]) {
    let mut known: HashMap<IpNet, &SpiffeId> = HashMap::new();
    for caller in callers {
        for net in &caller.sources {
            let Some(other) = known.insert(*net, &caller.identity).filter(|id| **id != caller.identity)
            else {
                continue;
            };
            let spot = first(raw.callers.as_ref()).unwrap_or(Spot::START);
            let what = format_args!(
                "{}: {net} has two identities, {other} and {}",
                place.key("callers"),
                caller.identity
            );
            report.add(spot, what, "give each range one identity; the longest prefix decides between ranges");
        }
    }
}

/// Refuses a default whose certificate is for its own name.
pub(super) fn check_default(
    report: &mut Report,
    place: Place<'_>,
    name: &At<String>,
    services: &Table<'_>,
    index: usize,
) {
    if services.is_terminated(index) {
        let what = format_args!(
            "{}: {} ends TLS here with a certificate for its own name",
            place.key("default"),
            Quoted(&name.value)
        );
        report.add(name.spot, what, "remove the default, or the service's 'tls: terminate'");
    }
}
