//! Computes integer weights for the endpoints of a chain's clusters from cluster, locality and endpoint weights.

use std::collections::{BTreeSet, HashMap};

use super::assignment::{Assignment, Endpoint, Group, Health};
use isthmus_model::address::Target;
use isthmus_model::labels::Labels;
use isthmus_model::locality::Locality;
use isthmus_model::services::{self, Scope};

/// Largest weight of an endpoint.
const HEAVIEST: u32 = 65_535;

/// The endpoints of one cluster, and the cluster's share.
pub(super) struct Part<'a> {
    pub(super) assignment: &'a Assignment,
    pub(super) by_locality: bool,
    /// None: it is the only cluster.
    pub(super) share: Option<u32>,
}

/// All endpoints of the parts, each address once. An endpoint that receives no new connections has weight 0 and keeps
/// its established ones. Good endpoints rank by priority, degraded ones after all good ones.
pub(super) fn endpoints(parts: &[Part<'_>]) -> Vec<services::Endpoint> {
    let mut all = Sum::default();
    for part in parts {
        let tiers = tiers(part.assignment);
        for (rank, tier) in tiers.iter().enumerate() {
            let rank = u8::try_from(rank).unwrap_or(u8::MAX);
            let shares = shares(part, *tier);
            let sum: f64 = shares.iter().sum();
            let scale = match part.share {
                Some(share) if sum > 0.0 => f64::from(share) / sum,
                _ => 1.0,
            };
            for ((group, endpoint), share) in each(part.assignment).zip(shares) {
                if is_of(group, endpoint, *tier) {
                    all.add(endpoint, &group.locality, rank, share * scale);
                }
            }
        }
        for (group, endpoint) in each(part.assignment).filter(|(_, endpoint)| endpoint.health == Health::Bad)
        {
            all.add(endpoint, &group.locality, u8::MAX, 0.0);
        }
    }
    all.whole()
}

fn each(assignment: &Assignment) -> impl Iterator<Item = (&Group, &Endpoint)> {
    assignment.groups.iter().flat_map(|group| group.endpoints.iter().map(move |endpoint| (group, endpoint)))
}

/// Endpoints that rank before those of the next tier.
type Tier = (Health, u32);

/// Tiers in the order of use.
fn tiers(assignment: &Assignment) -> BTreeSet<Tier> {
    let serving = each(assignment).filter(|(_, endpoint)| endpoint.health != Health::Bad);
    serving.map(|(group, endpoint)| (endpoint.health, group.priority)).collect()
}

fn is_of(group: &Group, endpoint: &Endpoint, tier: Tier) -> bool {
    (endpoint.health, group.priority) == tier
}

/// The share of each endpoint of a part in a tier, in their order.
fn shares(part: &Part<'_>, tier: Tier) -> Vec<f64> {
    let mut shares = Vec::new();
    for group in &part.assignment.groups {
        let weight = |endpoint: &Endpoint| {
            if is_of(group, endpoint, tier) { f64::from(endpoint.weight) } else { 0.0 }
        };
        let sum: f64 = group.endpoints.iter().map(weight).sum();
        // Under locality-weighted balancing a locality without a weight gets nothing.
        let scale = if part.by_locality && sum > 0.0 { f64::from(group.weight) / sum } else { 1.0 };
        shares.extend(group.endpoints.iter().map(|endpoint| weight(endpoint) * scale));
    }
    shares
}

/// Endpoints in the order of their first occurrence.
#[derive(Default)]
struct Sum<'a> {
    places: HashMap<&'a Target, usize>,
    list: Vec<Shared<'a>>,
}

struct Shared<'a> {
    address: &'a Target,
    locality: &'a Locality,
    rank: u8,
    share: f64,
}

impl<'a> Sum<'a> {
    /// A duplicate address takes the best rank of its occurrences.
    fn add(&mut self, endpoint: &'a Endpoint, locality: &'a Locality, rank: u8, share: f64) {
        let address = &endpoint.address;
        let place = *self.places.entry(address).or_insert(self.list.len());
        match self.list.get_mut(place) {
            Some(known) if known.share > 0.0 && rank > known.rank => {}
            Some(known) if share > 0.0 && (known.share == 0.0 || rank < known.rank) => {
                *known = Shared { address, locality, rank, share };
            }
            Some(known) => known.share += share,
            None => self.list.push(Shared { address, locality, rank, share }),
        }
    }

    /// Keeps shares that are small integers; scales others up, so that rounding loses little.
    fn whole(self) -> Vec<services::Endpoint> {
        let most = self.list.iter().map(|entry| entry.share).fold(0.0, f64::max);
        let are_weights = self.list.iter().all(|entry| entry.share.fract() == 0.0);
        let scale = if most <= f64::from(HEAVIEST) && are_weights { 1.0 } else { f64::from(HEAVIEST) / most };
        let endpoints = self.list.into_iter().map(|entry| services::Endpoint {
            address: entry.address.clone(),
            instance: None,
            weight: if entry.share > 0.0 { whole(entry.share * scale) } else { 0 },
            locality: entry.locality.clone(),
            aliases: [].into(),
            labels: Labels::default(),
            reach: Scope::Exported { by_name: false },
            access: None,
            priority: entry.rank,
            part: 0,
            is_ready: true,
        });
        endpoints.collect()
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 1..=HEAVIEST")]
fn whole(share: f64) -> u32 {
    share.round().clamp(1.0, f64::from(HEAVIEST)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(last: u8, weight: u32, health: Health) -> Endpoint {
        let address = Target::Address(([10, 0, 0, last], 80).into());
        Endpoint { address, weight, health }
    }

    fn group(priority: u32, weight: u32, endpoints: &[(u8, u32, Health)]) -> Group {
        let endpoints = endpoints.iter().map(|(last, weight, health)| endpoint(*last, *weight, *health));
        Group { priority, weight, locality: Locality::default(), endpoints: endpoints.collect() }
    }

    fn weights(parts: &[(Vec<Group>, bool, Option<u32>)]) -> Vec<u32> {
        let assignments: Vec<_> =
            parts.iter().map(|(groups, _, _)| Assignment { groups: groups.clone() }).collect();
        let parts: Vec<_> = parts
            .iter()
            .zip(&assignments)
            .map(|((_, by_locality, share), assignment)| Part {
                assignment,
                by_locality: *by_locality,
                share: *share,
            })
            .collect();
        endpoints(&parts).iter().map(|endpoint| endpoint.weight).collect()
    }

    use Health::{Bad, Degraded, Good};

    #[test]
    fn locality_weights_are_ignored_without_locality_balancing() {
        let groups =
            vec![group(0, 7, &[(1, 2, Good), (2, 3, Good)]), group(0, 0, &[(3, 1, Good), (4, 9, Bad)])];
        assert_eq!(weights(&[(groups, false, None)]), [2, 3, 1, 0]);
    }

    #[test]
    fn locality_weight_is_split_among_its_endpoints() {
        let groups =
            vec![group(0, 30, &[(1, 1, Good), (2, 1, Good), (3, 1, Good)]), group(0, 10, &[(4, 5, Good)])];
        assert_eq!(weights(&[(groups, true, None)]), [10, 10, 10, 10]);
        let groups = vec![group(0, 1, &[(1, 1, Good), (2, 2, Good)]), group(0, 0, &[(3, 1, Good)])];
        assert_eq!(
            weights(&[(groups, true, None)]),
            [32_768, 65_535, 0],
            "scaled; a locality without a weight gets nothing"
        );
    }

    fn ranks(groups: Vec<Group>) -> Vec<(u8, u32)> {
        let assignment = Assignment { groups };
        let part = Part { assignment: &assignment, by_locality: false, share: None };
        endpoints(&[part]).iter().map(|endpoint| (endpoint.priority, endpoint.weight)).collect()
    }

    #[test]
    fn priorities_rank_in_order_and_degraded_endpoints_last() {
        let groups = vec![
            group(7, 1, &[(1, 1, Good)]),
            group(0, 1, &[(2, 1, Bad), (3, 1, Degraded), (4, 2, Good)]),
            group(7, 1, &[(4, 9, Good), (5, 3, Good)]),
        ];
        assert_eq!(ranks(groups), [(0, 2), (1, 1), (1, 3), (2, 1), (255, 0)]);
        let many = (0..=255).flat_map(|last| {
            [
                group(last.into(), 1, &[(last, 1, Good)]),
                group(1_000 + u32::from(last), 1, &[(0, 1, Degraded)]),
            ]
        });
        let ranks_of_many: Vec<u8> = ranks(many.collect()).iter().map(|(rank, _)| *rank).collect();
        assert_eq!(ranks_of_many, (0..=255).collect::<Vec<u8>>(), "none is left out");
        assert_eq!(ranks(vec![]), [(0, 0); 0]);
    }

    #[test]
    fn cluster_weights_are_split_and_addresses_merged() {
        let one = vec![group(0, 1, &[(1, 1, Good), (2, 1, Good)])];
        let other = vec![group(0, 1, &[(3, 7, Good), (1, 0, Good)])];
        assert_eq!(weights(&[(one, false, Some(90)), (other, false, Some(10))]), [45, 45, 10]);
    }
}
