//! Resolves `bindings:`: what leads to hosts from applications without TLS. No two of them share a host, an address or a
//! listener's port.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::sync::Arc;

use isthmus_model::address::Ip;
use isthmus_model::at::{At, Spot};
use isthmus_model::binding::{Binding, BoundPort};
use isthmus_model::problem::{Place, Report};
use isthmus_model::services::Table;
use isthmus_model::virtual_address::NameAddresses;

use super::destination;
use crate::config::raw;

pub(super) fn bindings(report: &mut Report, file: &raw::File, services: &Table<'_>) -> Vec<Arc<Binding>> {
    let place = Place::Root.key("bindings");
    let mut taken = Taken::default();
    let each = file.bindings.as_deref().unwrap_or_default().iter().enumerate();
    let each =
        each.filter_map(|(index, raw)| binding(report, place.item(index), raw, (file, services), &mut taken));
    each.map(Arc::new).collect()
}

/// What earlier bindings have, each with the place of it.
#[derive(Default)]
struct Taken {
    hosts: HashMap<String, String>,
    addresses: HashMap<String, String>,
    listener_ports: HashMap<u16, String>,
}

fn unique<K: Hash + Eq + Display + Clone>(
    report: &mut Report,
    taken: &mut HashMap<K, String>,
    (place, spot): (Place<'_>, Spot),
    value: K,
) {
    if let Some(earlier) = taken.get(&value) {
        report.add(spot, format_args!("{place}: {value} is already {earlier}"), "write it once");
    } else {
        taken.insert(value, place.to_string());
    }
}

fn binding(
    report: &mut Report,
    place: Place<'_>,
    binding: &At<raw::Binding>,
    (file, services): (&raw::File, &Table<'_>),
    taken: &mut Taken,
) -> Option<Binding> {
    let raw = &binding.value;
    let host = report.required(raw.host.as_ref(), binding, place, "host");
    let addresses = addresses(report, place.key("addresses"), raw.addresses.as_deref(), taken);
    let ports = raw.ports.as_deref().unwrap_or_default();
    if ports.is_empty() {
        report.add(binding.spot, format_args!("{place} has no ports"), "add 'ports: [{ port: … }]'");
    }
    let ports: Vec<_> = ports
        .iter()
        .enumerate()
        .filter_map(|(index, raw)| port(report, place.key("ports").item(index), raw, taken))
        .collect();
    let spot = raw.host.as_ref().map_or(binding.spot, |host| host.spot);
    // The longest name with its port; without any, that was reported.
    let longest = ports.iter().map(|bound| bound.port).max().unwrap_or(1);
    let host = destination::name(report, place.key("host"), spot, host?, longest)?;
    unique(report, &mut taken.hosts, (place.key("host"), spot), host.to_string());
    let mut numbers = HashMap::new();
    for (index, bound) in ports.iter().enumerate() {
        let place = place.key("ports");
        unique(report, &mut numbers, (place.item(index), spot), bound.port);
        destination::known(report, place.item(index), spot, (&host, bound.port), (file, services));
    }
    Some(Binding { host, addresses, ports })
}

fn addresses(
    report: &mut Report,
    place: Place<'_>,
    raw: Option<&[At<Ip>]>,
    taken: &mut Taken,
) -> NameAddresses {
    let mut addresses = NameAddresses::default();
    for (index, raw) in raw.unwrap_or_default().iter().enumerate() {
        let place = place.item(index);
        let Some(address) = report.value(Some(raw), place) else { continue };
        match addresses.insert(address) {
            Ok(true) => unique(report, &mut taken.addresses, (place, raw.spot), address.to_string()),
            Ok(false) => {
                let what = format_args!("{place}: {address} is the host's second address of its family");
                report.add(raw.spot, what, "write one of each family");
            }
            Err(error) => report.add(raw.spot, format_args!("{place}: {error}"), "write another address"),
        }
    }
    addresses
}

fn port(
    report: &mut Report,
    place: Place<'_>,
    raw: &At<raw::bindings::BoundPort>,
    taken: &mut Taken,
) -> Option<BoundPort> {
    if raw.value.port.is_none() {
        report.add(raw.spot, format_args!("{place} has no port"), "add 'port: …'");
    }
    let port = report.port(raw.value.port.as_ref(), place.key("port"));
    let listener_port = report.port(raw.value.listener_port.as_ref(), place.key("listener_port"));
    if let Some(port) = listener_port {
        unique(report, &mut taken.listener_ports, (place.key("listener_port"), raw.spot), port);
    }
    Some(BoundPort { port: port?, listener_port })
}
