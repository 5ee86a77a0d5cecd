//! What a cluster may say: names that it was granted, places where its gateways and endpoints may stand. Not what
//! others have said already.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::exports::{covers, namespace_of};
use isthmus_model::address::{Ranges, Target};
use isthmus_model::host::{HostName, HostPattern};
use isthmus_model::slice::{Cluster, Port, Slice};

use super::SliceLimits;

/// Who may bring what.
#[derive(Clone, Debug)]
pub struct Consent {
    /// The cluster.
    pub cluster: Cluster,
    /// The network of its endpoints, if that was said.
    pub network: Option<String>,
    /// Services there may be known here.
    pub is_reachable: bool,
    /// It stands in the network that this cluster stands in.
    pub is_near: bool,
    /// Names that its services may have.
    pub hosts: Vec<HostPattern>,
    /// Namespaces of a workspace that spans both.
    pub shared: BTreeSet<String>,
    /// Where its gateways may stand, whatever they are given by.
    pub gateways: Ranges,
    /// Names that its gateways may have.
    pub gateway_hosts: Vec<HostPattern>,
    /// Where endpoints may stand that are reached without a gateway.
    pub endpoints: Vec<IpNet>,
    /// How much it may offer.
    pub limits: SliceLimits,
}

impl Consent {
    /// Whether a name may be given here.
    pub(super) fn grants(&self, name: &HostPattern) -> bool {
        self.hosts.iter().any(|granted| covers(granted, name))
            || namespace_of(name).is_some_and(|namespace| self.shared.contains(namespace))
    }

    /// What its owner may not say, wherever it stands.
    pub(super) fn check(&self, slice: &Slice) -> Result<(), String> {
        if slice.key.cluster != self.cluster {
            return Err(format!(
                "is of cluster {}, and {} speaks for itself alone",
                slice.key.cluster, self.cluster
            ));
        }
        let Some(offer) = &slice.offer else { return Ok(()) };
        if let Some(network) = &self.network
            && *network != offer.network
        {
            return Err(format!("stands in network {:?}, and its cluster in {network:?}", offer.network));
        }
        match offer.gateways.iter().find(|gateway| !self.allows(&gateway.address)) {
            Some(gateway) => Err(format!(
                "has a gateway at {}, which is outside of what `imports` allows for {}",
                gateway.address, self.cluster
            )),
            None => Ok(()),
        }
    }

    /// Whether a gateway may be given by this. Where a name leads is seen each time that it is resolved.
    pub(super) fn allows(&self, gateway: &Target) -> bool {
        match gateway {
            Target::Address(address) => self.gateways.allow(address.ip()),
            Target::Name { host, .. } if self.gateway_hosts.is_empty() => {
                self.gateways.0.is_empty() && host.as_str() != "localhost"
            }
            Target::Name { host, .. } => {
                let host = HostPattern::Exact(host.clone());
                self.gateway_hosts.iter().any(|granted| covers(granted, &host))
            }
        }
    }

    /// Whether an endpoint is reached without a gateway.
    fn is_direct(&self, address: &Target) -> bool {
        let stands_here = |address: &Target| match address {
            Target::Address(address) => self.endpoints.iter().any(|range| range.contains(&address.ip())),
            Target::Name { .. } => false,
        };
        self.is_near && stands_here(address)
    }

    /// Where connections to a slice of the cluster go from here: to endpoints, or to gateways.
    pub(super) fn leads_to<'a>(&'a self, slice: &'a Slice) -> impl Iterator<Item = &'a Target> {
        let granted = self.is_reachable && self.grants(&slice.key.host);
        let offer = slice.offer.as_ref().filter(|_| granted);
        let direct = |port: &'a Port| {
            let addresses = port.endpoints.iter().map(|endpoint| &endpoint.address);
            addresses.filter(|address| self.is_direct(address))
        };
        let endpoints = offer.into_iter().flat_map(|offer| &offer.ports).flat_map(direct);
        let is_by_gateway = |port: &'a Port| direct(port).next().is_none();
        let gateways = offer.filter(|offer| offer.ports.iter().any(is_by_gateway));
        endpoints
            .chain(gateways.into_iter().flat_map(|offer| &offer.gateways).map(|gateway| &gateway.address))
    }

    /// A port with the endpoints that may be reached from here, and the names of instances that were granted.
    pub(super) fn port(&self, port: &Port, may_have: &dyn Fn(&HostName) -> bool) -> Port {
        let mut port = Port { exported: false, sources: Vec::new(), send_proxy: false, ..port.clone() };
        port.endpoints.retain(|endpoint| self.is_direct(&endpoint.address));
        for endpoint in &mut port.endpoints {
            endpoint.exposed = false;
            endpoint.aliases.retain(may_have);
        }
        for instance in port.ready.iter_mut().flat_map(|ready| &mut ready.instances) {
            instance.aliases.retain(may_have);
        }
        port
    }
}
