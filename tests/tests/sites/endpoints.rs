//! Endpoints fail in every way: the own ones, from which calls move to other sites, and those of the site in use.

use isthmus_tests::skip;

use crate::fault::Fault;
use crate::outage::{Outage, endure, long};
use crate::world::{EAST, NORTH, Sites, WEST};

const AT_ONCE: [Fault; 5] = [Fault::Refuses, Fault::BlackHole, Fault::Closes, Fault::Resets, Fault::Hangs];

/// Lets the endpoints of a site fail: of as many services at once, or each in a world of its own.
#[track_caller]
fn fail(faults: &[Fault], site: usize, deployed: &[usize]) -> Result<(), String> {
    let outages: Vec<_> = faults.iter().map(|fault| Outage::new(*fault, site)).collect();
    let together = if long().is_some() { 1 } else { outages.len() };
    for outages in outages.chunks(together) {
        endure(Sites::start(&[])?, outages, deployed);
    }
    Ok(())
}

#[test]
fn local_endpoints_fail_and_calls_move_to_other_sites_and_back() {
    if let Err(why) = fail(&AT_ONCE, WEST, &[WEST, EAST, NORTH]) {
        skip!("{why}");
    }
}

#[test]
fn remote_endpoints_fail_and_calls_move_to_another_site_and_back() {
    if let Err(why) = fail(&AT_ONCE, EAST, &[EAST, NORTH]) {
        skip!("{why}");
    }
}

#[test]
fn local_endpoint_that_flaps_is_not_followed_each_time() {
    if let Err(why) = fail(&[Fault::Flaps], WEST, &[WEST, EAST, NORTH]) {
        skip!("{why}");
    }
}

#[test]
fn remote_endpoint_that_flaps_is_not_followed_each_time() {
    if let Err(why) = fail(&[Fault::Flaps], EAST, &[EAST, NORTH]) {
        skip!("{why}");
    }
}
