//! Ten services behind one gateway: one fails, and the others notice nothing (kuma#8297).

use std::thread;
use std::time::{Duration, Instant};

use isthmus_tests::wait::until;
use isthmus_tests::{figure, skip};

use crate::fault::Fault;
use crate::outage::{failed, long, moves, pace, share};
use crate::steady::{Call, Steady};
use crate::world::{EAST, NORTH, Sites};

const SERVICES: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
const SPAN: Duration = Duration::from_secs(5);

/// Whether east serves this share of the latest calls that began after a time.
fn serves(caller: &Steady, after: Instant, right: impl Fn(f64) -> bool) -> bool {
    let calls = caller.latest(after);
    calls.len() >= 10 && right(share(&calls, "east"))
}

fn calls_between<'a>(
    calls: &'a [Call],
    begun: Instant,
    ended: Instant,
) -> impl Iterator<Item = Call> + use<'a> {
    calls.iter().filter(move |call| call.started >= begun && call.started < ended).cloned()
}

#[test]
fn service_that_fails_behind_a_gateway_takes_no_other_with_it() {
    let mut sites = match Sites::start(&[]) {
        Ok(sites) => sites,
        Err(why) => skip!("{why}"),
    };
    for service in SERVICES {
        sites.deploy(service, &[EAST, NORTH]);
    }
    for service in SERVICES {
        sites.until_known(service, &[EAST, NORTH]);
    }
    let callers = SERVICES.map(|service| sites.call(service, pace(SERVICES.len())));
    let start = Instant::now();
    until("both sites serve all", || {
        callers.iter().all(|caller| serves(caller, start, |share| (0.25..=0.9).contains(&share)))
    });
    let [failing, ..] = SERVICES;
    Fault::Refuses.inject(&mut sites, failing, EAST);
    let begun = Instant::now();
    until("the service that fails has moved", || serves(&callers[0], begun, |share| share == 0.0));
    thread::sleep(long().unwrap_or(SPAN));
    let ended = Instant::now();
    Fault::Refuses.mend(&mut sites, failing, EAST);
    until("the service is back", || serves(&callers[0], ended, |share| share >= 0.25));
    for (service, caller) in SERVICES.iter().zip(callers) {
        let calls = caller.end();
        let meanwhile: Vec<_> = calls_between(&calls, begun, ended).collect();
        let (share, moves, failed) =
            (share(&meanwhile, "east"), moves(&calls, "east"), failed(&calls, begun));
        figure!(
            "{service}: {} calls, {} failed; east served {share:.2} meanwhile; {moves} moves",
            calls.len(),
            failed.len()
        );
        assert!(failed.is_empty(), "{service}: {failed:#?}");
        if *service == failing {
            assert!(moves <= 2, "{service}: {moves} moves");
        } else {
            assert!(moves == 0 && share >= 0.25, "{service} left east: {share}, {moves} moves");
        }
    }
}
