//! Virtual addresses of hosts and exported instances, for applications without TLS: one address of each family for
//! each name, shared by its aliases. They are local to a cluster and never told to another one.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::SystemTime;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::allotment::{Allotment, Exhausted, PlaceRange, Stored};
use crate::host::HostName;

/// The virtual addresses of a cluster.
#[derive(Clone, Debug, Default)]
pub struct VirtualAddresses {
    v6: Option<Allotment<HostName, Ipv6Addr>>,
    v4: Option<Allotment<HostName, Ipv4Addr>>,
}

/// Ranges of virtual addresses. Without one of a family, no name has an address of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtualRanges {
    /// IPv6, such as a ULA `/64`.
    pub v6: Option<Ipv6Net>,
    /// IPv4.
    pub v4: Option<Ipv4Net>,
}

/// The addresses of one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NameAddresses {
    /// IPv6.
    pub v6: Option<Ipv6Addr>,
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
}

impl VirtualRanges {
    /// Whether an address is in one of the ranges.
    #[must_use]
    pub fn contain(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V6(address) => self.v6.is_some_and(|range| range.contains(&address)),
            IpAddr::V4(address) => self.v4.is_some_and(|range| range.contains(&address)),
        }
    }
}

impl NameAddresses {
    /// All of them, IPv6 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        let v6 = self.v6.map(IpAddr::V6);
        v6.into_iter().chain(self.v4.map(IpAddr::V4))
    }
}

/// The stored form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredAddresses {
    /// IPv6.
    #[serde(default)]
    pub v6: Vec<Stored<HostName, Ipv6Addr>>,
    /// IPv4.
    #[serde(default)]
    pub v4: Vec<Stored<HostName, Ipv4Addr>>,
}

impl VirtualAddresses {
    /// Restores the stored addresses; returns those that do not fit the ranges.
    #[must_use]
    pub fn restored(ranges: VirtualRanges, stored: StoredAddresses) -> (VirtualAddresses, StoredAddresses) {
        let v6 = ranges.v6.map(|net| Allotment::restored(hosts_v6(net), stored.v6.iter().cloned()));
        let v4 = ranges.v4.map(|net| Allotment::restored(hosts_v4(net), stored.v4.iter().cloned()));
        let (v6, unfit_v6) = v6.map_or((None, stored.v6), |(allotment, unfit)| (Some(allotment), unfit));
        let (v4, unfit_v4) = v4.map_or((None, stored.v4), |(allotment, unfit)| (Some(allotment), unfit));
        (VirtualAddresses { v6, v4 }, StoredAddresses { v6: unfit_v6, v4: unfit_v4 })
    }

    /// The stored form.
    #[must_use]
    pub fn stored(&self) -> StoredAddresses {
        StoredAddresses {
            v6: self.v6.iter().flat_map(Allotment::stored).collect(),
            v4: self.v4.iter().flat_map(Allotment::stored).collect(),
        }
    }

    /// Gives each of these names its addresses and frees those of all others. Returns an error for each address that a
    /// name lacks.
    pub fn want(&mut self, names: &BTreeSet<HostName>, now: SystemTime) -> Vec<Exhausted> {
        let mut errors = self.v6.as_mut().map(|all| all.want(names, now)).unwrap_or_default();
        errors.extend(self.v4.as_mut().map(|all| all.want(names, now)).unwrap_or_default());
        errors
    }

    /// The names that have an address.
    #[must_use]
    pub fn wanted(&self) -> BTreeSet<HostName> {
        let v6 = self.v6.iter().flat_map(Allotment::wanted).map(|(name, _)| name);
        let v4 = self.v4.iter().flat_map(Allotment::wanted).map(|(name, _)| name);
        v6.chain(v4).cloned().collect()
    }

    /// The addresses of a name.
    #[must_use]
    pub fn get(&self, name: &HostName) -> NameAddresses {
        NameAddresses {
            v6: self.v6.as_ref().and_then(|all| all.get(name)),
            v4: self.v4.as_ref().and_then(|all| all.get(name)),
        }
    }

    /// The name of an address.
    #[must_use]
    pub fn name_of(&self, address: IpAddr) -> Option<&HostName> {
        match address.to_canonical() {
            IpAddr::V6(address) => self.v6.as_ref()?.name_of(address),
            IpAddr::V4(address) => self.v4.as_ref()?.name_of(address),
        }
    }
}

/// All but the first address, which is the routers' own.
fn hosts_v6(net: Ipv6Net) -> PlaceRange<Ipv6Addr> {
    let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
    PlaceRange { first: Ipv6Addr::from_bits(first.saturating_add(1).min(last)), last: net.broadcast() }
}

/// All but the network's own address and the broadcast address.
fn hosts_v4(net: Ipv4Net) -> PlaceRange<Ipv4Addr> {
    let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
    if last - first < 2 {
        return PlaceRange { first: net.network(), last: net.broadcast() };
    }
    PlaceRange { first: Ipv4Addr::from_bits(first + 1), last: Ipv4Addr::from_bits(last - 1) }
}

#[cfg(test)]
mod tests;
