//! Splits: exact, sticky where asked, and without a failed call while another part has a healthy endpoint.

use super::assignments::{FOR_EVER, service_of, shares_of};
use super::*;
use crate::priorities::UNLISTED;
use isthmus_model::Labels;
use isthmus_model::traffic::{SplitPart, SplitTo, Traffic};

fn part(version: &str, weight: u16) -> SplitPart {
    let labels = Labels::new([("version", version)]).unwrap();
    SplitPart { to: SplitTo::Labels(labels), weight, abort_if: None }
}

fn split(weights: &[u16]) -> Traffic {
    let parts = weights.iter().enumerate().map(|(index, weight)| part(&format!("v{index}"), *weight));
    Traffic { split: parts.collect(), ..Traffic::default() }
}

/// Two endpoints for each part.
fn pairs(parts: &[u8]) -> Vec<(u8, u32, u8)> {
    parts.iter().flat_map(|part| [(0, 1, *part), (0, 1, *part)]).collect()
}

fn by_part(service: &Service, picks: usize) -> Vec<f64> {
    let shares = shares_of(service, picks);
    shares.chunks(2).map(|two| two.iter().sum()).collect()
}

fn assert_near(found: &[f64], expected: &[f64], within: f64) {
    assert_eq!(found.len(), expected.len());
    for (one, other) in found.iter().zip(expected) {
        assert!((one - other).abs() <= within, "{found:?}, not {expected:?}");
    }
}

fn eject(service: &Service, places: std::ops::Range<usize>) {
    for endpoint in &service.endpoints[places] {
        assert!(endpoint.state.health.eject(0, &FOR_EVER, None, Cause::Connects));
    }
}

#[test]
fn split_is_exact() {
    for balance in [Balance::RoundRobin, Balance::Random, Balance::LeastConnections] {
        let (_, service) = service_of(split(&[90, 10]), balance, &pairs(&[0, 1]), None);
        assert_near(&by_part(&service, 10_000), &[0.9, 0.1], 1e-9);
    }
    let (_, service) = service_of(split(&[997, 3]), Balance::RoundRobin, &pairs(&[0, 1]), None);
    assert_near(&by_part(&service, 10_000), &[0.997, 0.003], 1e-9);
    assert_near(&shares_of(&service, 10_000), &[0.4985, 0.4985, 0.0015, 0.0015], 1e-9);
}

#[test]
fn split_part_without_healthy_endpoint_falls_to_others_in_proportion() {
    let (_, service) = service_of(split(&[50, 30, 20]), Balance::RoundRobin, &pairs(&[0, 1, 2]), None);
    eject(&service, 0..2);
    assert_near(&by_part(&service, 10_000), &[0.0, 0.6, 0.4], 0.001);
    eject(&service, 2..4);
    let healthy = Choice { now: 1_000, ..NOBODY };
    let mut random = fastrand::Rng::with_seed(7);
    for turn in 0..100 {
        let picked = pick(&service, &Choice { turn, ..healthy }, &mut random).unwrap();
        assert!(picked.state.healthy(healthy.now), "turn {turn}");
    }
}

#[test]
fn split_uses_unlisted_endpoints_last_and_weight_zero_never() {
    let (_, service) = service_of(split(&[1, 0]), Balance::RoundRobin, &pairs(&[0, 1, UNLISTED]), None);
    assert_near(&by_part(&service, 100), &[1.0, 0.0, 0.0], 1e-9);
    eject(&service, 0..2);
    let mut random = fastrand::Rng::with_seed(7);
    let order = order(&service, &Choice { now: 1_000, ..NOBODY }, 9, &mut random);
    let parts: Vec<u8> = order.iter().map(|endpoint| endpoint.place().0).collect();
    assert_eq!(parts, [UNLISTED, UNLISTED, 0, 0], "the part without weight is never used");
}

#[test]
fn split_of_weight_zero_parts_alone_refuses_its_name() {
    let (_, service) = service_of(split(&[0, 0]), Balance::RoundRobin, &pairs(&[0, 1]), None);
    assert!(pick(&service, &NOBODY, &mut fastrand::Rng::with_seed(7)).is_none());
}

#[test]
fn sticky_source_stays_and_an_edit_moves_the_difference_alone() {
    let sticky = |weights| Traffic { sticky: true, ..split(weights) };
    let (tables, before) = service_of(sticky(&[90, 10]), Balance::RoundRobin, &pairs(&[0, 1]), None);
    let (_, after) = service_of(sticky(&[80, 20]), Balance::RoundRobin, &pairs(&[0, 1]), Some(&tables));
    let mut random = fastrand::Rng::with_seed(7);
    let mut part_of = |service: &Service, source: u32, turn| {
        let choice = Choice { source: std::net::Ipv4Addr::from(source).into(), turn, ..NOBODY };
        pick(service, &choice, &mut random).unwrap().place().0
    };
    let mut moved = 0;
    for source in 0..10_000 {
        let old = part_of(&before, source, 0);
        assert!((1..10).all(|turn| part_of(&before, source, turn) == old), "source {source} stays");
        let new = part_of(&after, source, 0);
        assert!(new >= old, "source {source} moved away from the part that grew");
        moved += u32::from(new != old);
    }
    assert!((850..1_150).contains(&moved), "{moved} of 10000 moved, not about 1000");
}

fn guarded(weights: [u16; 2]) -> Traffic {
    let mut traffic = split(&weights);
    traffic.split[1].abort_if = Some(5);
    traffic
}

fn record(service: &Service, failures: usize, samples: usize) -> bool {
    let canary = &service.endpoints[2];
    let results = (0..samples).map(|sample| service.record(canary, sample < failures, 1_000).is_some());
    results.filter(|is_aborted| *is_aborted).count() > 0
}

#[test]
fn split_part_that_fails_is_taken_out_until_the_split_is_edited() {
    let endpoints = pairs(&[0, 1]);
    let (tables, service) = service_of(guarded([90, 10]), Balance::RoundRobin, &endpoints, None);
    assert!(!record(&service, 5, 100), "5 of 100 is not more than 5 %");
    assert_near(&by_part(&service, 1_000), &[0.9, 0.1], 1e-9);
    assert!(record(&service, 1, 1), "6 of 101");
    assert!(!record(&service, 9, 9), "told once");
    assert_near(&by_part(&service, 1_000), &[1.0, 0.0], 1e-9);

    let mut more = endpoints.clone();
    more.push((0, 1, 0));
    let (_, other) = service_of(guarded([90, 10]), Balance::RoundRobin, &more, Some(&tables));
    assert_near(&shares_of(&other, 900)[3..], &[0.0, 0.0], 1e-9);
    eject(&other, 0..3);
    let last = pick(&other, &Choice { now: 1_000, ..NOBODY }, &mut fastrand::Rng::with_seed(7)).unwrap();
    assert_eq!(last.place().0, 1, "it serves when nothing else does");

    let (_, edited) = service_of(guarded([80, 20]), Balance::RoundRobin, &endpoints, Some(&tables));
    assert!(edited.split().unwrap().parts().iter().all(|part| !part.is_aborted()));
}
