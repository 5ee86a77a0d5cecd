//! Gateways, links and whole sites fail: the site in use, from which calls move to another site, or to the own endpoints.

use isthmus_tests::skip;

use crate::fault::Fault;
use crate::outage::{Outage, endure};
use crate::world::{EAST, NORTH, Sites, WEST};

/// Remote endpoints go before the own ones.
const REMOTE_FIRST: (&str, &str) =
    ("traffic", "[{ hosts: ['*.bookinfo.svc.cluster.local'], affinity: remote }]");

/// East fails; north is there, too.
#[track_caller]
fn fail(outage: &Outage) {
    match Sites::start(&[]) {
        Ok(sites) => endure(sites, std::slice::from_ref(outage), &[EAST, NORTH]),
        Err(why) => skip!("{why}"),
    }
}

/// East fails; only west's own endpoint is there, too.
#[track_caller]
fn fail_to_local(fault: Fault) {
    match Sites::start(&[REMOTE_FIRST]) {
        Ok(sites) => endure(sites, &[Outage::new(fault, EAST)], &[EAST, WEST]),
        Err(why) => skip!("{why}"),
    }
}

#[test]
fn gateway_dies_and_the_other_one_of_its_site_serves() {
    fail(&Outage { moves: 0, ..Outage::new(Fault::OneGateway, EAST) });
}

#[test]
fn all_gateways_of_a_site_die_and_calls_move_to_another_site_and_back() {
    fail(&Outage::new(Fault::Gateways, EAST));
}

#[test]
fn link_of_a_site_is_cut_and_calls_move_to_another_site_and_back() {
    fail(&Outage::new(Fault::Partition, EAST));
}

#[test]
fn nothing_arrives_at_a_site_and_calls_move_to_another_site_and_back() {
    fail(&Outage::new(Fault::NothingArrives, EAST));
}

#[test]
fn nothing_returns_from_a_site_and_calls_move_to_another_site_and_back() {
    fail(&Outage::new(Fault::NothingReturns, EAST));
}

#[test]
fn site_dies_and_calls_move_to_another_site_and_back() {
    fail(&Outage::new(Fault::Site, EAST));
}

#[test]
fn slow_gateways_of_a_site_lose_no_call() {
    fail(&Outage::new(Fault::SlowGateways, EAST));
}

#[test]
fn all_gateways_of_the_preferred_site_die_and_calls_move_to_local_endpoints_and_back() {
    fail_to_local(Fault::Gateways);
}

#[test]
fn link_of_the_preferred_site_is_cut_and_calls_move_to_local_endpoints_and_back() {
    fail_to_local(Fault::Partition);
}

#[test]
fn preferred_site_dies_and_calls_move_to_local_endpoints_and_back() {
    fail_to_local(Fault::Site);
}
