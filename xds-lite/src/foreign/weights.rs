//! How new connections are shared out among the endpoints of a chain's clusters, as whole weights. Not which
//! endpoint the next one goes to.

use std::collections::HashMap;

use super::assignment::{Assignment, Endpoint, Group, Health};
use crate::config::address::Target;
use crate::config::services;
use crate::locality::Locality;

/// The largest weight of an endpoint.
const HEAVIEST: u32 = 65_535;

/// The endpoints of one cluster, and the cluster's share.
pub(super) struct Part<'a> {
    pub(super) assignment: &'a Assignment,
    pub(super) by_locality: bool,
    /// None: it is the only one.
    pub(super) share: Option<u32>,
}

/// All endpoints of the parts, each address once. Those that are to get nothing have the weight 0: they keep the
/// connections that they have.
///
/// Tiers are not known yet: of each part, only the lowest priority that has a good endpoint gets connections, or
/// a degraded one if no priority has a good one.
pub(super) fn endpoints(parts: &[Part<'_>]) -> Vec<services::Endpoint> {
    let mut all = Sum::default();
    for part in parts {
        let shares = shares(part);
        let sum: f64 = shares.iter().sum();
        let scale = match part.share {
            Some(share) if sum > 0.0 => f64::from(share) / sum,
            _ => 1.0,
        };
        for ((group, endpoint), share) in each(part.assignment).zip(shares) {
            all.add(endpoint, &group.locality, share * scale);
        }
    }
    all.whole()
}

fn each(assignment: &Assignment) -> impl Iterator<Item = (&Group, &Endpoint)> {
    assignment.groups.iter().flat_map(|group| group.endpoints.iter().map(move |endpoint| (group, endpoint)))
}

/// The share of each endpoint of a part, in its order.
fn shares(part: &Part<'_>) -> Vec<f64> {
    let in_use = [Health::Good, Health::Degraded].into_iter().find_map(|health| {
        let of_health =
            each(part.assignment).filter(|(_, endpoint)| endpoint.health == health && endpoint.weight > 0);
        // Where places have shares, one without gets nothing.
        let shared = of_health.filter(|(group, _)| !part.by_locality || group.weight > 0);
        shared.map(|(group, _)| group.priority).min().map(|priority| (priority, health))
    });
    let Some((priority, health)) = in_use else { return vec![0.0; each(part.assignment).count()] };
    let gets = |group: &Group, endpoint: &Endpoint| group.priority == priority && endpoint.health == health;
    let mut shares = Vec::new();
    for group in &part.assignment.groups {
        let getting = group.endpoints.iter().filter(|endpoint| gets(group, endpoint));
        let sum: f64 = getting.map(|endpoint| f64::from(endpoint.weight)).sum();
        let scale = if part.by_locality && sum > 0.0 { f64::from(group.weight) / sum } else { 1.0 };
        shares.extend(
            group
                .endpoints
                .iter()
                .map(|endpoint| if gets(group, endpoint) { f64::from(endpoint.weight) * scale } else { 0.0 }),
        );
    }
    shares
}

/// Endpoints in the order in which they first came.
#[derive(Default)]
struct Sum {
    places: HashMap<Target, usize>,
    list: Vec<(Target, Locality, f64)>,
}

impl Sum {
    fn add(&mut self, endpoint: &Endpoint, locality: &Locality, share: f64) {
        let next = self.list.len();
        let place = *self.places.entry(endpoint.address.clone()).or_insert(next);
        match self.list.get_mut(place) {
            Some((_, _, sum)) => *sum += share,
            None => self.list.push((endpoint.address.clone(), locality.clone(), share)),
        }
    }

    /// Shares that are small whole numbers stay as they are; others are scaled up, so that little is lost.
    fn whole(self) -> Vec<services::Endpoint> {
        let most = self.list.iter().map(|(_, _, share)| *share).fold(0.0, f64::max);
        let as_they_are =
            most <= f64::from(HEAVIEST) && self.list.iter().all(|(_, _, share)| share.fract() == 0.0);
        let scale = if as_they_are { 1.0 } else { f64::from(HEAVIEST) / most };
        let endpoints = self.list.into_iter().map(|(address, locality, share)| services::Endpoint {
            address,
            instance: None,
            weight: if share > 0.0 { whole(share * scale) } else { 0 },
            locality,
        });
        endpoints.collect()
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and the heaviest")]
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
    fn without_shares_of_places_only_the_endpoints_weights_count() {
        let groups =
            vec![group(0, 7, &[(1, 2, Good), (2, 3, Good)]), group(0, 0, &[(3, 1, Good), (4, 9, Bad)])];
        assert_eq!(weights(&[(groups, false, None)]), [2, 3, 1, 0]);
    }

    #[test]
    fn a_places_share_is_its_own_however_many_serve_there() {
        let groups =
            vec![group(0, 30, &[(1, 1, Good), (2, 1, Good), (3, 1, Good)]), group(0, 10, &[(4, 5, Good)])];
        assert_eq!(weights(&[(groups, true, None)]), [10, 10, 10, 10]);
        let groups = vec![group(0, 1, &[(1, 1, Good), (2, 2, Good)]), group(0, 0, &[(3, 1, Good)])];
        assert_eq!(weights(&[(groups, true, None)]), [32_768, 65_535, 0], "scaled, and no share is none");
    }

    #[test]
    fn the_first_priority_that_can_serve_gets_everything() {
        let groups =
            vec![group(0, 1, &[(1, 1, Bad)]), group(1, 1, &[(2, 1, Degraded)]), group(2, 1, &[(3, 1, Good)])];
        assert_eq!(weights(&[(groups, false, None)]), [0, 0, 1]);
        let groups = vec![group(0, 1, &[(1, 1, Bad)]), group(1, 1, &[(2, 1, Degraded)])];
        assert_eq!(weights(&[(groups, false, None)]), [0, 1]);
        assert_eq!(weights(&[(vec![group(0, 1, &[(1, 1, Bad)])], false, None)]), [0]);
        assert_eq!(weights(&[(vec![], false, None)]), [0; 0]);
    }

    #[test]
    fn clusters_share_by_their_weights_and_an_address_stands_once() {
        let one = vec![group(0, 1, &[(1, 1, Good), (2, 1, Good)])];
        let other = vec![group(0, 1, &[(3, 7, Good), (1, 0, Good)])];
        assert_eq!(weights(&[(one, false, Some(90)), (other, false, Some(10))]), [45, 45, 10]);
    }
}
