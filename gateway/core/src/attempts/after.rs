//! Decides what follows a failed attempt: another endpoint, this server's answer forwarded as it is, or a refusal.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use super::Attempts;
use crate::account::Account;
use crate::answer::{Failure, Reply, Server};
use crate::connect::Tried;
use crate::demotion::Demotion;
use crate::metrics::add;
use crate::pick::Step;
use crate::reason::Reason;
use crate::snapshot::Endpoint;
use crate::socket::{self, Millis};
use crate::worker::Worker;

/// What follows a failed attempt.
#[derive(Debug)]
pub(crate) enum AfterFailure {
    /// Another endpoint gets the same bytes.
    TryAnother,
    /// The client gets this server's answer.
    Forward(Server),
    /// The client is refused.
    GiveUp(Reason),
}

/// Whether a retry counts against the service's budget.
#[derive(Clone, Copy)]
enum Budget {
    /// Only a retry at an endpoint that is not healthy: the endpoint before has got none of the client's bytes, or has
    /// delivered none.
    ForUnhealthy,
    /// Every retry.
    ForAll,
}

impl Attempts {
    /// Decides what follows a failure.
    pub(crate) fn after(
        &mut self,
        failure: Failure,
        tried: Tried<'_>,
        account: &mut Account,
        worker: &Worker,
    ) -> AfterFailure {
        let step = self.settle(tried, account, worker);
        self.tried.push(step.endpoint.address);
        self.retry = None;
        let on = (&*account, worker);
        match failure {
            Failure::ClientGone => AfterFailure::GiveUp(Reason::ClientGone),
            Failure::Unreached(Reason::LocalResources) => {
                account.unreached(Reason::LocalResources, step);
                AfterFailure::GiveUp(Reason::LocalResources)
            }
            Failure::Unreached(reason) => {
                unreached(reason, step, on);
                self.another_or(reason, Budget::ForUnhealthy, step, on)
            }
            Failure::Refused(reason) => {
                worker.counters.failed(reason);
                self.another_or(reason, Budget::ForUnhealthy, step, on)
            }
            Failure::Undelivered(flight) => {
                self.avoid_cluster_of(step);
                worker.counters.failed(Reason::UpstreamRejected);
                // The gateway's own hello would be answered there: TLS ends before the endpoints.
                demote(step, &Reason::UpstreamRejected, worker, Demotion::unreached);
                self.flight.replace(flight);
                self.another_or(Reason::UpstreamRejected, Budget::ForUnhealthy, step, on)
            }
            Failure::Limited(Reason::LimitEndpoint) => {
                self.another_or(Reason::LimitEndpoint, Budget::ForUnhealthy, step, on)
            }
            Failure::Limited(reason) => AfterFailure::GiveUp(reason),
            Failure::Silent => {
                self.avoid_cluster_of(step);
                worker.counters.failed(Reason::FirstByteTimeout);
                self.doubt(step, Reason::FirstByteTimeout, worker);
                self.another_or(Reason::FirstByteTimeout, Budget::ForAll, step, on)
            }
            Failure::Lost(reason) => {
                worker.counters.failed(reason);
                add(&worker.counters.lost, 1);
                AfterFailure::GiveUp(reason)
            }
            Failure::Rejected(server) => self.after_rejection(server, step, account, worker),
        }
    }

    /// Records that an endpoint has the hello, and perhaps answered it.
    pub(crate) fn reached(&mut self, server: &Server, tried: Tried<'_>, account: &Account, worker: &Worker) {
        let step = self.settle(tried, account, worker);
        if !matches!(server.said, Reply::Bytes(_)) {
            return;
        }
        for doubted in std::mem::take(&mut self.doubted) {
            let endpoints = &step.route.service.endpoints;
            if let Some(endpoint) = endpoints.iter().find(|endpoint| Arc::ptr_eq(&endpoint.state, &doubted)) {
                self.turned_away(Step { endpoint, ..step }, Reason::UpstreamRejected, worker);
            }
        }
    }

    /// Records what a race of two endpoints has shown about the one that does not serve the connection. Returns the other.
    fn settle<'t>(&mut self, tried: Tried<'t>, account: &Account, worker: &Worker) -> Step<'t> {
        self.hedged |= tried.hedged;
        if let Some(beaten) = tried.beaten {
            let step = Step { endpoint: beaten.endpoint, ..tried.step };
            match beaten.failure {
                Some(reason) => unreached(reason, step, (account, worker)),
                None => {
                    demote(step, &"slower than a second endpoint", worker, Demotion::unreached);
                    check(step, worker);
                }
            }
            self.tried.push(beaten.endpoint.address);
        }
        tried.step
    }

    fn after_rejection(
        &mut self,
        server: Server,
        step: Step<'_>,
        account: &mut Account,
        worker: &Worker,
    ) -> AfterFailure {
        self.doubt(step, Reason::UpstreamRejected, worker);
        self.avoid_cluster_of(step);
        let next = self.next(step.route, step.tables, account, worker);
        // Only alerts that say "not here" are moved: another cluster's gateway has passed the hello on to nobody.
        let is_passed_on = |next: &Endpoint| {
            !matches!(server.said, Reply::Bytes(_))
                || step.endpoint.cluster().is_none()
                || next.cluster() == step.endpoint.cluster()
                || !next.state.healthy(socket::now())
        };
        if next.is_some_and(|next| !is_passed_on(next) || account.may_replay(step)) {
            account.replays();
            self.moves(Reason::UpstreamRejected, worker)
        } else {
            account.turned_down(server.said.length());
            AfterFailure::Forward(server)
        }
    }

    /// Tries the endpoint last that took a hello and did not serve it. Without a name for the gateway's own hello, only once
    /// another endpoint has answered the same hello.
    fn doubt(&mut self, step: Step<'_>, reason: Reason, worker: &Worker) {
        if step.route.service.own_name().is_some() {
            self.turned_away(step, reason, worker);
        } else {
            self.doubted.push(Arc::clone(&step.endpoint.state));
        }
    }

    fn turned_away(&self, step: Step<'_>, reason: Reason, worker: &Worker) {
        demote(step, &reason, worker, |demotion, now, length| demotion.turned_away(self.source, now, length));
        check(step, worker);
    }

    fn another_or(
        &mut self,
        reason: Reason,
        budget: Budget,
        step: Step<'_>,
        (account, worker): (&Account, &Worker),
    ) -> AfterFailure {
        let Some(next) = self.next(step.route, step.tables, account, worker) else {
            return AfterFailure::GiveUp(reason);
        };
        let is_free = matches!(budget, Budget::ForUnhealthy) && next.state.healthy(socket::now());
        if !is_free {
            self.retry = step.route.service.state.begin_retry(&step.tables.live.upstream.replay);
            if self.retry.is_none() {
                return AfterFailure::GiveUp(reason);
            }
        }
        self.moves(reason, worker)
    }

    fn moves(&mut self, reason: Reason, worker: &Worker) -> AfterFailure {
        self.failed = Some(reason);
        worker.counters.moved(reason);
        AfterFailure::TryAnother
    }
}

fn unreached(reason: Reason, step: Step<'_>, (account, worker): (&Account, &Worker)) {
    account.unreached(reason, step);
    if !matches!(reason, Reason::Loop | Reason::LocalResources) {
        demote(step, &reason, worker, Demotion::unreached);
        check(step, worker);
    }
}

/// Demotes an endpoint.
fn demote(
    step: Step<'_>,
    reason: &dyn Display,
    worker: &Worker,
    note: impl FnOnce(&Demotion, Millis, Millis) -> bool,
) {
    let Some(length) = demotion(step) else { return };
    let (now, length) = (socket::now(), length.as_millis().try_into().unwrap_or(Millis::MAX));
    if note(step.endpoint.state.demotion(), now, length) {
        let (service, endpoint) = (step.route.service.name(), step.endpoint.address);
        add(&worker.counters.demotions, 1);
        tracing::warn!(%service, %endpoint, %reason, "endpoint demoted; trying it last for a while");
    }
}

/// Returns how long an endpoint is demoted; none: there is no other one, or no demotion.
fn demotion(step: Step<'_>) -> Option<Duration> {
    step.tables.live.upstream.demotion.filter(|_| step.route.service.endpoints.len() > 1)
}

/// Has the gateway's own hello sent to a demoted endpoint. An endpoint without TLS would take it for garbage, and may count
/// it as an error.
fn check(step: Step<'_>, worker: &Worker) {
    let service = &step.route.service;
    if demotion(step).is_some() && !service.ends_tls() {
        worker.process.health.suspects.check(service, step.endpoint, socket::now(), &worker.process.metrics);
    }
}
