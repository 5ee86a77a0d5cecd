//! Runs separate clusters: each in a network namespace with its own address, joined by a bridge, with all
//! default ports. Requires root. Tests configure what the clusters exchange.

use std::net::{IpAddr, SocketAddr};

use crate::cluster::Cluster;
use crate::is_root;
use crate::netns::Star;

/// Several clusters, until dropped.
#[derive(Debug)]
pub struct World<const N: usize> {
    /// In the order of their names; the first is on the first leg of the star.
    pub clusters: [Cluster; N],
    /// Their network.
    pub net: Star,
}

impl<const N: usize> World<N> {
    /// Clusters that do not know each other, or the error. A name may occur twice, for a cluster that
    /// impersonates another.
    pub fn strangers(names: [&str; N]) -> Result<World<N>, String> {
        if !is_root() {
            return Err("network namespaces require root".to_owned());
        }
        let net = Star::new(N)?;
        let mut leg = 0;
        let clusters = names.map(|name| {
            leg += 1;
            let ip = Star::address(leg);
            let mut cluster = Cluster::new(name).inside(net.leg(leg)).at(ip.into());
            let state = cluster.path("state").display().to_string();
            cluster.set("state", &state);
            cluster.set("gateways", &format!("[{{ name: gw-1, address: {ip} }}, {{ name: gw-2 }}]"));
            cluster
        });
        Ok(World { clusters, net })
    }

    /// Clusters that all trust each other and are peers, or the error.
    pub fn peers(names: [&str; N]) -> Result<World<N>, String> {
        let mut world = World::strangers(names)?;
        for own in 0..N {
            let others = world.clusters.iter().enumerate().filter(|(other, _)| *other != own);
            let peers: Vec<_> = others.map(|(_, other)| other.as_peer()).collect();
            for other in (0..N).filter(|other| *other != own) {
                world.clusters[own].trust_cluster(&world.clusters[other]);
            }
            world.clusters[own].set("peers", &format!("[{}]", peers.join(", ")));
        }
        Ok(world)
    }
}

/// The east-west address of a gateway on this IP address.
#[must_use]
pub fn east_west(ip: impl Into<IpAddr>) -> SocketAddr {
    SocketAddr::new(ip.into(), 15_443)
}
