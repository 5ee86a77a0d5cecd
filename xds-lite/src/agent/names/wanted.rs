//! Which names are to have addresses: the hosts and exported instances of own slices and of imports. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use isthmus_model::address::Target;
use isthmus_model::host::{HostName, HostPattern};
use isthmus_model::slice::{Key, Port, Slice};
use isthmus_model::virtual_address::VirtualRanges;
use isthmus_registry::exports::namespace_of;

/// Addresses of one slice in the virtual ranges that are named.
const NAMED: usize = 4;

/// A name that is to have addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NameFacts {
    pub(super) aliases: BTreeSet<HostName>,
    pub(super) ports: BTreeSet<u16>,
    /// It is of the own registry, alone or beside other clusters'.
    pub(super) is_own: bool,
}

/// What slices say.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    ranges: VirtualRanges,
    slices: BTreeMap<Key, Arc<SliceNames>>,
    /// Names of services that other clusters offer and that are not used here.
    unused: BTreeSet<Key>,
}

/// The names of one slice.
#[derive(Debug, Default, PartialEq, Eq)]
struct SliceNames {
    host: NameFacts,
    instances: BTreeMap<HostName, NameFacts>,
    /// Its addresses in the virtual ranges.
    in_range: BTreeSet<IpAddr>,
}

impl Wanted {
    pub(super) fn new(ranges: VirtualRanges) -> Wanted {
        Wanted { ranges, ..Wanted::default() }
    }

    /// Records a slice that is used, or withdrawn. Returns whether that changes any name.
    pub(super) fn set(&mut self, slice: &Slice, is_own: bool) -> bool {
        let was_unused = self.unused.remove(&slice.key);
        let Some(names) = SliceNames::from_slice(slice, is_own, self.ranges) else {
            return self.slices.remove(&slice.key).is_some() || was_unused;
        };
        let known = self.slices.get(&slice.key).is_some_and(|known| **known == names);
        if !known {
            self.slices.insert(slice.key.clone(), Arc::new(names));
        }
        !known || was_unused
    }

    /// Records that another cluster's slice is not used, though it is offered. Returns whether that changes any name.
    /// Only names of the form `NAME.NAMESPACE.svc.…` are recorded: a peer must not decide about `www.example.com`.
    pub(super) fn set_unused(&mut self, key: &Key) -> bool {
        let was_used = self.slices.remove(key).is_some();
        let is_new = namespace_of(&key.host).is_some() && self.unused.insert(key.clone());
        was_used || is_new
    }

    /// Records that another cluster's slice is no longer offered. Returns whether that changes any name.
    pub(super) fn remove(&mut self, key: &Key) -> bool {
        let was_unused = self.unused.remove(key);
        self.slices.remove(key).is_some() || was_unused
    }

    /// All names, with what slices say of each together. A host goes before an instance of the same name.
    pub(super) fn names(&self) -> BTreeMap<HostName, NameFacts> {
        let mut hosts: BTreeMap<HostName, NameFacts> = BTreeMap::new();
        for (key, names) in &self.slices {
            if let HostPattern::Exact(host) = &key.host {
                hosts.entry(host.clone()).or_default().merge(&names.host);
            }
        }
        let mut instances: BTreeMap<HostName, NameFacts> = BTreeMap::new();
        for (name, facts) in self.slices.values().flat_map(|names| &names.instances) {
            if !hosts.contains_key(name) {
                instances.entry(name.clone()).or_default().merge(facts);
            }
        }
        hosts.append(&mut instances);
        hosts
    }

    /// Hosts that other clusters offer and that are not used here.
    pub(super) fn unused(&self) -> BTreeSet<HostName> {
        let exact = |key: &Key| match &key.host {
            HostPattern::Exact(host) => Some(host.clone()),
            HostPattern::Suffix(_) => None,
        };
        self.unused.iter().filter_map(exact).collect()
    }

    /// The addresses in the virtual ranges that endpoints and gateways have.
    pub(super) fn in_range(&self) -> impl Iterator<Item = (&Key, IpAddr)> {
        self.slices.iter().flat_map(|(key, names)| names.in_range.iter().map(move |address| (key, *address)))
    }
}

impl NameFacts {
    fn merge(&mut self, other: &NameFacts) {
        self.aliases.extend(other.aliases.iter().cloned());
        self.ports.extend(&other.ports);
        self.is_own |= other.is_own;
    }
}

impl SliceNames {
    /// None: it is withdrawn, or its host is a pattern. All ports count: an import has no others than may be used here.
    fn from_slice(slice: &Slice, is_own: bool, ranges: VirtualRanges) -> Option<SliceNames> {
        let HostPattern::Exact(host) = &slice.key.host else { return None };
        let offer = slice.offer.as_ref()?;
        let exact = |alias: &HostPattern| match alias {
            HostPattern::Exact(alias) => Some(alias.clone()),
            HostPattern::Suffix(_) => None,
        };
        let facts = NameFacts {
            aliases: offer.aliases.iter().filter_map(exact).collect(),
            ports: offer.ports.iter().map(|port| port.number).collect(),
            is_own,
        };
        let mut names = SliceNames { host: facts, ..SliceNames::default() };
        for port in &offer.ports {
            names.add_instances(host, port, is_own);
        }
        let endpoints = offer.ports.iter().flat_map(|port| &port.endpoints).map(|endpoint| &endpoint.address);
        let gateways = offer.gateways.iter().map(|gateway| &gateway.address);
        let ips = endpoints.chain(gateways).filter_map(|target| match target {
            Target::Address(address) => Some(address.ip()),
            Target::Name { .. } => None,
        });
        names.in_range = ips.filter(|ip| ranges.contain(*ip)).take(NAMED).collect();
        Some(names)
    }

    /// The exported instances of a port: as endpoints that are seen, or by name alone.
    fn add_instances(&mut self, host: &HostName, port: &Port, is_own: bool) {
        let seen = port.endpoints.iter().filter(|endpoint| endpoint.instance_exported);
        let seen = seen.filter_map(|endpoint| Some((endpoint.instance.as_ref()?, &endpoint.aliases)));
        let named = port.ready.iter().flat_map(|ready| &ready.instances);
        for (instance, aliases) in seen.chain(named.map(|instance| (&instance.name, &instance.aliases))) {
            // The name may be too long with its host.
            let Ok(name) = HostName::parse(format!("{instance}.{host}")) else { continue };
            let facts = self.instances.entry(name).or_default();
            facts.aliases.extend(aliases.iter().cloned());
            facts.ports.insert(port.number);
            facts.is_own = is_own;
        }
    }
}
