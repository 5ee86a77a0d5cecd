//! Virtual ranges that contain addresses in use: of endpoints, gateways, agents, listeners and name servers.

use std::net::IpAddr;

use isthmus_model::address::Target;
use isthmus_model::slice::Key;

use crate::agent::config::{Settings, Upstreams};

/// Collisions with addresses of the agent's own file.
#[derive(Debug)]
pub(super) struct Collisions {
    own: Vec<String>,
}

impl Collisions {
    pub(super) fn of_settings(settings: &Settings) -> Collisions {
        let ip = |target: &Target| match target {
            Target::Address(address) => Some(address.ip()),
            Target::Name { .. } => None,
        };
        let mut used: Vec<(IpAddr, String)> = Vec::new();
        for gateway in &settings.gateways {
            let addresses = gateway.addresses.iter().filter_map(ip);
            let addresses = addresses.chain(gateway.envoy.map(|envoy| envoy.ip()));
            used.extend(addresses.map(|ip| (ip, format!("the address of gateway {}", gateway.name))));
        }
        for peer in &settings.peers {
            used.extend(ip(&peer.address).map(|ip| (ip, format!("the agent of cluster {}", peer.cluster))));
        }
        let join = settings.join.as_ref().map(|join| join.address);
        let dns = settings.dns.as_ref();
        let listeners = [Some(settings.address), Some(settings.admin), join, dns.map(|dns| dns.listen)];
        used.extend(
            listeners.into_iter().flatten().map(|at| (at.ip(), "a listener of this agent".to_owned())),
        );
        if let Some(Upstreams::At(servers)) = dns.map(|dns| &dns.upstreams) {
            used.extend(servers.iter().map(|at| (at.ip(), "a server of dns.upstreams".to_owned())));
        }
        let ranges = settings.names.addresses;
        let own = used.into_iter().filter(|(ip, _)| ranges.contain(*ip));
        Collisions { own: own.map(|(ip, what)| line(ip, &what)).collect() }
    }

    /// These and those with addresses in slices.
    pub(super) fn with<'a>(
        &self,
        in_range: impl Iterator<Item = (&'a Key, IpAddr)>,
    ) -> impl Iterator<Item = String> {
        let in_slices = in_range.map(|(Key { cluster, host }, ip)| {
            line(ip, &format!("an endpoint or gateway of {host} of cluster {cluster}"))
        });
        self.own.iter().cloned().chain(in_slices)
    }
}

fn line(ip: IpAddr, what: &str) -> String {
    format!("virtual_addresses contains {ip}, {what}; choose a range that nothing uses")
}
