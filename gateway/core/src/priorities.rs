//! Ranks the endpoints of a service as one gateway sees them, and finds the part of a split that each belongs to. Pure.

use isthmus_model::Locality;
use isthmus_model::services::Endpoint;
use isthmus_model::traffic::{Affinity, LocalityScope, SplitTo, Traffic};

/// The part of endpoints that a split does not list.
pub(crate) const UNLISTED: u8 = u8::MAX;
/// Classes of distance that are told apart.
const CLASSES: u8 = 16;
/// Localities that are told apart: the same zone, the same region, elsewhere.
const LEVELS: u8 = 3;

/// A gateway's own position.
#[derive(Clone, Debug)]
pub(crate) struct Position {
    /// Its cluster.
    pub(crate) cluster: String,
    /// Its locality.
    pub(crate) locality: Locality,
}

impl Position {
    /// Sets the rank of an endpoint, and its part. `cluster` is where it is, and `distance` the class of its distance
    /// (0: near, or unknown). Ranks compare; [`compact`] makes priorities of them.
    pub(crate) fn place(&self, endpoint: &mut Endpoint, traffic: &Traffic, cluster: &str, distance: u8) {
        let is_own = cluster == self.cluster;
        let by_cluster = match traffic.affinity {
            Affinity::None => 0,
            Affinity::Local => u8::from(!is_own),
            Affinity::Remote => u8::from(is_own),
        };
        let by_locality = self.level(&endpoint.locality, traffic.locality);
        endpoint.priority = (by_cluster * LEVELS + by_locality) * CLASSES + distance.min(CLASSES - 1);
        endpoint.part = part(traffic, endpoint, cluster);
    }

    /// Returns 0 for the same zone, 1 for the same region, 2 elsewhere, as far as the scope tells them apart. What has no
    /// locality is elsewhere.
    fn level(&self, other: &Locality, scope: LocalityScope) -> u8 {
        let own = &self.locality;
        let is_same_region = !own.region.is_empty() && own.region == other.region;
        let is_same_zone = is_same_region && !own.zone.is_empty() && own.zone == other.zone;
        match scope {
            LocalityScope::Zone => LEVELS - 1 - u8::from(is_same_region) - u8::from(is_same_zone),
            LocalityScope::Region => LEVELS - 1 - u8::from(is_same_region),
            LocalityScope::Off => 0,
        }
    }
}

/// Returns the first part of the split that an endpoint belongs to.
fn part(traffic: &Traffic, endpoint: &Endpoint, cluster: &str) -> u8 {
    let has = |to: &SplitTo| match to {
        SplitTo::Cluster(wanted) => wanted.as_str() == cluster,
        SplitTo::Labels(wanted) => endpoint.labels.match_all(wanted),
    };
    if traffic.split.is_empty() {
        return 0;
    }
    let parts = (0..UNLISTED).zip(&traffic.split);
    parts.into_iter().find(|(_, part)| has(&part.to)).map_or(UNLISTED, |(index, _)| index)
}

/// Makes priorities of ranks: 0 for the first, and no gaps.
pub(crate) fn compact(endpoints: &mut [Endpoint]) {
    let mut ranks: Vec<u8> = endpoints.iter().map(|endpoint| endpoint.priority).collect();
    ranks.sort_unstable();
    ranks.dedup();
    for endpoint in endpoints {
        let place = ranks.binary_search(&endpoint.priority).unwrap_or_default();
        endpoint.priority = u8::try_from(place).unwrap_or(u8::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_model::Labels;
    use isthmus_model::services::Scope;
    use isthmus_model::traffic::SplitPart;

    fn locality(region: &str, zone: &str) -> Locality {
        Locality { region: region.to_owned(), zone: zone.to_owned(), sub_zone: String::new() }
    }

    fn endpoint(locality: Locality, labels: Labels) -> Endpoint {
        Endpoint {
            address: "10.0.0.1:80".parse().unwrap(),
            instance: None,
            weight: 1,
            locality,
            aliases: [].into(),
            labels,
            reach: Scope::Local,
            access: None,
            priority: 0,
            part: 0,
            is_ready: true,
        }
    }

    fn at(region: &str, zone: &str) -> Position {
        Position { cluster: "west".to_owned(), locality: locality(region, zone) }
    }

    /// The priorities of endpoints, `(cluster, region, zone, distance)`, as a gateway in `eu`, zone `a`, sees them.
    fn priorities(traffic: &Traffic, from: &Position, endpoints: &[(&str, &str, &str, u8)]) -> Vec<u8> {
        let place = |(cluster, region, zone, distance): &(&str, &str, &str, u8)| {
            let mut endpoint = endpoint(locality(region, zone), Labels::default());
            from.place(&mut endpoint, traffic, cluster, *distance);
            endpoint
        };
        let mut placed: Vec<_> = endpoints.iter().map(place).collect();
        compact(&mut placed);
        placed.iter().map(|endpoint| endpoint.priority).collect()
    }

    const WORLD: [(&str, &str, &str, u8); 8] = [
        ("west", "eu", "a", 0),
        ("west", "eu", "b", 0),
        ("west", "us", "a", 0),
        ("west", "", "", 0),
        ("east", "eu", "a", 0),
        ("east", "us", "a", 1),
        ("south", "us", "b", 0),
        ("south", "", "", 40),
    ];

    #[test]
    fn priorities_go_by_cluster_then_locality_then_distance() {
        let with = |affinity, locality| Traffic { affinity, locality, ..Traffic::default() };
        let here = at("eu", "a");
        let seen = |traffic| priorities(&traffic, &here, &WORLD);
        assert_eq!(seen(Traffic::default()), [0, 1, 2, 2, 3, 5, 4, 6]);
        assert_eq!(seen(with(Affinity::Local, LocalityScope::Region)), [0, 0, 1, 1, 2, 4, 3, 5]);
        assert_eq!(seen(with(Affinity::Local, LocalityScope::Off)), [0, 0, 0, 0, 1, 2, 1, 3]);
        assert_eq!(seen(with(Affinity::Remote, LocalityScope::Off)), [3, 3, 3, 3, 0, 1, 0, 2]);
        assert_eq!(seen(with(Affinity::None, LocalityScope::Zone)), [0, 1, 2, 2, 0, 3, 2, 4]);
    }

    #[test]
    fn gateway_without_locality_knows_own_and_other_clusters() {
        let seen = priorities(&Traffic::default(), &at("", ""), &WORLD[..5]);
        assert_eq!(seen, [0, 0, 0, 0, 1]);
        let regions = priorities(&Traffic::default(), &at("eu", ""), &WORLD[..4]);
        assert_eq!(regions, [0, 0, 1, 1], "a zone without a name is no zone");
    }

    #[test]
    fn endpoint_belongs_to_the_first_part_that_lists_it() {
        let label = |version| Labels::new([("version", version)]).unwrap();
        let part = |to| SplitPart { to, weight: 1, abort_if: None };
        let split = vec![
            part(SplitTo::Cluster("east".parse().unwrap())),
            part(SplitTo::Labels(label("v2"))),
            part(SplitTo::Cluster("west".parse().unwrap())),
        ];
        let traffic = Traffic { split, ..Traffic::default() };
        let part_of = |cluster, version| {
            let mut endpoint = endpoint(Locality::default(), label(version));
            at("", "").place(&mut endpoint, &traffic, cluster, 0);
            endpoint.part
        };
        assert_eq!([part_of("east", "v2"), part_of("west", "v2"), part_of("west", "v1")], [0, 1, 2]);
        assert_eq!(part_of("south", "v1"), UNLISTED);
    }
}
