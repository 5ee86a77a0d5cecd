//! Resolves `listeners:` and the addresses of admin, metrics and health.

use std::collections::HashMap;
use std::net::SocketAddr;

use isthmus_model::address::{ListenAddress, read_host, read_port};
use isthmus_model::at::{At, Spot};
use isthmus_model::problem::{Place, Quoted, Report};
use isthmus_model::services::Table;

use crate::config::defaults;
use crate::config::own::Own;
use crate::config::raw;
use crate::config::settings::{Bind, Listener, Sockets};

use super::{destination, originate};

/// Resolves the sockets of the listeners; `None` for an invalid address.
pub(crate) fn binds(report: &mut Report, raw: &raw::File) -> Vec<Option<Bind>> {
    let place = Place::Root.key("listeners");
    let listeners = raw.listeners.as_ref().map(|listeners| listeners.value.as_slice()).unwrap_or_default();
    if listeners.is_empty() {
        let spot = raw.listeners.as_ref().map_or(Spot::START, |listeners| listeners.spot);
        report.add(
            spot,
            "there are no listeners",
            "add 'listeners:' with at least '- address: 0.0.0.0:15443'",
        );
    }
    let (mut names, mut addresses) = (HashMap::new(), HashMap::new());
    let mut binds = Vec::with_capacity(listeners.len());
    for (index, listener) in listeners.iter().enumerate() {
        let place = place.item(index);
        let bind = bind(report, place, listener, index);
        let spot = listener.value.name.as_ref().map_or(listener.spot, |name| name.spot);
        let name = name_of(&listener.value, index);
        if let Some(earlier) = names.insert(name.clone(), index) {
            let what =
                format_args!("{place}: the name {} is already used by listeners[{earlier}]", Quoted(&name));
            report.add(spot, what, "give each listener a name of its own");
        }
        if let Some(bound) = bind.as_ref().and_then(|bind| bind.sockets.address())
            && bound.port() != 0
            && let Some(earlier) = addresses.insert(bound, index)
        {
            let spot = listener.value.address.as_ref().map_or(listener.spot, |address| address.spot);
            let what = format_args!("{place}: {bound} is already the address of listeners[{earlier}]");
            report.add(spot, what, "give each listener an address of its own");
        }
        binds.push(bind);
    }
    binds
}

fn name_of(raw: &raw::Listener, index: usize) -> String {
    match &raw.name {
        Some(name) => name.value.clone(),
        None if index == 0 => "east-west".to_owned(),
        None => format!("listener-{}", index.saturating_add(1)),
    }
}

fn bind(report: &mut Report, place: Place<'_>, listener: &At<raw::Listener>, index: usize) -> Option<Bind> {
    let raw = &listener.value;
    if let Some(name) = &raw.name {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !(1..=63).contains(&name.value.len()) || !name.value.bytes().all(allowed) {
            let what = format_args!("{}: {} cannot be used", place.key("name"), Quoted(&name.value));
            report.add(name.spot, what, "write 1 to 63 ASCII letters, digits, '-', '_' or '.'");
        }
    }
    let backlog =
        report.count(raw.backlog.as_ref(), place.key("backlog"), defaults::BACKLOGS, defaults::BACKLOG);
    let sockets = destination::sockets(report, place, listener)?;
    if let Some(only) = &raw.ipv6_only
        && !matches!(sockets, Sockets::Address(SocketAddr::V6(_)) | Sockets::Transparent(SocketAddr::V6(_)))
    {
        let what = format_args!("{}: {sockets} is not an IPv6 address", place.key("ipv6_only"));
        report.add(only.spot, what, "remove ipv6_only");
    }
    let ipv6_only = raw.ipv6_only.as_ref().is_none_or(|only| only.value);
    Some(Bind { name: name_of(raw, index), sockets, ipv6_only, backlog })
}

/// The addresses of admin, metrics and health.
pub(crate) struct Ports {
    pub(crate) admin: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) health: SocketAddr,
}

pub(crate) fn ports(report: &mut Report, raw: &raw::File, binds: &[Option<Bind>]) -> Ports {
    let admin = raw.admin.as_ref().and_then(|admin| admin.address.as_ref());
    let metrics = raw.metrics.as_ref().and_then(|metrics| metrics.address.as_ref());
    let health = raw.health.as_ref().and_then(|health| health.address.as_ref());
    let mut taken: Vec<(String, SocketAddr, Option<Spot>)> = Vec::new();
    for (index, bind) in binds.iter().enumerate() {
        let raw = raw.listeners.as_ref().and_then(|listeners| listeners.value.get(index));
        let spot = raw.and_then(|listener| listener.value.address.as_ref()).map(|address| address.spot);
        let bound = bind.as_ref().and_then(|bind| bind.sockets.address());
        taken.extend(bound.map(|address| (format!("listeners[{index}]"), address, spot)));
    }
    let mut port = |section: &'static str, address: Option<&At<ListenAddress>>, default| {
        let section = Place::Root.key(section);
        let value = report.value(address, section.key("address")).unwrap_or(default);
        let spot = address.map(|address| address.spot);
        let clash = taken.iter().find(|(_, other, _)| overlap(value, *other));
        // If a default clashes, the problem is reported at the other address.
        if let Some((other, theirs, other_spot)) = clash
            && let Some(spot) = spot.or(*other_spot)
        {
            let what = format_args!("{section}.address {value} and {other} {theirs} cannot both be bound");
            report.add(spot, what, "give each a port of its own");
        }
        taken.push((format!("{section}.address"), value, spot));
        value
    };
    Ports {
        admin: port("admin", admin, defaults::ADMIN),
        metrics: port("metrics", metrics, defaults::METRICS),
        health: port("health", health, defaults::HEALTH),
    }
}

fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip(), other.ip());
    one.port() == other.port()
        && one.port() != 0
        && (a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified())))
}

/// Collects the own addresses that no endpoint may lead back to.
pub(crate) fn own(binds: &[Option<Bind>], ports: &Ports) -> Own {
    let mut own = Own::default();
    for bind in binds.iter().flatten() {
        if let Some(address) = bind.sockets.address() {
            own.add(format!("listener {}", bind.name), address, bind.ipv6_only);
        }
    }
    // std and tokio keep the kernel's default: [::] accepts IPv4, too.
    own.add("admin".to_owned(), ports.admin, false);
    own.add("metrics".to_owned(), ports.metrics, false);
    own.add("health".to_owned(), ports.health, false);
    own
}

/// Resolves the settings of the listeners that can change without a restart.
pub(crate) fn listeners(report: &mut Report, file: &raw::File, services: &Table<'_>) -> Vec<Listener> {
    let place = Place::Root.key("listeners");
    let listeners = file.listeners.as_ref().map(|listeners| listeners.value.as_slice()).unwrap_or_default();
    let mut resolved = Vec::with_capacity(listeners.len());
    for (index, listener) in listeners.iter().enumerate() {
        let (place, raw) = (place.item(index), &listener.value);
        let default = raw.default.as_ref().and_then(|name| match find(services, &name.value) {
            Ok(service) => {
                originate::check_default(report, place, name, services, service);
                Some(service)
            }
            Err((what, remedy)) => {
                let what = format_args!("{}: {} {what}", place.key("default"), Quoted(&name.value));
                report.add(name.spot, what, remedy);
                None
            }
        });
        let proxy_from = raw.proxy_protocol.as_ref().map(|proxy| {
            let place = place.key("proxy_protocol");
            if proxy.value.from.is_none() {
                let remedy = "add 'from: [CIDR, …]' with the sources that must send a PROXY header";
                report.add(proxy.spot, format_args!("{place} has no from"), remedy);
            }
            report.values(proxy.value.from.as_ref(), place.key("from"))
        });
        resolved.push(Listener {
            max_connections: report.count(
                raw.max_connections.as_ref(),
                place.key("max_connections"),
                defaults::CONNECTION_COUNTS,
                defaults::LISTENER_CONNECTIONS,
            ),
            side: raw.side.unwrap_or_default(),
            default,
            proxy_from: proxy_from.unwrap_or_default(),
            originate: originate::resolve(report, place, (listener, file), services),
        });
    }
    resolved
}

/// Returns the service's position in the file for `HOST` or `HOST:PORT`, or the problem and the remedy.
fn find(services: &Table<'_>, text: &str) -> Result<usize, (String, String)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(read_port(port).ok_or_else(no_form)?)),
        None => (text, None),
    };
    let host = read_host(host).map_err(|_| no_form())?;
    let group = || services.of_host(&host);
    let ports = || group().map(|entry| entry.service.port.to_string()).collect::<Vec<_>>().join(", ");
    let found = match port {
        Some(port) => services.entry(&host, port),
        None => group().find(|entry| entry.service.default_port),
    };
    match (found, port) {
        (Some(entry), _) => Ok(entry.index),
        (None, _) if group().next().is_none() => Err((
            "is not the host of a service".to_owned(),
            "write HOST or HOST:PORT of a service in this file".to_owned(),
        )),
        (None, Some(_)) => Err((
            "is not one of the host's ports".to_owned(),
            format!("write {host}: and one of {}", ports()),
        )),
        (None, None) => {
            Err(("has several ports".to_owned(), format!("write {host}: and one of {}", ports())))
        }
    }
}

fn no_form() -> (String, String) {
    ("is not a service".to_owned(), "write HOST or HOST:PORT of a service in this file".to_owned())
}
