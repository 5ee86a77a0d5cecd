//! Picks the endpoint of a service for a connection: first the nearest group with a healthy endpoint, then one of its
//! endpoints by the balancing policy. Pure: time and randomness are arguments.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use isthmus_certs::SpiffeId;
use isthmus_model::HostName;
use isthmus_model::access::Caller;

use crate::config::settings::{Balance, Side};
use crate::family::Off;
use crate::route::Route;
use crate::snapshot::{Endpoint, Group, Service, Snapshot};
use crate::socket::Millis;

/// What a choice depends on, besides the service.
#[derive(Debug)]
pub struct Choice<'a> {
    /// Restricts the choice to this instance.
    pub instance: Option<&'a HostName>,
    /// The side of the listener.
    pub side: Side,
    /// Addresses already tried for this connection.
    pub tried: &'a [SocketAddr],
    /// The client's address.
    pub source: IpAddr,
    /// The client's identity, where it is known.
    pub identity: Option<&'a SpiffeId>,
    /// Turn in round robin: taken once for each connection, and never by `explain`.
    pub turn: usize,
    /// Address families without a route on this machine.
    pub off: Off,
    /// The current time.
    pub now: Millis,
}

/// A choice: a route, an endpoint of its service, and the tables that both come from.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The route.
    pub route: &'a Route,
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// The tables.
    pub tables: &'a Snapshot,
}

/// Picks a healthy endpoint that was not tried yet; otherwise a demoted one, then an ejected one, then one of an
/// address family that is off, because a possibly dead endpoint is better than none. `None` if none is left.
pub fn pick<'s>(
    service: &'s Service,
    choice: &Choice<'_>,
    random: &mut fastrand::Rng,
) -> Option<&'s Endpoint> {
    let caller = Caller { identity: choice.identity, source: choice.source, port: service.port };
    let may_serve = |endpoint: &Endpoint| {
        endpoint.weight > 0
            && endpoint.takes(choice.side)
            && endpoint.admits(&caller)
            && choice.instance.is_none_or(|name| endpoint.is_instance(name, choice.side))
            && !choice.tried.contains(&endpoint.address)
    };
    let has_way = |endpoint: &Endpoint| may_serve(endpoint) && !choice.off.has(endpoint.address.ip());
    let healthy = |endpoint: &Endpoint| has_way(endpoint) && endpoint.state.healthy(choice.now);
    let answers =
        |endpoint: &Endpoint| healthy(endpoint) && !endpoint.state.is_demoted(choice.source, choice.now);
    let ranks: [&dyn Fn(&Endpoint) -> bool; 4] = [&answers, &healthy, &has_way, &may_serve];
    ranks.into_iter().find_map(|usable| in_groups(service, choice, random, usable))
}

fn in_groups<'s>(
    service: &'s Service,
    choice: &Choice<'_>,
    random: &mut fastrand::Rng,
    usable: &dyn Fn(&Endpoint) -> bool,
) -> Option<&'s Endpoint> {
    service.groups().find_map(|group| by_policy(service, group, choice, random, usable))
}

/// Returns the endpoints in the order in which one connection would try them, at most `attempts`.
pub fn order<'s>(
    service: &'s Service,
    choice: &Choice<'_>,
    attempts: usize,
    random: &mut fastrand::Rng,
) -> Vec<&'s Endpoint> {
    let mut order: Vec<&Endpoint> = Vec::new();
    let mut tried = choice.tried.to_vec();
    while order.len() < attempts {
        let Some(next) = pick(service, &Choice { tried: &tried, ..*choice }, random) else { break };
        tried.push(next.address);
        order.push(next);
    }
    order
}

fn by_policy<'s>(
    service: &'s Service,
    group: &Group,
    choice: &Choice<'_>,
    random: &mut fastrand::Rng,
    usable: &dyn Fn(&Endpoint) -> bool,
) -> Option<&'s Endpoint> {
    match service.rules.balance {
        Balance::RoundRobin => from_turn(service, group, choice.turn, usable),
        Balance::Random => at_random(service, group, random, usable),
        Balance::LeastConnections => {
            let first = at_random(service, group, random, usable)?;
            let other = |endpoint: &Endpoint| endpoint.address != first.address && usable(endpoint);
            let second = at_random(service, group, random, &other);
            Some(second.filter(|second| load(second) < load(first)).unwrap_or(first))
        }
        Balance::SourceHash => {
            let score = |endpoint: &Endpoint| rendezvous(choice.source, endpoint);
            group
                .endpoints(service)
                .iter()
                .filter(|endpoint| usable(endpoint))
                .max_by(|a, b| score(a).total_cmp(&score(b)))
        }
    }
}

/// Returns the first usable endpoint from this turn of the schedule on.
fn from_turn<'s>(
    service: &'s Service,
    group: &Group,
    turn: usize,
    usable: &dyn Fn(&Endpoint) -> bool,
) -> Option<&'s Endpoint> {
    let turns = group.turns();
    (0..turns)
        .find_map(|step| group.at(service, (turn % turns + step) % turns).filter(|endpoint| usable(endpoint)))
}

/// Random draws before a linear scan; with at least half of the endpoints usable, two are enough on average.
const DRAWS: usize = 8;

fn at_random<'s>(
    service: &'s Service,
    group: &Group,
    random: &mut fastrand::Rng,
    usable: &dyn Fn(&Endpoint) -> bool,
) -> Option<&'s Endpoint> {
    let turns = group.turns();
    if turns == 0 {
        return None;
    }
    (0..DRAWS)
        .find_map(|_| group.at(service, random.usize(..turns)).filter(|endpoint| usable(endpoint)))
        .or_else(|| from_turn(service, group, random.usize(..turns), usable))
}

fn load(endpoint: &Endpoint) -> f64 {
    (f64::from(endpoint.state.active()) + 1.0) / f64::from(endpoint.weight)
}

/// Weighted rendezvous hashing: each endpoint draws a number from the source's address, the highest wins.
/// When an endpoint is added or removed, only the sources that it wins or had won move.
fn rendezvous(source: IpAddr, endpoint: &Endpoint) -> f64 {
    let mut hasher = DefaultHasher::new(); // the same keys in every process and after a restart
    (source, endpoint.address).hash(&mut hasher);
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    let uniform = ((hasher.finish() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    f64::from(endpoint.weight) / -uniform.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Resolved, Snapshot};
    use std::collections::HashMap;
    use std::path::Path;
    use std::sync::Arc;

    fn service(balance: &str, weights: &[u32]) -> Arc<Service> {
        let endpoints: String = (1..)
            .zip(weights)
            .map(|(index, weight)| {
                format!("  - {{ address: 10.0.0.{index}:80, weight: {weight}, instance: i-{index} }}\n")
            })
            .collect();
        let text = format!(
            "listeners:\n- address: 127.0.0.1:0\nservices:\n- host: a.example\n  balance: {balance}\n  endpoints:\n{endpoints}"
        );
        let settings = crate::config::parse(&text, Path::new("test.yaml")).unwrap();
        let tables = Snapshot::compile(settings.live, &Resolved::new(), None, &|_| false);
        Arc::clone(tables.services().next().unwrap())
    }

    const NOBODY: Choice<'static> = Choice {
        instance: None,
        side: Side::EastWest,
        tried: &[],
        source: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        identity: None,
        turn: 0,
        off: Off::NONE,
        now: 0,
    };

    /// How often each endpoint is picked in `turns`, by its last octet.
    fn counts(service: &Service, turns: usize) -> HashMap<u8, usize> {
        let mut random = fastrand::Rng::with_seed(7);
        let mut counts = HashMap::new();
        for turn in 0..turns {
            let picked = pick(service, &Choice { turn, ..NOBODY }, &mut random).unwrap();
            *counts.entry(last_octet(picked)).or_default() += 1;
        }
        counts
    }

    fn last_octet(endpoint: &Endpoint) -> u8 {
        match endpoint.address.ip() {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => panic!("not in these tests"),
        }
    }

    #[test]
    fn round_robin_is_exact_and_smooth() {
        let equal = service("round_robin", &[1, 1, 1]);
        assert_eq!(counts(&equal, 300), HashMap::from([(1, 100), (2, 100), (3, 100)]));
        let weighted = service("round_robin", &[5, 1, 2, 0]);
        assert_eq!(counts(&weighted, 800), HashMap::from([(1, 500), (2, 100), (3, 200)]));
        let mut random = fastrand::Rng::with_seed(7);
        let eight: Vec<u8> = (0..8)
            .map(|turn| last_octet(pick(&weighted, &Choice { turn, ..NOBODY }, &mut random).unwrap()))
            .collect();
        assert!(!eight.windows(4).any(|four| four == [1, 1, 1, 1]), "{eight:?} is not smooth");
    }

    #[test]
    fn random_follows_weights() {
        let counts = counts(&service("random", &[3, 1, 0]), 40_000);
        assert!((29_000..31_000).contains(&counts[&1]), "{counts:?}");
        assert!(!counts.contains_key(&3));
    }

    #[test]
    fn least_connections_prefers_lower_load_per_weight() {
        let service = service("least_connections", &[1, 1]);
        let _busy: Vec<_> = (0..10).map(|_| service.endpoints[0].state.enter()).collect();
        let counts = counts(&service, 1_000);
        assert!(counts[&2] > 990, "{counts:?}");
    }

    #[test]
    fn source_hash_keeps_endpoint_when_others_change() {
        let before = service("source_hash", &[1, 1, 1, 1, 1]);
        let after = service("source_hash", &[1, 1, 0, 1, 1]);
        let mut random = fastrand::Rng::with_seed(7);
        let mut of = |service: &Service, index: u32| {
            let choice = Choice { source: std::net::Ipv4Addr::from(index).into(), ..NOBODY };
            last_octet(pick(service, &choice, &mut random).unwrap())
        };
        let mut shares = HashMap::<u8, u32>::new();
        for source in 0..5_000 {
            let (old, new) = (of(&before, source), of(&after, source));
            assert!(old == new || old == 3, "source {source} moved from {old} to {new}");
            *shares.entry(old).or_default() += 1;
        }
        assert!(shares.values().all(|share| (900..1_100).contains(share)), "{shares:?}");
    }

    #[test]
    fn pick_uses_ejected_as_last_resort_and_drained_never() {
        let service = service("round_robin", &[1, 1, 0]);
        let rule = crate::config::settings::Ejection {
            failures: 1,
            base: std::time::Duration::from_secs(30),
            max: std::time::Duration::from_secs(30),
            max_percent: 100,
        };
        let mut random = fastrand::Rng::with_seed(7);
        assert!(service.endpoints[0].state.failed(0, &rule, true));
        assert_eq!(counts(&service, 10), HashMap::from([(2, 10)]));
        assert!(service.endpoints[1].state.failed(0, &rule, true));
        assert_eq!(counts(&service, 10), HashMap::from([(1, 5), (2, 5)]));
        let tried: Vec<_> = service.endpoints[..2].iter().map(|endpoint| endpoint.address).collect();
        assert!(pick(&service, &Choice { tried: &tried, ..NOBODY }, &mut random).is_none());
    }

    #[test]
    fn pick_of_instance_returns_that_instance_only() {
        let service = service("random", &[1, 1, 1]);
        let instance = HostName::parse("i-2").unwrap();
        let choice = Choice { instance: Some(&instance), ..NOBODY };
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20 {
            assert_eq!(last_octet(pick(&service, &choice, &mut random).unwrap()), 2);
        }
        assert_eq!(order(&service, &choice, 3, &mut random).len(), 1);
        assert_eq!(order(&service, &NOBODY, 5, &mut random).len(), 3);
    }
}
