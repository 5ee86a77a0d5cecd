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
