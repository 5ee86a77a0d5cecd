//! `services:`, each resolved for itself, and which of a host's ports its bare name means. Not which names
//! clash: that is [`super::names`].

use std::collections::{HashMap, HashSet};

use isthmus_xds::HostPattern;
use isthmus_xds::config::address::{read_host, read_port};
use isthmus_xds::config::at::{At, Spot};
use isthmus_xds::config::problem::{Place, Quoted, Report};
use isthmus_xds::config::units::Scalar;

use crate::config::defaults;
use crate::config::own::Own;
use crate::config::raw;
use crate::config::settings::{Balance, Endpoint, Service, ServiceTimeouts, Target};

use super::general::service_timeouts;

/// The services that could be resolved, as they stand in the file.
pub(crate) struct Entry<'a> {
    /// Position in the file.
    pub(crate) index: usize,
    pub(crate) raw: &'a At<raw::Service>,
    pub(crate) service: Service,
}

/// Resolves each service; one that is wrong is reported and left out.
pub(crate) fn services<'a>(
    report: &mut Report,
    raw: &'a raw::File,
    general: &ServiceTimeouts,
    own: &mut Own,
) -> Vec<Entry<'a>> {
    let place = Place::Root.key("services");
    let services = raw.services.as_deref().unwrap_or_default();
    let mut entries = Vec::with_capacity(services.len());
    for (index, raw) in services.iter().enumerate() {
        let service = service(report, place.item(index), raw, general, own);
        entries.extend(service.map(|service| Entry { index, raw, service }));
    }
    entries
}

fn service(
    report: &mut Report,
    place: Place<'_>,
    whole: &At<raw::Service>,
    general: &ServiceTimeouts,
    own: &mut Own,
) -> Option<Service> {
    let raw = &whole.value;
    let host = report.required(raw.host.as_ref(), whole, place, "host");
    let port = report.port(raw.port.as_ref(), place.key("port"));
    report.port(raw.sni_port.as_ref(), place.key("sni_port"));
    let timeouts = match &raw.timeouts {
        Some(timeouts) => service_timeouts(report, place.key("timeouts"), timeouts, general),
        None => general.clone(),
    };
    let service = Service {
        port: port.unwrap_or(defaults::SERVICE_PORT),
        bare: false,
        aliases: report.values(raw.aliases.as_ref(), place.key("aliases")),
        alpn: alpn(report, place, raw),
        sources: report.values(raw.sources.as_ref(), place.key("sources")),
        balance: raw.balance.map_or_else(Balance::default, balance),
        max_connections: report.count_or_off(
            raw.max_connections.as_ref(),
            place.key("max_connections"),
            defaults::CONNECTION_COUNTS,
        ),
        send_proxy: raw.proxy_protocol == Some(raw::SendProxy::V2),
        timeouts,
        endpoints: endpoints(report, place.key("endpoints"), raw, own),
        // Last: a wrong host does not keep the other problems from being found.
        host: host?,
    };
    Some(service)
}

fn balance(raw: raw::Balance) -> Balance {
    match raw {
        raw::Balance::RoundRobin => Balance::RoundRobin,
        raw::Balance::LeastConnections => Balance::LeastConnections,
        raw::Balance::Random => Balance::Random,
        raw::Balance::SourceHash => Balance::SourceHash,
    }
}

fn alpn(report: &mut Report, place: Place<'_>, raw: &raw::Service) -> Vec<String> {
    let list = raw.alpn.as_deref().unwrap_or_default();
    for (index, protocol) in list.iter().enumerate() {
        if !(1..=255).contains(&protocol.value.len()) {
            let place = place.key("alpn");
            let what = format!("{}: {} is no protocol's name", place.item(index), Quoted(&protocol.value));
            report.add(protocol.spot, what, "write 1 to 255 bytes, such as h2");
        }
    }
    list.iter().map(|protocol| protocol.value.clone()).collect()
}

fn endpoints(report: &mut Report, place: Place<'_>, raw: &raw::Service, own: &mut Own) -> Vec<Endpoint> {
    let list = raw.endpoints.as_deref().unwrap_or_default();
    // Most services have few endpoints: no memory is taken before there is something to compare.
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
            let what = format_args!("{}: {name} stands twice in this service", place.key("instance"));
            report.add(raw.spot, what, "give each instance a name of its own");
        }
        let weight =
            report.count(raw.weight.as_ref(), place.key("weight"), defaults::WEIGHTS, defaults::WEIGHT);
        let Some(address) = report.required(raw.address.as_ref(), whole, place, "address") else { continue };
        let spot = raw.address.as_ref().map_or(whole.spot, |address| address.spot);
        if many && !addresses.insert(address.clone()) {
            let what = format_args!("{}: stands twice in this service", place.key("address"));
            report.add(spot, what, "remove one of them; 'weight: 2' gives one address two shares");
        }
        if let Target::Address(address) = address
            && let Some(socket) = own.reached_by(address)
        {
            let what = format_args!("{}: {address} is this gateway's own {socket}", place.key("address"));
            report.add(spot, what, "write the address of the server itself");
        }
        let locality = raw.locality.clone().unwrap_or_default();
        resolved.push(Endpoint { address, instance, weight, locality });
    }
    resolved
}

/// Positions in the list of entries.
pub(crate) struct Groups {
    /// In the file's order, one for each port.
    hosts: HashMap<HostPattern, Vec<usize>>,
    sockets: HashMap<(HostPattern, u16), usize>,
}

/// The services by host, and by host and port.
pub(crate) struct Index<'a> {
    pub(crate) groups: Groups,
    pub(crate) entries: &'a [Entry<'a>],
}

impl<'a> Index<'a> {
    /// The entry of a host and port.
    pub(crate) fn entry(&self, host: &HostPattern, port: u16) -> Option<&Entry<'a>> {
        let position = self.groups.sockets.get(&(host.clone(), port))?;
        self.entries.get(*position)
    }

    /// The position in the file of `HOST` or `HOST:PORT`; else what is wrong and what would be right.
    pub(crate) fn find(&self, text: &str) -> Result<usize, (String, String)> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(read_port(port).ok_or_else(no_form)?)),
            None => (text, None),
        };
        let host = read_host(host).map_err(|_| no_form())?;
        let group = self.groups.hosts.get(&host).map(Vec::as_slice).unwrap_or_default();
        let group = || group.iter().filter_map(|entry| self.entries.get(*entry));
        let ports = || group().map(|entry| entry.service.port.to_string()).collect::<Vec<_>>().join(", ");
        let found = match port {
            Some(port) => self.entry(&host, port),
            None => group().find(|entry| entry.service.bare),
        };
        match (found, port) {
            (Some(entry), _) => Ok(entry.index),
            (None, _) if group().next().is_none() => Err((
                "is no service's host".to_owned(),
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
}

fn no_form() -> (String, String) {
    ("is no service".to_owned(), "write HOST or HOST:PORT of a service in this file".to_owned())
}

/// Groups the entries by host, refuses a port that stands twice, and decides which port of each host its
/// bare name means.
pub(crate) fn group(report: &mut Report, entries: &mut [Entry<'_>]) -> Groups {
    let mut hosts: HashMap<HostPattern, Vec<usize>> = HashMap::with_capacity(entries.len());
    let mut sockets: HashMap<(HostPattern, u16), usize> = HashMap::with_capacity(entries.len());
    for (position, entry) in entries.iter().enumerate() {
        let (host, port) = (&entry.service.host, entry.service.port);
        let earlier = sockets.get(&(host.clone(), port)).and_then(|earlier| entries.get(*earlier));
        if let Some(earlier) = earlier {
            let what = format_args!(
                "services[{}]: {host} port {port} is already services[{}] (line {})",
                entry.index, earlier.index, earlier.raw.spot.line
            );
            report.add(host_spot(entry), what, "merge their endpoints, or give one another port");
        } else {
            sockets.insert((host.clone(), port), position);
            hosts.entry(host.clone()).or_default().push(position);
        }
    }
    for position in 0..entries.len() {
        // Each host once, in the file's order.
        let group = entries.get(position).and_then(|entry| hosts.get(&entry.service.host));
        let Some(group) = group.filter(|group| group.first() == Some(&position)) else { continue };
        let bare = bare_port(report, entries, group);
        for position in group {
            if let Some(entry) = entries.get_mut(*position) {
                entry.service.bare = bare == Some(entry.service.port);
            }
        }
    }
    Groups { hosts, sockets }
}

/// Which port the bare name of a host means: the only one, or the one that `sni_port` says.
fn bare_port(report: &mut Report, entries: &[Entry<'_>], group: &[usize]) -> Option<u16> {
    let group = || group.iter().filter_map(|position| entries.get(*position));
    let mut said: Option<(u16, &Entry<'_>)> = None;
    for entry in group() {
        let Some(raw) = &entry.raw.value.sni_port else { continue };
        // A wrong number has been reported already.
        let Some(port) = read_port(raw.value.text()) else { continue };
        match said {
            Some((earlier, by)) if earlier != port => {
                let what = format_args!(
                    "services[{}].sni_port: {port} contradicts services[{}], which says {earlier}",
                    entry.index, by.index
                );
                report.add(raw.spot, what, "say it once for each host");
            }
            Some(_) => {}
            None => {
                if !group().any(|entry| entry.service.port == port) {
                    let host = &entry.service.host;
                    let what = format_args!("services[{}].sni_port: {host} has no port {port}", entry.index);
                    let ports: Vec<String> = group().map(|entry| entry.service.port.to_string()).collect();
                    report.add(raw.spot, what, format_args!("write {}", ports.join(" or ")));
                }
                said = Some((port, entry));
            }
        }
    }
    let only = || group().next().filter(|_| group().count() == 1).map(|entry| entry.service.port);
    said.map(|(port, _)| port).or_else(only)
}

pub(crate) fn host_spot(entry: &Entry<'_>) -> Spot {
    entry.raw.value.host.as_ref().map_or(entry.raw.spot, |host| host.spot)
}
