//! Divides the ready count of another cluster among the addresses of its gateways, without fractions: where several
//! clusters stand side by side, their weights stay in proportion to what is ready behind them.

use std::collections::BTreeMap;

use super::Endpoint;

/// Divides the weights of gateways among those of the same cluster, part and priority. Where all weights of a group would
/// have to be multiplied by more than 255, they are rounded.
pub(super) fn divide(endpoints: &mut [Endpoint]) {
    for alike in endpoints.chunk_by_mut(|one, other| one.place() == other.place()) {
        if alike.iter().filter(|endpoint| endpoint.cluster().is_some()).count() < 2 {
            continue;
        }
        let mut clusters: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for endpoint in alike.iter().filter(|endpoint| endpoint.weight > 0) {
            let Some(cluster) = endpoint.cluster() else { continue };
            let (ready, addresses) = clusters.entry(cluster.to_owned()).or_default();
            *ready = endpoint.weight.into();
            *addresses += 1;
        }
        let factors = clusters.values().map(|(ready, addresses)| addresses / gcd(*ready, *addresses));
        let unit = u8::try_from(factors.fold(1, lcm)).unwrap_or(u8::MAX);
        for endpoint in alike {
            let cluster = endpoint.cluster().and_then(|cluster| clusters.get(cluster));
            let addresses = cluster.map_or(1, |(_, addresses)| *addresses);
            let weight = (u64::from(endpoint.weight) * u64::from(unit) + addresses / 2) / addresses;
            endpoint.weight = match endpoint.weight {
                0 => 0,
                _ => u32::try_from(weight).unwrap_or(u32::MAX).max(1),
            };
            endpoint.unit = unit;
        }
    }
}

pub(super) fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn lcm(a: u64, b: u64) -> u64 {
    (a / gcd(a, b).max(1)).saturating_mul(b)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::sync::Arc;

    use isthmus_model::address::Ranges;
    use isthmus_model::{Labels, Locality};

    use super::*;
    use crate::config::settings::{RemoteGateway, Scope};
    use crate::snapshot::EndpointMeta;

    /// Gateways, each of a cluster with as many ready endpoints.
    fn gateways(of: &[(&str, u32)]) -> Vec<Endpoint> {
        let gateway = |(number, (cluster, ready)): (u32, &(&str, u32))| {
            let beyond = RemoteGateway {
                cluster: cluster.parse().unwrap(),
                instances: Vec::new(),
                ranges: Ranges::default(),
                terminates: false,
            };
            Endpoint {
                address: SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + number), 15_443)),
                weight: *ready,
                priority: 1,
                part: 0,
                unit: 1,
                is_ready: *ready > 0,
                traits: Arc::new(EndpointMeta {
                    instance: None,
                    aliases: [].into(),
                    locality: Locality::default(),
                    labels: Labels::default(),
                    reach: Scope::RemoteGateway(Arc::new(beyond)),
                    access: None,
                }),
                state: Arc::default(),
            }
        };
        (1..).zip(of).map(gateway).collect()
    }

    fn divided(of: &[(&str, u32)]) -> Vec<u32> {
        let mut endpoints = gateways(of);
        divide(&mut endpoints);
        endpoints.iter().map(|endpoint| endpoint.weight).collect()
    }

    #[test]
    fn cluster_gets_by_its_ready_endpoints_however_many_gateways_it_has() {
        assert_eq!(divided(&[("east", 6), ("east", 6), ("south", 3)]), [3, 3, 3], "6 and 3");
        assert_eq!(divided(&[("east", 5), ("east", 5), ("south", 1)]), [5, 5, 2], "10 and 2 halves");
        assert_eq!(divided(&[("east", 0), ("east", 0), ("south", 4)]), [0, 0, 4], "nothing is ready there");
        assert_eq!(divided(&[("east", 7)]), [7], "one address");
    }

    #[test]
    fn cluster_with_many_gateways_keeps_at_least_a_turn_for_each() {
        let many: Vec<_> = std::iter::repeat_n(("east", 1), 300).chain([("south", 300)]).collect();
        let weights = divided(&many);
        assert!(
            weights[..300].iter().all(|weight| *weight == 1) && weights[300] > 300,
            "{:?}",
            &weights[299..]
        );
    }
}
