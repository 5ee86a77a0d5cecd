//! The services of one file together, by host and port: each stands once, and one port of a host is what its
//! bare name means. Not which names clash: that is [`super::names`].

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::address::read_port;
use crate::at::{At, Spot};
use crate::host::HostPattern;
use crate::problem::Report;
use crate::units::Scalar;

use super::resolve::{self, Refusal};
use super::{Service, ServiceTimeouts, names, raw};

/// A service that could be resolved.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Position in the file.
    pub index: usize,
    /// What it is.
    pub service: Service,
    pub(super) raw: &'a At<raw::Service>,
}

impl Entry<'_> {
    /// The place that says its host.
    pub(super) fn host_spot(&self) -> Spot {
        self.raw.value.host.as_ref().map_or(self.raw.spot, |host| host.spot)
    }
}

/// The services of one file that could be resolved.
#[derive(Debug)]
pub struct Table<'a> {
    pub(super) entries: Vec<Entry<'a>>,
    /// Positions in the list of entries, in the file's order, one for each port.
    hosts: HashMap<HostPattern, Vec<usize>>,
    sockets: HashMap<(HostPattern, u16), usize>,
}

impl<'a> Table<'a> {
    /// Checks what stands under `services:`; what is wrong goes to the report. `general` are the deadlines of a
    /// service that sets none, and `refuse` says which addresses no endpoint may have.
    pub fn new(
        report: &mut Report,
        raw: &'a [At<raw::Service>],
        general: &ServiceTimeouts,
        mut refuse: impl FnMut(SocketAddr) -> Option<Refusal>,
    ) -> Table<'a> {
        let entries = resolve::services(report, raw, general, &mut refuse);
        let table = group(report, entries);
        names::check(report, &table);
        table
    }

    /// The service of a host and port.
    #[must_use]
    pub fn entry(&self, host: &HostPattern, port: u16) -> Option<&Entry<'a>> {
        let position = self.sockets.get(&(host.clone(), port))?;
        self.entries.get(*position)
    }

    /// The services of a host, one for each port, in the file's order.
    pub fn of_host(&self, host: &HostPattern) -> impl Iterator<Item = &Entry<'a>> {
        let positions = self.hosts.get(host).map(Vec::as_slice).unwrap_or_default();
        positions.iter().filter_map(|position| self.entries.get(*position))
    }

    /// All of them, in the file's order.
    pub fn into_services(self) -> impl Iterator<Item = Service> {
        self.entries.into_iter().map(|entry| entry.service)
    }
}

/// Groups the entries by host, refuses a port that stands twice, and decides which port of each host its
/// bare name means.
fn group<'a>(report: &mut Report, mut entries: Vec<Entry<'a>>) -> Table<'a> {
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
            report.add(entry.host_spot(), what, "merge their endpoints, or give one another port");
        } else {
            sockets.insert((host.clone(), port), position);
            hosts.entry(host.clone()).or_default().push(position);
        }
    }
    for position in 0..entries.len() {
        // Each host once, in the file's order.
        let group = entries.get(position).and_then(|entry| hosts.get(&entry.service.host));
        let Some(group) = group.filter(|group| group.first() == Some(&position)) else { continue };
        let bare = bare_port(report, &entries, group);
        for position in group {
            if let Some(entry) = entries.get_mut(*position) {
                entry.service.default_port = bare == Some(entry.service.port);
            }
        }
    }
    Table { entries, hosts, sockets }
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
