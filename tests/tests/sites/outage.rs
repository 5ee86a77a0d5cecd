//! Outages under a steady load, and what is asked of each: no failed call, a move, a return, no oscillation.

use std::env;
use std::thread;
use std::time::{Duration, Instant};

use isthmus_tests::figure;
use isthmus_tests::log::Line;
use isthmus_tests::wait::{DEADLINE, quantile, until, within};

use crate::fault::Fault;
use crate::steady::{Call, Outcome, Steady};
use crate::world::{NAMES, Sites};

/// Calls per second, of all services together, where failures last long; and beside other tests.
const RATE: u32 = 500;
const SMALL_RATE: u32 = 200;
/// How long a failure lasts.
const SPAN: Duration = Duration::from_secs(6);
/// Time of calls before the failure, and after the return.
const CALM: Duration = Duration::from_secs(1);
/// Calls are counted by parts of this time.
const BUCKET: Duration = Duration::from_millis(250);

/// How long each failure lasts, if that is asked for.
pub(crate) fn long() -> Option<Duration> {
    env::var("ISTHMUS_SITES_SECONDS").ok().map(|seconds| {
        Duration::from_secs(seconds.parse().expect("ISTHMUS_SITES_SECONDS is a number of seconds"))
    })
}

/// The time between two calls of each of so many services.
pub(crate) fn pace(services: usize) -> Duration {
    let rate = if long().is_some() { RATE } else { SMALL_RATE };
    Duration::from_secs(1) * u32::try_from(services).unwrap() / rate
}

/// A service whose site fails.
#[derive(Debug)]
pub(crate) struct Outage {
    pub(crate) service: String,
    pub(crate) fault: Fault,
    /// The site that fails.
    pub(crate) site: usize,
    /// Moves away from the site and back that are right.
    pub(crate) moves: usize,
}

/// The times of a failure.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// The failure began between these.
    begun: [Instant; 2],
    mended: Instant,
    /// When the site served again, if it did.
    back: Option<Instant>,
}

impl Outage {
    /// A fault at a site: calls move away once, and back once.
    pub(crate) fn new(fault: Fault, site: usize) -> Outage {
        // A flapping endpoint is up as often as it is down, and is not followed each time.
        let flaps = usize::try_from(long().unwrap_or(SPAN).as_secs()).unwrap();
        let moves = if fault == Fault::Flaps { 2 + flaps / 2 } else { 2 };
        Outage { service: fault.name(), fault, site, moves }
    }
}

/// Deploys a service for each outage at these sites, calls all of them, and lets all fail at once.
#[track_caller]
pub(crate) fn endure(mut sites: Sites, outages: &[Outage], deployed: &[usize]) {
    for outage in outages {
        sites.deploy(&outage.service, deployed);
    }
    for outage in outages {
        sites.until_known(&outage.service, deployed);
    }
    let start = Instant::now();
    let callers: Vec<_> =
        outages.iter().map(|outage| sites.call(&outage.service, pace(outages.len()))).collect();
    for (outage, caller) in outages.iter().zip(&callers) {
        until(&format!("{}: {} serves", outage.service, NAMES[outage.site]), || outage.serves(caller, start));
    }
    thread::sleep(CALM);
    let before = Instant::now();
    outages.iter().for_each(|outage| outage.fault.inject(&mut sites, &outage.service, outage.site));
    let begun = [before, Instant::now()];
    let span = long().unwrap_or(SPAN);
    if let [outage] = outages {
        outage.fault.last(&mut sites, &outage.service, outage.site, span);
    } else {
        thread::sleep(span);
    }
    outages.iter().for_each(|outage| outage.fault.mend(&mut sites, &outage.service, outage.site));
    let mended = Instant::now();
    let mut backs = Vec::new();
    for (outage, caller) in outages.iter().zip(&callers) {
        let rest = DEADLINE.saturating_sub(mended.elapsed());
        backs.push(within(rest, || outage.serves(caller, mended)).then(Instant::now));
    }
    thread::sleep(CALM);
    let ended: Vec<_> = callers.into_iter().map(Steady::end).collect();
    let wrong: Vec<_> = outages
        .iter()
        .zip(ended)
        .zip(backs)
        .flat_map(|((outage, calls), back)| outage.judge(&calls, Times { begun, mended, back }))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}\nas west's gateway saw it: {:#?}", unserved(&sites));
}

/// Some of west's connections that did not end as calls do.
fn unserved(sites: &Sites) -> Vec<Line> {
    let is_call = |line: &Line| matches!(line.reason(), "client_closed" | "server_closed");
    let lines = sites.gateway_of_callers().log().lines();
    lines.into_iter().filter(|line| !is_call(line)).take(20).collect()
}

/// The share of calls that a site has served.
#[expect(clippy::cast_precision_loss, reason = "a few thousand calls")]
pub(crate) fn share(calls: &[Call], site: &str) -> f64 {
    let served =
        calls.iter().filter(|call| matches!(&call.outcome, Outcome::Served(by) if by == site)).count();
    served as f64 / calls.len().max(1) as f64
}

/// How often a site began or ceased to serve, in calls in the order of their beginnings.
pub(crate) fn moves(calls: &[Call], site: &str) -> usize {
    let shares = shares(calls, site);
    shares.windows(2).filter(|pair| (pair[0] >= 0.1) != (pair[1] >= 0.1)).count()
}

/// The share of a site in each part of the time.
fn shares(calls: &[Call], site: &str) -> Vec<f64> {
    let Some(first) = calls.first() else { return Vec::new() };
    let bucket = |call: &Call| (call.started - first.started).as_millis() / BUCKET.as_millis();
    let buckets = calls.chunk_by(|one, next| bucket(one) == bucket(next));
    buckets.filter(|calls| calls.len() >= 4).map(|calls| share(calls, site)).collect()
}

/// The calls that failed although the failure excuses none of them: it excuses those that it cut after an endpoint's
/// first byte.
pub(crate) fn failed(calls: &[Call], begun: Instant) -> Vec<String> {
    calls
        .iter()
        .filter_map(|call| match &call.outcome {
            Outcome::Served(_) => None,
            Outcome::Broken(_) if call.started <= begun => None,
            Outcome::Failed(why) | Outcome::Broken(why) => {
                let after = call.started.saturating_duration_since(begun);
                Some(format!("begun {after:?} after the failure, {:?} long: {why}", call.took))
            }
        })
        .collect()
}

impl Outage {
    /// Whether its site serves a good part of the latest calls that began after a time.
    fn serves(&self, caller: &Steady, after: Instant) -> bool {
        let latest = caller.latest(after);
        latest.len() >= 10 && share(&latest, NAMES[self.site]) >= 0.25
    }

    /// Prints what happened, and returns what is wrong with it.
    fn judge(&self, calls: &[Call], times: Times) -> Option<String> {
        let site = NAMES[self.site];
        let failed = failed(calls, times.begun[1]);
        let moves = moves(calls, site);
        self.show(calls, times, failed.len(), moves);
        let some = &failed[..failed.len().min(5)];
        if !failed.is_empty() {
            return Some(format!("{}: {} calls failed: {some:#?}", self.service, failed.len()));
        }
        // Once slow, gateways are preferred again only after they have been near for a while.
        if times.back.is_none() && self.fault != Fault::SlowGateways {
            return Some(format!(
                "{}: {site} does not serve {DEADLINE:?} after the failure has ended",
                self.service
            ));
        }
        let shares =
            || shares(calls, site).iter().map(|share| format!("{share:.2}")).collect::<Vec<_>>().join(" ");
        (moves > self.moves)
            .then(|| format!("{}: {moves} moves, at most {}: {}", self.service, self.moves, shares()))
    }

    fn show(&self, calls: &[Call], times: Times, failed: usize, moves: usize) {
        let Times { begun: [begun, injected], mended, back } = times;
        let cut = calls.iter().filter(|call| matches!(call.outcome, Outcome::Broken(_))).count();
        let is_elsewhere =
            |call: &&Call| matches!(&call.outcome, Outcome::Served(by) if by != NAMES[self.site]);
        let during: Vec<_> =
            calls.iter().filter(|call| call.started >= begun && call.started < mended).cloned().collect();
        let moved = during.iter().filter(is_elsewhere).map(|call| call.started + call.took - begun).min();
        let mut took: Vec<_> = during.iter().map(|call| call.took).collect();
        let [half, most, all] = match took.is_empty() {
            true => [Duration::ZERO; 3],
            false => [0.5, 0.99, 1.0].map(|part| quantile(&mut took, part)),
        };
        figure!(
            "{} at {}: {} calls, {failed} failed, {cut} cut after their first byte; injected in {:?}, first call elsewhere \
             after {moved:?}; calls meanwhile: p50 {half:?}, p99 {most:?}, longest {all:?}; back {:?} after the end; {moves} \
             moves",
            self.service,
            NAMES[self.site],
            calls.len(),
            injected - begun,
            back.map(|back| back - mended),
        );
    }
}
