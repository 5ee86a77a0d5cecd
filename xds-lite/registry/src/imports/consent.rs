//! Checks what a peer may offer: names that it was granted, and addresses that its gateways and endpoints may
//! have. Conflicts between peers are decided in `imports`.

use std::collections::BTreeSet;

use ipnet::IpNet;
use isthmus_certs::TrustDomain;

use crate::exports::{covers, namespace_of};
use isthmus_model::address::{Ranges, Target};
use isthmus_model::host::{HostName, HostPattern};
use isthmus_model::slice::{Cluster, Port, Slice, Staleness};

use super::SliceLimits;

/// What one peer may offer.
#[derive(Clone, Debug)]
pub struct Consent {
    /// The peer's cluster.
    pub cluster: Cluster,
    /// Its trust domain: all identities that its slices promise are of it.
    pub domain: TrustDomain,
    /// The network of its endpoints, if configured.
    pub network: Option<String>,
    /// Whether reachability allows its services to be known here.
    pub is_reachable: bool,
    /// Whether it shares this cluster's network.
    pub is_near: bool,
    /// Names that its services may have.
    pub hosts: Vec<HostPattern>,
    /// Namespaces of a workspace that spans both clusters.
    pub shared: BTreeSet<String>,
    /// Addresses that its gateways may have.
    pub gateways: Ranges,
    /// DNS names that its gateways may have.
    pub gateway_hosts: Vec<HostPattern>,
    /// Addresses that endpoints reached without a gateway may have.
    pub endpoints: Vec<IpNet>,
    /// The limits of its slices.
    pub limits: SliceLimits,
}

impl Consent {
    /// Whether the peer may use a name here.
    pub(super) fn grants(&self, name: &HostPattern) -> bool {
        self.hosts.iter().any(|granted| covers(granted, name))
            || namespace_of(name).is_some_and(|namespace| self.shared.contains(namespace))
    }

    /// Checks what a slice says regardless of other slices.
    pub(super) fn check(&self, slice: &Slice) -> Result<(), String> {
        if slice.key.cluster != self.cluster {
            return Err(format!(
                "belongs to cluster {}, but {} may publish only its own slices",
                slice.key.cluster, self.cluster
            ));
        }
        slice.check_identities(std::slice::from_ref(&self.domain)).map_err(|foreign| foreign.to_string())?;
        let Some(offer) = &slice.offer else { return Ok(()) };
        if let Some(network) = &self.network
            && *network != offer.network
        {
            return Err(format!(
                "is in network {:?}, but its cluster is configured with {network:?}",
                offer.network
            ));
        }
        match offer.gateways.iter().find(|gateway| !self.allows(&gateway.address)) {
            Some(gateway) => Err(format!(
                "has a gateway at {}, which `imports` does not allow for {}",
                gateway.address, self.cluster
            )),
            None => Ok(()),
        }
    }

    /// Whether a gateway may have this address. The addresses of a name are checked each time it is resolved.
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

    /// The targets of connections to a slice from here: endpoints, or gateways.
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

    /// The targets to probe while the peer is unreachable.
    pub(super) fn probed(&self, slice: &Slice) -> Vec<Target> {
        let is_probed = slice.offer.as_ref().is_some_and(|offer| offer.staleness == Staleness::Probe);
        if is_probed { self.leads_to(slice).cloned().collect() } else { Vec::new() }
    }

    /// A port with the endpoints that are reachable from here, and the instance names that were granted.
    pub(super) fn port(&self, port: &Port, may_have: &dyn Fn(&HostName) -> bool) -> Port {
        let mut port = Port {
            exported: false,
            sources: Vec::new(),
            send_proxy: false,
            // Whatever its owner says of that.
            traffic: None,
            ..port.clone()
        };
        port.health = port.health.map(|health| Box::new(health.at_peers(port.tls.mode())));
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
