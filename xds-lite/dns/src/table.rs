//! The names that are answered here, and what belongs to each.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use isthmus_model::HostName;

/// What is known of names. All other names are for others to answer, unless a zone claims them.
#[derive(Clone, Debug, Default)]
pub struct Table {
    names: HashMap<HostName, Arc<Records>>,
    /// Names that have names below them.
    above: HashSet<String>,
    /// The names of virtual addresses.
    pub pointers: HashMap<IpAddr, HostName>,
    /// All virtual addresses, in use or not.
    pub ranges: Vec<IpNet>,
    /// Zones of which nobody else knows a name.
    pub zones: Vec<HostName>,
    /// Names that do not exist here, whatever others say: imports without consent.
    pub absent: HashSet<HostName>,
}

/// What belongs to a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its ports, for SRV.
    pub ports: Vec<u16>,
    /// How long an answer may be cached, in seconds.
    pub ttl: u32,
}

/// What the table says about a name.
#[derive(Debug)]
pub(crate) enum Known<'a> {
    /// It has records.
    Records(&'a Records),
    /// It exists, and has no records: names below it have.
    Empty,
    /// It does not exist.
    Absent,
    /// It is for others to answer.
    Elsewhere,
}

impl Table {
    /// Adds a host, an instance or an alias.
    pub fn insert(&mut self, name: HostName, records: Arc<Records>) {
        self.above.extend(parents(name.as_str()).map(|(_, parent)| parent.to_owned()));
        self.names.insert(name, records);
    }

    pub(crate) fn records(&self, name: &str) -> Option<&Records> {
        self.names.get(name).map(|records| &**records)
    }

    pub(crate) fn get(&self, name: &HostName) -> Known<'_> {
        if let Some(records) = self.names.get(name) {
            return Known::Records(records);
        }
        if self.absent.contains(name) {
            return Known::Absent;
        }
        // Records exist for `_PORT._tcp.HOST` alone, which are found by their host.
        let is_of_a_host = parents(name.as_str())
            .take_while(|(label, _)| label.starts_with('_'))
            .any(|(_, parent)| self.names.contains_key(parent));
        if is_of_a_host {
            return Known::Absent;
        }
        if self.zone_of(name.as_str()).is_none() {
            return Known::Elsewhere;
        }
        let exists = self.zones.contains(name) || self.above.contains(name.as_str());
        if exists { Known::Empty } else { Known::Absent }
    }

    /// The innermost zone of a name.
    pub(crate) fn zone_of(&self, name: &str) -> Option<&HostName> {
        let zones = self.zones.iter().filter(|zone| zone.as_str() == name || is_below(name, zone.as_str()));
        zones.max_by_key(|zone| zone.as_str().len())
    }

    pub(crate) fn is_virtual(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(&address))
    }
}

/// Each first label and the rest after it.
fn parents(name: &str) -> impl Iterator<Item = (&str, &str)> {
    std::iter::successors(name.split_once('.'), |(_, rest)| rest.split_once('.'))
}

fn is_below(name: &str, above: &str) -> bool {
    name.strip_suffix(above).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}
