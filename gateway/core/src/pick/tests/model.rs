//! Any sequence of changes of health, membership and weights keeps the promises of `pick`.

use super::assignments::{FOR_EVER, service_of};
use super::*;
use crate::priorities::UNLISTED;
use isthmus_model::Labels;
use isthmus_model::traffic::{SplitPart, SplitTo, Traffic};
use proptest::prelude::*;

/// Endpoints that may be members.
const MEMBERS: usize = 12;
/// Longer than a count of health is used.
const STEP_MS: Millis = 1_000;

#[derive(Clone, Debug)]
enum Change {
    Health(usize),
    Membership(usize),
    Weight(usize, u32),
    Split(u16, u16),
}

#[derive(Clone, Debug)]
struct World {
    traffic: Traffic,
    balance: Balance,
    /// Priority, weight and part; membership by a weight above 0.
    endpoints: Vec<(u8, u32, u8)>,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (0..MEMBERS).prop_map(Change::Health),
        2 => (0..MEMBERS).prop_map(Change::Membership),
        1 => (0..MEMBERS, 1_u32..5).prop_map(|(place, weight)| Change::Weight(place, weight)),
        1 => (0_u16..100, 0_u16..100).prop_map(|(one, other)| Change::Split(one, other)),
    ]
}

fn parts(weights: (u16, u16)) -> Vec<SplitPart> {
    let part = |(version, weight)| {
        let labels = Labels::new([("version", version)]).unwrap();
        SplitPart { to: SplitTo::Labels(labels), weight, abort_if: None }
    };
    [("v1", weights.0), ("v2", weights.1)].into_iter().map(part).collect()
}

prop_compose! {
    fn world()(
        is_split in any::<bool>(),
        is_sticky in any::<bool>(),
        panic in prop_oneof![Just(None), Just(Some(50_u8)), Just(Some(100_u8))],
        balance in prop_oneof![
            Just(Balance::RoundRobin), Just(Balance::Random), Just(Balance::LeastConnections), Just(Balance::SourceHash)
        ],
        endpoints in prop::collection::vec((0_u8..4, 0_u32..4, prop_oneof![Just(0_u8), Just(1), Just(UNLISTED)]), MEMBERS),
    ) -> World {
        let split = if is_split { parts((60, 40)) } else { Vec::new() };
        let endpoints = endpoints.into_iter().map(|(priority, weight, part)| (priority, weight, if is_split { part } else { 0 }));
        let traffic = Traffic { split, sticky: is_sticky, panic, ..Traffic::default() };
        World { traffic, balance, endpoints: endpoints.collect() }
    }
}

impl World {
    fn apply(&mut self, change: &Change, service: &Service, now: Millis) {
        match change {
            Change::Health(place) => {
                let address = address(*place);
                let endpoint = service.endpoints.iter().find(|endpoint| endpoint.address == address).unwrap();
                if endpoint.state.healthy(now) {
                    assert!(endpoint.state.health.eject(now, &FOR_EVER, None, Cause::Connects));
                } else {
                    assert!(endpoint.state.health.readmit(now));
                }
            }
            Change::Membership(place) => {
                let weight = &mut self.endpoints[*place].1;
                *weight = u32::from(*weight == 0);
            }
            Change::Weight(place, weight) => self.endpoints[*place].1 = *weight,
            Change::Split(one, other) if !self.traffic.split.is_empty() => {
                self.traffic.split = parts((*one, *other));
            }
            Change::Split(..) => {}
        }
    }

    /// Whether a connection may use an endpoint: it has a weight, and its part as well.
    fn may_use(&self, endpoint: &Endpoint) -> bool {
        let part = self.traffic.split.get(usize::from(endpoint.place().0));
        endpoint.weight > 0 && part.is_none_or(|part| part.weight > 0)
    }
}

fn address(place: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, u8::try_from(place + 1).unwrap()], 80))
}

/// Tries all endpoints as one connection would whose attempts all fail.
fn assert_promises(world: &World, service: &Service, turn: usize, now: Millis) -> Result<(), TestCaseError> {
    let mut random = fastrand::Rng::with_seed(turn as u64);
    let source = IpAddr::from(u32::try_from(turn).unwrap().to_be_bytes());
    let mut tried: Vec<SocketAddr> = Vec::new();
    loop {
        let choice = Choice { tried: &tried, source, turn, now, ..NOBODY };
        let left = || {
            let left = service.endpoints.iter().filter(|endpoint| world.may_use(endpoint));
            left.filter(|endpoint| !tried.contains(&endpoint.address))
        };
        let has_healthy = left().any(|endpoint| endpoint.state.healthy(now));
        let Some(picked) = pick(service, &choice, &mut random) else {
            let fails_closed = world.traffic.panic.is_none();
            prop_assert!(!has_healthy, "a healthy endpoint is left");
            prop_assert!(fails_closed || left().next().is_none(), "an endpoint is left");
            return Ok(());
        };
        prop_assert!(world.may_use(picked), "{} is out of service", picked.address);
        prop_assert!(!tried.contains(&picked.address), "{} was tried", picked.address);
        if !picked.state.healthy(now) {
            let loads = service.loads(now);
            let panics = loads.of_side(choice.side).iter().any(|load| load.panics);
            prop_assert!(!has_healthy || (tried.is_empty() && panics), "{} is unhealthy", picked.address);
            prop_assert!(world.traffic.panic.is_some(), "panic is off");
        }
        tried.push(picked.address);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn pick_keeps_its_promises(mut world in world(), changes in prop::collection::vec(change(), 1..40)) {
        let (mut tables, mut service) =
            service_of(world.traffic.clone(), world.balance, &world.endpoints, None);
        let mut now = STEP_MS;
        for change in &changes {
            world.apply(change, &service, now);
            (tables, service) =
                service_of(world.traffic.clone(), world.balance, &world.endpoints, Some(&tables));
            for turn in 0..20 {
                assert_promises(&world, &service, turn, now)?;
            }
            now += STEP_MS;
        }
    }

    /// The failure of one endpoint moves its own sources, and those that leave its priority.
    #[test]
    fn failure_moves_no_more_than_its_share(
        priorities in prop::collection::vec(1_usize..6, 1..4),
        failed in 0_usize..5,
    ) {
        const SOURCES: u32 = 2_000;
        let endpoints: Vec<_> = (0_u8..)
            .zip(&priorities)
            .flat_map(|(priority, count)| (0..*count).map(move |_| (priority, 1, 0)))
            .collect();
        let failed = failed % endpoints.len();
        let traffic = Traffic { panic: None, ..Traffic::default() };
        let (_, service) = service_of(traffic, Balance::SourceHash, &endpoints, None);
        let mut random = fastrand::Rng::with_seed(7);
        let mut all = |now| -> Vec<Option<SocketAddr>> {
            let sources = (0..SOURCES).map(|source| Choice { source: IpAddr::from(source.to_be_bytes()), now, ..NOBODY });
            sources.map(|choice| pick(&service, &choice, &mut random).map(|endpoint| endpoint.address)).collect()
        };
        let before = all(STEP_MS);
        let loads = |now| service.loads(now).of_side(Side::EastWest).to_vec();
        let old = loads(STEP_MS);
        let dead = &service.endpoints[failed];
        prop_assert!(dead.state.health.eject(STEP_MS, &FOR_EVER, None, Cause::Connects));
        let after = all(3 * STEP_MS);
        let left: u32 = old.iter().zip(loads(3 * STEP_MS)).map(|(old, new)| u32::from(old.per_cent.saturating_sub(new.per_cent))).sum();
        let own = before.iter().filter(|address| **address == Some(dead.address)).count();
        let moved = before.iter().zip(&after).filter(|(old, new)| old != new).count();
        // Sources leave a priority by chance: 5 % of them more than its share of the loads at the most.
        let bound = own + (SOURCES * (left + 5) / 100) as usize;
        prop_assert!(moved <= bound, "{} moved, {} of them of the failed one, {} % left", moved, own, left);
    }
}
