//! Resolves each service by itself, from its written form to a [`Service`]. Conflicts within a file are in
//! [`super::table`].

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::address::Target;
use crate::at::At;
use crate::host::{HostName, HostPattern};
use crate::labels::Labels;
use crate::problem::{Place, Quoted, Report};
use crate::traffic::traffic;
use crate::values::Zero;

use super::table::Entry;
use super::{
    ClientCertificate, Endpoint, ExportMeta, Scope, Service, ServiceTimeouts, defaults, health, raw, tls,
};

/// Why no endpoint may have an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The problem: `10.1.0.7:443 is …`.
    pub what: String,
    /// The remedy.
    pub remedy: &'static str,
}

/// Resolves all services; invalid ones are reported and left out.
pub(super) fn services<'a>(
    report: &mut Report,
    services: &'a [At<raw::Service>],
    general: &ServiceTimeouts,
    refuse: &mut impl FnMut(SocketAddr) -> Option<Refusal>,
) -> Vec<Entry<'a>> {
    let place = Place::Root.key("services");
    let mut entries = Vec::with_capacity(services.len());
    for (index, raw) in services.iter().enumerate() {
        let service = service(report, place.item(index), raw, general, refuse);
        entries.extend(service.map(|service| Entry { index, raw, service }));
    }
    entries
}

fn service(
    report: &mut Report,
    place: Place<'_>,
    whole: &At<raw::Service>,
    general: &ServiceTimeouts,
    refuse: &mut impl FnMut(SocketAddr) -> Option<Refusal>,
) -> Option<Service> {
    let raw = &whole.value;
    let host = report.required(raw.host.as_ref(), whole, place, "host");
    let port = report.port(raw.port.as_ref(), place.key("port"));
    report.port(raw.sni_port.as_ref(), place.key("sni_port"));
    let timeouts = match &raw.timeouts {
        Some(raw) => timeouts(report, place.key("timeouts"), raw, general),
        None => general.clone(),
    };
    let service = Service {
        port: port.unwrap_or(defaults::PORT),
        default_port: false,
        aliases: report.values(raw.aliases.as_ref(), place.key("aliases")),
        alpn: alpn(report, place, raw),
        sources: report.values(raw.sources.as_ref(), place.key("sources")),
        balance: raw.balance.unwrap_or_default(),
        max_connections: report.count_or_off(
            raw.max_connections.as_ref(),
            place.key("max_connections"),
            defaults::CONNECTION_COUNTS,
        ),
        send_proxy: raw.proxy_protocol == Some(raw::SendProxy::V2),
        timeouts,
        traffic: raw
            .traffic
            .as_ref()
            .map(|raw| Arc::new(traffic(report, place.key("traffic"), raw.policy()))),
        health: health::resolve(report, place, raw),
        endpoints: endpoints(report, place.key("endpoints"), raw, refuse),
        exposed: true,
        about: about(report, place, raw),
        tls: tls::resolve(report, place, whole),
        // Last: an invalid host must not hide other problems.
        host: host?,
    };
    Some(service)
}

fn about(report: &mut Report, place: Place<'_>, raw: &raw::Service) -> Option<Box<ExportMeta>> {
    let about = ExportMeta {
        namespace: report
            .value(raw.namespace.as_ref(), place.key("namespace"))
            .map(|namespace| namespace.as_str().to_owned()),
        labels: raw.labels.clone().unwrap_or_default(),
        client_certificate: client_certificate(report, place, raw),
        merge: raw.merge.unwrap_or_default(),
        staleness: report.value(raw.stale.as_ref(), place.key("stale")).unwrap_or_default(),
        registered: raw.registered.unwrap_or_default(),
    };
    (about != ExportMeta::default()).then(|| Box::new(about))
}

fn client_certificate(report: &mut Report, place: Place<'_>, raw: &raw::Service) -> ClientCertificate {
    match (&raw.client_certificate, &raw.allow_unauthenticated) {
        (Some(set), Some(older)) if older.value != (set.value == ClientCertificate::None) => {
            let what = format_args!("{place}: client_certificate contradicts allow_unauthenticated");
            report.add(older.spot, what, "remove allow_unauthenticated, the older key");
            ClientCertificate::Probed
        }
        (Some(set), _) => set.value,
        (None, Some(older)) if older.value => ClientCertificate::None,
        (None, _) => ClientCertificate::Probed,
    }
}

/// The deadlines that a mapping sets, with the general ones for the rest.
pub fn timeouts(
    report: &mut Report,
    place: Place<'_>,
    raw: &raw::ServiceTimeouts,
    general: &ServiceTimeouts,
) -> ServiceTimeouts {
    let time = |report: &mut Report, raw: Option<_>, key, general| {
        report.time(raw, place.key(key), Zero::Refused, general)
    };
    ServiceTimeouts {
        connect: time(report, raw.connect.as_ref(), "connect", general.connect),
        connect_total: time(report, raw.connect_total.as_ref(), "connect_total", general.connect_total),
        idle: report.time_or_off(raw.idle.as_ref(), place.key("idle"), general.idle),
        half_closed: report.time_or_off(
            raw.half_closed.as_ref(),
            place.key("half_closed"),
            general.half_closed,
        ),
        first_byte: report.time_or_off(raw.first_byte.as_ref(), place.key("first_byte"), general.first_byte),
        max_duration: report.time_or_off(
            raw.max_duration.as_ref(),
            place.key("max_duration"),
            general.max_duration,
        ),
    }
}

fn alpn(report: &mut Report, place: Place<'_>, raw: &raw::Service) -> Vec<String> {
    let list = raw.alpn.as_deref().unwrap_or_default();
    for (index, protocol) in list.iter().enumerate() {
        if !(1..=255).contains(&protocol.value.len()) {
            let place = place.key("alpn");
            let what = format!("{}: {} is not a protocol name", place.item(index), Quoted(&protocol.value));
            report.add(protocol.spot, what, "write 1 to 255 bytes, such as h2");
        }
    }
    list.iter().map(|protocol| protocol.value.clone()).collect()
}

fn endpoints(
    report: &mut Report,
    place: Place<'_>,
    raw: &raw::Service,
    refuse: &mut impl FnMut(SocketAddr) -> Option<Refusal>,
) -> Vec<Endpoint> {
    let list = raw.endpoints.as_deref().unwrap_or_default();
    // Most services have few endpoints: allocate only when there is something to compare.
    let (mut addresses, mut instances) = (HashSet::new(), HashSet::new());
    let many = list.len() > 1;
    let mut resolved = Vec::with_capacity(list.len());
    for (index, whole) in list.iter().enumerate() {
        let (place, raw) = (place.item(index), &whole.value);
        let instance = report.value(raw.instance.as_ref(), place.key("instance"));
        if let (Some(name), Some(raw)) = (&instance, &raw.instance)
            && many
            && !instances.insert(name.clone())
        {
            let what = format_args!("{}: {name} is listed twice in this service", place.key("instance"));
            report.add(raw.spot, what, "give each instance its own name");
        }
        let weight =
            report.count(raw.weight.as_ref(), place.key("weight"), defaults::WEIGHTS, defaults::WEIGHT);
        let Some(address) = report.required(raw.address.as_ref(), whole, place, "address") else { continue };
        let spot = raw.address.as_ref().map_or(whole.spot, |address| address.spot);
        if many && !addresses.insert(address.clone()) {
            let what = format_args!("{}: is listed twice in this service", place.key("address"));
            report.add(spot, what, "remove one of them; 'weight: 2' gives one address two shares");
        }
        if let Target::Address(address) = address
            && let Some(refusal) = refuse(address)
        {
            let what = format_args!("{}: {}", place.key("address"), refusal.what);
            report.add(spot, what, refusal.remedy);
        }
        resolved.push(Endpoint {
            address,
            aliases: aliases(report, place, raw, instance.is_some()).into(),
            instance,
            weight,
            locality: raw.locality.clone().unwrap_or_default(),
            labels: labels(report, place, raw),
            reach: Scope::Exported { by_name: true },
            access: None,
            priority: 0,
            part: 0,
            is_ready: true,
        });
    }
    resolved
}

fn labels(report: &mut Report, place: Place<'_>, raw: &raw::Endpoint) -> Labels {
    let written = raw.labels.as_ref();
    written.and_then(|written| Labels::read(report, place.key("labels"), written)).unwrap_or_default()
}

/// The aliases of one instance, which are whole names.
fn aliases(report: &mut Report, place: Place<'_>, raw: &raw::Endpoint, has_name: bool) -> Vec<HostName> {
    let list = raw.aliases.as_deref().unwrap_or_default();
    if let (Some(first), false) = (list.first(), has_name) {
        let what = format_args!("{place}: has aliases but no instance");
        report.add(first.spot, what, "give the instance a name: 'instance: …'");
    }
    let place = place.key("aliases");
    let mut names = Vec::with_capacity(list.len());
    for (index, alias) in list.iter().enumerate() {
        match report.value(Some(alias), place.item(index)) {
            Some(HostPattern::Exact(name)) => names.push(name),
            Some(HostPattern::Suffix(_)) => {
                let what = format_args!("{}: an instance cannot be a '*.suffix'", place.item(index));
                report.add(alias.spot, what, "write whole names");
            }
            None => {}
        }
    }
    names
}
