//! Asks endpoints that rejected clients' hellos or could not be reached by a ClientHello of the gateway's own, a few at
//! once. An endpoint that answers is no longer demoted; one that does not is tried last, and ejected after repeated
//! failures. Connections queue the endpoints.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use isthmus_model::services::Probe;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::question::{Patience, Question};
use crate::control::Control;
use crate::demotion::Outcome;
use crate::dial::patience;
use crate::health::{Suspect, Why};
use crate::metrics::add;
use crate::socket;

/// Own hellos under way at once.
pub(crate) const AT_ONCE: u16 = 8;
/// Pause after an own hello, before its permit is released.
const PACE: Duration = Duration::from_millis(10);
/// Maximum number of endpoints watched at once.
const WATCHED: usize = 1_024;
/// Interval between own hellos to one endpoint.
const EVERY: Duration = Duration::from_secs(3);
/// Time limit for an endpoint's answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Consecutive failures before the endpoint is ejected.
const FAILURES: u32 = 3;

/// Checks queued endpoints while the gateway runs.
pub(crate) async fn run(control: Arc<Control>) -> io::Result<()> {
    let Some(mut suspects) = control.process.health.suspects.taker() else { return Ok(()) };
    let turns = Arc::new(Semaphore::new(AT_ONCE.into()));
    let mut watches = JoinSet::new();
    loop {
        tokio::select! {
            Some(suspect) = suspects.recv() => {
                let watch = Watch { suspect, control: Arc::clone(&control), fails: false, has_ejected: false };
                if watches.len() < WATCHED {
                    watches.spawn(watch.run(Arc::clone(&turns)));
                } else {
                    control.process.metrics.checked(Outcome::Unasked);
                }
            }
            Some(_ended) = watches.join_next() => {}
        }
    }
}

/// Watches one endpoint until it answers or is removed from the tables.
struct Watch {
    suspect: Suspect,
    control: Arc<Control>,
    /// Its last own hello failed.
    fails: bool,
    has_ejected: bool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.set_failing(false);
        if let Some(endpoint) = self.suspect.endpoint.upgrade() {
            endpoint.demotion().end_check(socket::now());
        }
    }
}

impl Watch {
    async fn run(mut self, turns: Arc<Semaphore>) {
        loop {
            let Ok(turn) = turns.acquire().await else { return };
            let Some((hello, patience)) = self.next_hello() else { return };
            while !self.control.process.health.rate.take(socket::now()) {
                sleep(PACE).await;
            }
            let outcome = hello.ask(patience, &self.control.process).await;
            self.note(outcome);
            sleep(PACE).await;
            drop(turn);
            if !self.fails {
                return;
            }
            sleep(EVERY).await;
        }
    }

    /// Builds the next hello; the tables may have changed since the last one.
    fn next_hello(&self) -> Option<(Question, Patience)> {
        let tables = self.control.process.tables.load();
        let _still_wanted = tables.live.upstream.demotion?;
        let (service, endpoint) = self.suspect.find(&tables)?;
        let connect = patience(endpoint, service.rules.timeouts.connect);
        let patience = Patience { connect, whole: connect.saturating_add(ANSWER) };
        Some((Question::new(service, endpoint, &Probe::Tls)?, patience))
    }

    fn note(&mut self, outcome: Outcome) {
        let process = Arc::clone(&self.control.process);
        process.metrics.checked(outcome);
        let tables = process.tables.load();
        let Some((service, endpoint)) = self.suspect.find(&tables) else {
            self.set_failing(false);
            return;
        };
        let now = socket::now();
        let failures = endpoint.state.demotion().checked(outcome, now);
        let (service_name, address) = (service.name(), endpoint.address);
        if self.set_failing(failures > 0 && outcome != Outcome::Alerted) {
            let outcome = outcome.word();
            if self.fails {
                tracing::warn!(service = %service_name, endpoint = %address, outcome, "endpoint does not answer the gateway's own ClientHello; trying it last until it does");
            } else {
                tracing::info!(service = %service_name, endpoint = %address, outcome, "endpoint is no longer tried last");
            }
        }
        let rule = &tables.live.upstream.ejection;
        if outcome == Outcome::Answered && self.has_ejected {
            endpoint.state.health.readmit(now);
            process.health.regained(service, endpoint);
        } else if failures >= FAILURES && service.eject(endpoint, now, rule) {
            self.has_ejected = true;
            add(&process.metrics.own_ejections, 1);
            process.health.lost(service, endpoint, Why::Probes(Probe::Tls.word(), outcome));
        }
    }

    /// Sets the state; true if it changed.
    fn set_failing(&mut self, fails: bool) -> bool {
        let failing = &self.control.process.health.suspects.failing;
        match (self.fails, fails) {
            (false, true) => failing.fetch_add(1, Relaxed),
            (true, false) => failing.fetch_sub(1, Relaxed),
            _ => return false,
        };
        self.fails = fails;
        true
    }
}
