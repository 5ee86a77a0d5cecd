//! Failures that users of other systems have reported, as they met them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use isthmus_tests::cluster::outbound;
use isthmus_tests::log::Line;
use isthmus_tests::netns::Star;
use isthmus_tests::wait::{until, within};
use isthmus_tests::workload::Caller;
use isthmus_tests::{figure, skip};

use crate::fault::{Fault, nft};
use crate::outage::{failed, moves, pace, share};
use crate::steady::Steady;
use crate::world::{EAST, NORTH, Sites, WEST, door, host};

const SHOP: &str = "shop";
/// Time in which agents notice that a peer is silent.
const NOTICED: Duration = Duration::from_secs(60);
/// The time of calls that must go on.
const CALM: Duration = Duration::from_secs(2);

/// Whether east serves a good part of the latest calls that began after a time.
fn east_serves(caller: &Steady, after: Instant) -> bool {
    let latest = caller.latest(after);
    latest.len() >= 10 && share(&latest, "east") >= 0.25
}

/// Sites of which east and north have a shop, and its caller; east serves.
fn shop_is_called() -> Result<(Sites, Steady), String> {
    let mut sites = Sites::start(&[])?;
    sites.deploy(SHOP, &[EAST, NORTH]);
    sites.until_known(SHOP, &[EAST, NORTH]);
    let (caller, start) = (sites.call(SHOP, pace(1)), Instant::now());
    until("east serves", || east_serves(&caller, start));
    Ok((sites, caller))
}

fn of_shop(line: &Line) -> bool {
    line.text("sni") == host(SHOP)
}

/// consul#9811: each new connection waited for the dead gateway.
#[test]
fn gateway_behind_a_black_hole_delays_only_the_first_connections() {
    let (mut sites, caller) = match shop_is_called() {
        Ok(all) => all,
        Err(why) => skip!("{why}"),
    };
    Fault::NothingArrives.inject(&mut sites, SHOP, EAST);
    let begun = Instant::now();
    let tried_twice = |line: &Line| of_shop(line) && line.number("attempts") > 1;
    let log = sites.gateway_of_callers().log().clone();
    until("a call has moved", || log.count(tried_twice) > 0);
    until("calls that began before are through", || {
        let old = caller.since(begun);
        old.len() >= 1000
    });
    let all = || log.count(of_shop);
    let (before, begun_later) = ([all(), log.count(tried_twice)], Instant::now());
    until("a thousand later calls have ended", || caller.since(begun_later).len() >= 1000);
    let (later, waited) = (all() - before[0], log.count(tried_twice) - before[1]);
    let failed = failed(&caller.end(), begun);
    figure!("of {later} later calls {waited} tried the dead gateway first; {} failed", failed.len());
    assert!(failed.is_empty(), "{failed:#?}");
    // Now and then one tries whether the gateway is back.
    assert!(waited * 50 <= later, "{waited} of {later}");
}

/// karmada#6258: a cluster whose agents were cut off lost its traffic, and had it twice when they were back.
#[test]
fn agents_that_are_cut_off_move_no_traffic() {
    let (mut sites, caller) = match shop_is_called() {
        Ok(all) => all,
        Err(why) => skip!("{why}"),
    };

    let west = Star::address(WEST + 1);
    let agents = "tcp dport 15012 reject with tcp reset;";
    nft(
        &sites,
        EAST,
        &format!(
            "table inet agents {{\n\
         chain input {{ type filter hook input priority -10; ip saddr {west} {agents} }}\n\
         chain output {{ type filter hook output priority -10; ip daddr {west} {agents} }}\n}}"
        ),
    );
    let is_connected = |sites: &Sites| sites.clusters[WEST].status().peers["east"].connected;
    assert!(within(NOTICED, || !is_connected(&sites)), "west's agent has not noticed");
    let cut_off = Instant::now();
    thread::sleep(CALM);
    until("east serves although the agents are cut off", || east_serves(&caller, cut_off));

    Fault::Partition.inject(&mut sites, SHOP, EAST);
    let begun = Instant::now();
    until("calls have moved", || {
        let latest = caller.latest(begun);
        latest.len() >= 10 && share(&latest, "north") == 1.0
    });
    thread::sleep(CALM);
    nft(&sites, EAST, "delete table inet agents");
    Fault::Partition.mend(&mut sites, SHOP, EAST);
    let mended = Instant::now();
    until("the agents are back", || is_connected(&sites));
    until("east serves again", || east_serves(&caller, mended));
    thread::sleep(CALM);
    let ways = sites.ways(SHOP);
    let calls = caller.end();
    let (failed, moves) = (failed(&calls, begun), moves(&calls, "east"));
    figure!("{} calls, {} failed, {moves} moves; endpoints afterwards: {ways:?}", calls.len(), failed.len());
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(moves <= 2, "{moves} moves");
    assert_eq!(ways.iter().collect::<BTreeSet<_>>().len(), ways.len(), "{ways:?}");
}

/// istio#40709: a request between two clusters that are both without an endpoint went to and fro.
#[test]
fn service_without_an_endpoint_at_two_sites_is_refused_after_one_hop() {
    let mut sites = match Sites::start(&[]) {
        Ok(sites) => sites,
        Err(why) => skip!("{why}"),
    };
    sites.deploy(SHOP, &[EAST, WEST]);
    sites.until_known(SHOP, &[EAST, WEST]);
    let caller = Caller::in_cluster(&sites.clusters[WEST]);
    let out = outbound(sites.gateway_of_callers());
    until("a call is served", || caller.call(out, &host(SHOP)).is_ok());
    let hops = |sites: &Sites| -> Vec<Line> {
        let east = sites.gateways.iter().filter(|((site, _), _)| *site == EAST);
        east.flat_map(|(_, gateway)| gateway.log().lines()).filter(of_shop).collect()
    };
    let before = hops(&sites).len();
    let own: SocketAddr = sites.backend(SHOP, EAST).address();
    sites.backend(SHOP, WEST).kill();
    sites.backend(SHOP, EAST).kill();
    let why = caller.call(out, &host(SHOP)).unwrap_err();
    until("the hop is logged", || hops(&sites).len() > before);
    let line = sites
        .gateway_of_callers()
        .log()
        .wait("the refusal", |line| of_shop(line) && line.number("attempts") > 1);
    let hops = hops(&sites).split_off(before);
    figure!("refused: {why}; {} hops to {}", hops.len(), door(EAST));
    // Each of east's two gateways may be asked once, and asks nobody but its own endpoint.
    assert!(hops.len() <= 2, "{hops:#?}");
    assert!(
        hops.iter().all(|hop| [own.to_string().as_str(), ""].contains(&hop.text("endpoint"))),
        "{hops:#?}"
    );
    assert_ne!(line.reason(), "loop", "{line:?}");
    let back = sites.gateway_of_callers().log().count(|line| line.text("listener") == "east-west");
    assert_eq!(back, 0, "nothing came back to west");
}
