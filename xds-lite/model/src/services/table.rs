//! Checks the services of one file together: each host and port is unique, and each host has at most one
//! default port. Name conflicts are in [`super::names`].

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::address::read_port;
use crate::at::{At, Spot};
use crate::host::HostPattern;
use crate::problem::Report;
use crate::units::Scalar;

use super::resolve::{self, Refusal};
use super::{Service, ServiceTimeouts, TlsMode, names, raw};

/// A resolved service.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Its position in the file.
    pub index: usize,
    /// The service.
    pub service: Service,
    pub(super) raw: &'a At<raw::Service>,
}

impl Entry<'_> {
    /// The place of its rules for callers in the file.
    #[must_use]
    pub fn access_spot(&self) -> Spot {
        self.raw.value.access.as_ref().map_or(self.raw.spot, |access| access.spot)
    }

    /// The place of its host in the file.
    #[must_use]
    pub fn host_spot(&self) -> Spot {
        self.raw.value.host.as_ref().map_or(self.raw.spot, |host| host.spot)
    }
}

/// The resolved services of one file.
#[derive(Debug)]
pub struct Table<'a> {
    pub(super) entries: Vec<Entry<'a>>,
    /// Positions in the list of entries, in the file's order, one for each port.
    hosts: HashMap<HostPattern, Vec<usize>>,
    sockets: HashMap<(HostPattern, u16), usize>,
}

impl<'a> Table<'a> {
    /// Resolves and checks `services:`; problems go to the report. `general` are the deadlines of a service
    /// without its own, and `refuse` rejects addresses that no endpoint may have.
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

    /// Whether a gateway ends the TLS of the service at a position of the file.
    #[must_use]
    pub fn is_terminated(&self, index: usize) -> bool {
        self.entries
            .iter()
            .any(|entry| entry.index == index && entry.service.tls_mode() == TlsMode::Terminate)
    }

    /// The place of the first service whose TLS a gateway ends.
    #[must_use]
    pub fn first_terminated(&self) -> Option<Spot> {
        self.entries.iter().find(|entry| entry.service.tls_mode() == TlsMode::Terminate).map(Entry::host_spot)
    }

    /// All entries, in the file's order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry<'a>> {
        self.entries.iter()
    }

    /// All services, in the file's order.
    pub fn into_services(self) -> impl Iterator<Item = Service> {
        self.entries.into_iter().map(|entry| entry.service)
    }
}

/// Groups the entries by host, refuses duplicate ports, and decides the default port of each
/// host.
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

/// The default port of a host: the only one, or the one that `sni_port` names.
fn bare_port(report: &mut Report, entries: &[Entry<'_>], group: &[usize]) -> Option<u16> {
    let group = || group.iter().filter_map(|position| entries.get(*position));
    let mut declared: Option<(u16, &Entry<'_>)> = None;
    for entry in group() {
        let Some(raw) = &entry.raw.value.sni_port else { continue };
        // An invalid number has been reported already.
        let Some(port) = read_port(raw.value.text()) else { continue };
        match declared {
            Some((earlier, by)) if earlier != port => {
                let what = format_args!(
                    "services[{}].sni_port: {port} contradicts services[{}], which sets {earlier}",
                    entry.index, by.index
                );
                report.add(raw.spot, what, "set it once per host");
            }
            Some(_) => {}
            None => {
                if !group().any(|entry| entry.service.port == port) {
                    let host = &entry.service.host;
                    let what = format_args!("services[{}].sni_port: {host} has no port {port}", entry.index);
                    let ports: Vec<String> = group().map(|entry| entry.service.port.to_string()).collect();
                    report.add(raw.spot, what, format_args!("write {}", ports.join(" or ")));
                }
                declared = Some((port, entry));
            }
        }
    }
    let only = || group().next().filter(|_| group().count() == 1).map(|entry| entry.service.port);
    declared.map(|(port, _)| port).or_else(only)
}
