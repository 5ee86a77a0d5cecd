//! What `pick` chooses: by policy, weight, health and split. `model` checks any sequence of changes, `envoy` compares with
//! a stock Envoy.

mod assignments;
mod envoy;
mod model;
mod splits;

use super::*;
use crate::config::settings::Balance;
use crate::endpoint::{Cause, Counted};
use crate::snapshot::{Count, Resolved, loads};
use assignments::{CASES, Case, FOR_EVER, by_priority, of_case, service_of, shares_of};
use isthmus_model::traffic::Traffic;
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
    let _busy: Vec<_> = (0..10).map(|_| Counted::one(&service.endpoints[0].state)).collect();
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
    assert!(service.failed(&service.endpoints[0], 0, &rule));
    assert_eq!(counts(&service, 10), HashMap::from([(2, 10)]));
    assert!(service.failed(&service.endpoints[1], 0, &rule));
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

/// Turns are within 2 % of their share, chance within one connection of a hundred.
fn within(balance: Balance, due: f64) -> f64 {
    if balance == Balance::RoundRobin { 0.02 * due } else { 0.01 }
}

#[test]
fn weights_hold_over_many_picks() {
    let weights = [5, 1, 2, 8];
    let endpoints: Vec<_> = weights.iter().map(|weight| (0, *weight, 0)).collect();
    for balance in [Balance::RoundRobin, Balance::Random] {
        let (_, service) = service_of(Traffic::default(), balance, &endpoints, None);
        let shares = shares_of(&service, 100_000);
        for (share, weight) in shares.iter().zip(weights) {
            let due = f64::from(weight) / 16.0;
            assert!((share - due).abs() <= within(balance, due), "{balance}: {shares:?}");
        }
    }
}

#[test]
fn turns_of_an_unhealthy_endpoint_go_to_all_others() {
    for balance in [Balance::RoundRobin, Balance::Random] {
        let (_, service) = service_of(Traffic::default(), balance, &[(0, 1, 0); 10], None);
        assert!(service.endpoints[3].state.health.eject(0, &FOR_EVER, None, Cause::Connects));
        let shares = shares_of(&service, 100_000);
        for (place, share) in shares.iter().enumerate() {
            let due = if place == 3 { 0.0 } else { 1.0 / 9.0 };
            assert!((share - due).abs() <= within(balance, due), "{balance}: {shares:?}");
        }
    }
}

#[test]
fn spill_is_exact() {
    for case in CASES {
        let counts: Vec<Count> = case
            .priorities
            .iter()
            .map(|(healthy, all)| Count { healthy: *healthy as u64, all: *all as u64 })
            .collect();
        let panic = (case.panic > 0).then_some(case.panic);
        let expected = loads(&counts, case.overprovisioning, panic);
        for balance in [Balance::RoundRobin, Balance::Random, Balance::LeastConnections] {
            let found = by_priority(case, &shares_of(&of_case(case, balance), 10_000));
            for (share, load) in found.iter().zip(&expected) {
                let due = f64::from(load.per_cent) / 100.0;
                assert!((share - due).abs() < 1e-9, "{case:?}, {balance}: {found:?}, not {expected:?}");
            }
        }
    }
}

/// envoy#4442: five dead endpoints before five of which one comes and goes.
#[test]
fn toggled_endpoint_swings_no_connections() {
    let up = Case { priorities: &[(0, 5), (1, 5)], overprovisioning: 140, panic: 50 };
    let down = Case { priorities: &[(0, 5), (0, 5)], ..up };
    let shares = |case| by_priority(case, &shares_of(&of_case(case, Balance::RoundRobin), 1_000));
    assert_eq!((shares(&up), shares(&down)), (vec![0.5, 0.5], vec![0.5, 0.5]));
}

/// envoy#14968: everything accepts and fails its probes.
#[test]
fn all_unhealthy_is_closed_or_spread_over_all() {
    let closed = Case { priorities: &[(0, 4)], overprovisioning: 140, panic: 0 };
    assert!(pick(&of_case(&closed, Balance::Random), &NOBODY, &mut fastrand::Rng::with_seed(7)).is_none());
    let open = Case { panic: 50, ..closed };
    assert_eq!(shares_of(&of_case(&open, Balance::RoundRobin), 1_000), [0.25; 4]);
}

/// Panic concerns the first attempt: the next ones go to healthy endpoints while there is one.
#[test]
fn panic_is_for_first_attempts() {
    let case = Case { priorities: &[(1, 5)], overprovisioning: 140, panic: 50 };
    let service = of_case(&case, Balance::RoundRobin);
    assert_eq!(shares_of(&service, 1_000), [0.2; 5]);
    let mut random = fastrand::Rng::with_seed(7);
    for turn in 0..20 {
        let order = order(&service, &Choice { turn, ..NOBODY }, 5, &mut random);
        assert_eq!(order.len(), 5);
        assert!(order[..2].iter().any(|endpoint| endpoint.state.healthy(0)), "turn {turn}");
    }
}
