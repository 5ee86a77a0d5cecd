//! Services whose endpoints have given priorities and health, and the cases that are compared with Envoy.

use super::*;
use crate::config::settings::Ejection;
use isthmus_model::traffic::Traffic;
use std::time::Duration;

/// Ejects for longer than any test takes.
pub(super) const FOR_EVER: Ejection = Ejection {
    failures: 1,
    base: Duration::from_secs(1_000_000),
    max: Duration::from_secs(1_000_000),
    max_percent: 100,
};

/// Endpoints of the priorities from 0 on: healthy ones, and all.
pub(super) type Healthy = (usize, usize);

/// What both are given.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) priorities: &'static [Healthy],
    pub(super) overprovisioning: u16,
    pub(super) panic: u8,
}

const fn case(priorities: &'static [Healthy]) -> Case {
    Case { priorities, overprovisioning: 140, panic: 50 }
}

const fn with(priorities: &'static [Healthy], overprovisioning: u16, panic: u8) -> Case {
    Case { priorities, overprovisioning, panic }
}

/// The assignments that Envoy and `pick` divide among endpoints.
pub(super) const CASES: &[Case] = &[
    case(&[(5, 5)]),
    case(&[(5, 5), (5, 5)]),
    case(&[(8, 10), (5, 5)]),
    case(&[(7, 10), (5, 5)]),
    case(&[(5, 7), (3, 3)]),
    case(&[(5, 10), (5, 5)]),
    case(&[(1, 4), (4, 4)]),
    case(&[(1, 10), (2, 2)]),
    case(&[(0, 5), (5, 5)]),
    case(&[(0, 5), (1, 5)]),
    case(&[(0, 5), (0, 5)]),
    case(&[(0, 2), (0, 6)]),
    case(&[(0, 1), (0, 1), (0, 1)]),
    case(&[(1, 4), (1, 4)]),
    case(&[(2, 4), (2, 4)]),
    case(&[(1, 5), (3, 5)]),
    case(&[(1, 20), (13, 20)]),
    case(&[(3, 5), (1, 5)]),
    case(&[(1, 4), (1, 4), (4, 4)]),
    case(&[(1, 4), (1, 4), (1, 5)]),
    case(&[(0, 3), (0, 3), (3, 3)]),
    case(&[(2, 3), (0, 3), (3, 3)]),
    case(&[(1, 3), (1, 3), (1, 3)]),
    case(&[(1, 8), (1, 8), (1, 8), (8, 8)]),
    case(&[(4, 10)]),
    case(&[(5, 10)]),
    case(&[(6, 10)]),
    case(&[(0, 4)]),
    with(&[(0, 4)], 140, 0),
    with(&[(0, 4), (0, 2)], 140, 0),
    with(&[(1, 4), (1, 4)], 140, 0),
    with(&[(1, 10)], 140, 0),
    with(&[(7, 10), (5, 5)], 100, 50),
    with(&[(5, 10), (5, 5)], 200, 50),
    with(&[(1, 10), (5, 5)], 1_000, 50),
    with(&[(3, 10), (3, 10)], 100, 30),
    with(&[(3, 10), (3, 10)], 100, 31),
    with(&[(9, 10)], 100, 100),
    with(&[(2, 10), (4, 10)], 140, 25),
];

/// Returns a service of these endpoints, `(priority, weight, part)`, with an address for each.
pub(super) fn service_of(
    traffic: Traffic,
    balance: Balance,
    endpoints: &[(u8, u32, u8)],
    before: Option<&Snapshot>,
) -> (Snapshot, Arc<Service>) {
    let listed: String = (1..=endpoints.len())
        .map(|index| format!("  - {{ address: 10.0.{}.{}:80 }}\n", index / 256, index % 256))
        .collect();
    let text = format!(
        "listeners:\n- address: 127.0.0.1:0\nservices:\n- host: a.example\n  balance: {balance}\n  endpoints:\n{listed}"
    );
    let mut settings = crate::config::parse(&text, Path::new("test.yaml")).unwrap();
    let service = Arc::make_mut(&mut settings.live.services[0]);
    service.traffic = Some(Arc::new(traffic));
    for (endpoint, (priority, weight, part)) in service.endpoints.iter_mut().zip(endpoints) {
        (endpoint.priority, endpoint.weight, endpoint.part) = (*priority, *weight, *part);
    }
    let tables = Snapshot::compile(settings.live, &Resolved::new(), before, &|_| false);
    let service = Arc::clone(tables.services().next().unwrap());
    (tables, service)
}

/// Returns the service of a case.
pub(super) fn of_case(case: &Case, balance: Balance) -> Arc<Service> {
    let mut endpoints = Vec::new();
    for (priority, (_, all)) in (0_u8..).zip(case.priorities) {
        endpoints.extend((0..*all).map(|_| (priority, 1, 0)));
    }
    let panic = (case.panic > 0).then_some(case.panic);
    let traffic = Traffic { overprovisioning: case.overprovisioning, panic, ..Traffic::default() };
    let (_, service) = service_of(traffic, balance, &endpoints, None);
    let mut left = service.endpoints.iter();
    for (healthy, all) in case.priorities {
        for endpoint in left.by_ref().take(*all).skip(*healthy) {
            assert!(endpoint.state.health.eject(0, &FOR_EVER, None, Cause::Connects));
        }
    }
    service
}

/// Returns the share of first attempts that each endpoint of a service gets, in its order.
pub(super) fn shares_of(service: &Service, picks: usize) -> Vec<f64> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut counts = vec![0_usize; service.endpoints.len()];
    for turn in 0..picks {
        let source = IpAddr::from(u32::try_from(turn).unwrap().to_be_bytes());
        let picked = pick(service, &Choice { turn, source, ..NOBODY }, &mut random);
        let place = picked.and_then(|picked| {
            service.endpoints.iter().position(|endpoint| endpoint.address == picked.address)
        });
        if let Some(place) = place {
            counts[place] += 1;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    counts.into_iter().map(|count| count as f64 / picks as f64).collect()
}

/// Returns the share of each priority of a case.
pub(super) fn by_priority(case: &Case, shares: &[f64]) -> Vec<f64> {
    let mut left = shares.iter();
    case.priorities.iter().map(|(_, all)| left.by_ref().take(*all).sum()).collect()
}
