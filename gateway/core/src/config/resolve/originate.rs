//! Resolves `mode: originate` of a listener: the service that it begins mTLS to, and who its callers are. Also checks that
//! there are bundles to verify peers by.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::IpNet;
use isthmus_certs::SpiffeId;
use isthmus_model::at::{At, Spot};
use isthmus_model::problem::{Place, Quoted, Report};
use isthmus_model::services::{Service, Table, TlsMode, defaults};
use isthmus_model::units::Scalar as _;
use isthmus_model::{HostName, HostPattern, sni};

use crate::config::raw;
use crate::config::settings::{Caller, Mode, Originate, Side};

/// Resolves the keys of a listener; `None` if applications do not speak plaintext there.
pub(crate) fn resolve(
    report: &mut Report,
    place: Place<'_>,
    listener: &At<raw::Listener>,
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
        report.add(default.spot, what, "remove it; 'service' is the only destination");
    }
    let destination = destination(report, place, listener, services);
    let callers = callers(report, place, listener);
    let (service, port, settings) = destination?;
    if settings.identities().is_empty() && settings.tls_mode() == TlsMode::Passthrough {
        let spot = raw.service.as_ref().map_or(spot, |service| service.spot);
        let what = format_args!(
            "{}: {} port {port} has no identities, so its server cannot be told from another",
            place.key("service"),
            settings.host
        );
        report.add(spot, what, "add 'identities: [spiffe://…]' to the service");
    }
    Some(Box::new(Originate {
        service,
        port,
        alpn: settings.alpn.clone(),
        identities: settings.identities().to_vec(),
        callers: callers?,
    }))
}

fn without_mode(report: &mut Report, place: Place<'_>, raw: &raw::Listener) {
    let keys = [
        ("service", raw.service.as_ref().map(|value| value.spot)),
        ("port", raw.port.as_ref().map(|value| value.spot)),
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

/// Finds the service that a listener is for.
fn destination<'a>(
    report: &mut Report,
    place: Place<'_>,
    listener: &At<raw::Listener>,
    services: &'a Table<'_>,
) -> Option<(HostName, u16, &'a Service)> {
    let raw = &listener.value;
    let host = report.required(raw.service.as_ref(), listener, place, "service")?;
    let port = report.port(raw.port.as_ref(), place.key("port")).unwrap_or(defaults::PORT);
    let spot = raw.service.as_ref().map_or(listener.spot, |service| service.spot);
    let place = place.key("service");
    let HostPattern::Exact(name) = &host else {
        report.add(spot, format_args!("{place}: {host} is not one host"), "write a whole name");
        return None;
    };
    if HostName::parse(sni::name(name.as_str(), port)).is_err() {
        report.add(spot, format_args!("{place}: {name} is too long"), "write at most 235 bytes");
        return None;
    }
    let of_instance = || {
        let (label, parent) = name.as_str().split_once('.')?;
        let entry = services.entry(&HostPattern::Exact(HostName::parse(parent).ok()?), port)?;
        let mut endpoints = entry.service.endpoints.iter();
        let is_it = |instance: &HostName| instance.as_str() == label;
        endpoints.any(|endpoint| endpoint.instance.as_ref().is_some_and(is_it)).then_some(entry)
    };
    let Some(entry) = services.entry(&host, port).or_else(of_instance) else {
        let what = format_args!("{place}: there is no service {} with port {port}", Quoted(name.as_str()));
        report.add(spot, what, "write HOST or INSTANCE.HOST of a service in this file, and its port");
        return None;
    };
    Some((name.clone(), port, &entry.service))
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
            let files = files(report, place, listener.spot, &raw.certificate, &raw.key);
            caller(sources, identity, files).into_iter().collect()
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
                let files = files(report, place, one.spot, &raw.certificate, &raw.key);
                caller(sources, identity, files)
            })
            .collect()
        }
    };
    one_identity_each(report, place, raw, &callers);
    (!callers.is_empty()).then_some(callers)
}

/// Refuses keys of a listener's own identity beside `callers`, which have theirs.
fn only_with_identity(report: &mut Report, place: Place<'_>, raw: &raw::Listener) {
    let keys = [
        ("sources", first(raw.sources.as_ref())),
        ("certificate", raw.certificate.as_ref().map(|value| value.spot)),
        ("key", raw.key.as_ref().map(|value| value.spot)),
    ];
    for (key, spot) in keys.into_iter().filter_map(|(key, spot)| Some((key, spot?))) {
        let what = format_args!("{}: has no effect beside callers", place.key(key));
        report.add(spot, what, "write it for each caller");
    }
}

fn caller(
    sources: Vec<IpNet>,
    identity: Option<SpiffeId>,
    files: Option<(PathBuf, PathBuf)>,
) -> Option<Caller> {
    let (certificate, key) = files?;
    Some(Caller { sources, identity: identity?, certificate, key })
}

fn files(
    report: &mut Report,
    place: Place<'_>,
    spot: Spot,
    certificate: &Option<At<String>>,
    key: &Option<At<String>>,
) -> Option<(PathBuf, PathBuf)> {
    let mut file = |name, text: &Option<At<String>>| {
        if text.is_none() {
            let what = format_args!("{place} has an identity but no {name}");
            report.add(spot, what, format_args!("add '{name}: FILE' with the identity's own, PEM"));
        }
        text.as_ref().map(|text| PathBuf::from(&text.value))
    };
    let (certificate, key) = (file("certificate", certificate), file("key", key));
    Some((certificate?, key?))
}

/// The sources of an identity for all callers. Behind any other address than loopback they must be written: whoever
/// reaches the listener would have the identity.
fn sources_of_all(report: &mut Report, place: Place<'_>, listener: &At<raw::Listener>) -> Vec<IpNet> {
    let raw = &listener.value;
    if raw.sources.is_some() {
        return report.values(raw.sources.as_ref(), place.key("sources"));
    }
    let address = raw.address.as_ref().and_then(|address| address.value.read().ok());
    let is_loopback = address.is_none_or(|address| address.ip().is_loopback());
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

/// Refuses TLS of the gateway's own without bundles to verify peers by.
pub(super) fn check_trust(report: &mut Report, raw: &raw::File, services: &Table<'_>) {
    let of_listener = raw.listeners.iter().flat_map(|listeners| &listeners.value).find_map(|listener| {
        let mode = listener.value.mode.as_ref()?;
        (mode.value == Mode::Originate).then_some(("mode: originate", mode.spot))
    });
    let of_service = services.first_terminated().map(|spot| ("tls: terminate", spot));
    let Some((what, spot)) = of_listener.or(of_service) else { return };
    match &raw.trust {
        None => {
            let what = format_args!("{what} needs trust: peers are verified by its bundles");
            report.add(spot, what, "add 'trust: { certificate: …, key: …, bundles: DIRECTORY }'");
        }
        Some(trust) if trust.value.directory.is_some() => {
            let what =
                format_args!("{what} cannot use trust.directory yet: an agent issues no certificates for it");
            report.add(spot, what, "write trust.certificate, trust.key and trust.bundles instead");
        }
        Some(_) => {}
    }
}
