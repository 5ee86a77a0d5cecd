//! Tracks the attempts of one connection and decides what follows a failed one: the next endpoint, this server's
//! answer forwarded as it is, or a refusal.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crate::account::Account;
use crate::answer::{Failure, Reply, Server};
use crate::connect::{Attempt, patience};
use crate::demotion::Demotion;
use crate::endpoint::EndpointState;
use crate::hello::Hello;
use crate::leg::{Leg, Speaks};
use crate::memory::Flight;
use crate::metrics::add;
use crate::originate::Upstream;
use crate::pick::{Choice, Step, pick};
use crate::proxy::{self, ClientTls};
use crate::reason::Reason;
use crate::route::Route;
use crate::session::Session;
use crate::snapshot::Service;
use crate::socket::{self, Millis};
use crate::worker::Worker;

/// The attempts made for one connection.
#[derive(Debug)]
pub(crate) struct Attempts {
    flight: Flight,
    /// The client has sent nothing but a hello that may be replayed.
    replayable: bool,
    source: IpAddr,
    /// Its turn in round robin, once taken.
    turn: Option<usize>,
    tried: Vec<SocketAddr>,
    /// Endpoints that rejected the hello; it counts against them only if another endpoint answers the same hello.
    doubted: Vec<Arc<EndpointState>>,
    failed: Option<Reason>,
    since: Instant,
}

/// What follows a failed attempt.
#[derive(Debug)]
pub(crate) enum AfterFailure {
    /// Another endpoint gets the same hello.
    TryAnother,
    /// The client gets this server's answer.
    Forward(Server),
    /// The client is refused.
    GiveUp(Reason),
}

impl Attempts {
    pub(crate) fn new(hello: &Hello, flight: Flight, source: IpAddr) -> Attempts {
        Attempts {
            replayable: !hello.early_data && flight.bytes().len() == hello.wire_len,
            flight,
            source,
            turn: None,
            tried: Vec::new(),
            doubted: Vec::new(),
            failed: None,
            since: Instant::now(),
        }
    }

    /// Returns the client's first bytes.
    pub(crate) fn flight(&mut self) -> &mut Flight {
        &mut self.flight
    }

    /// Takes the connection's turn once; further attempts continue from it.
    pub(crate) fn take_turn(&mut self, service: &Service) {
        self.turn.get_or_insert_with(|| service.state.next_turn());
    }

    pub(crate) fn choice<'a>(
        &'a self,
        route: &'a Route,
        account: &'a Account,
        worker: &Worker,
    ) -> Choice<'a> {
        let now = socket::now();
        Choice {
            instance: route.instance.as_ref(),
            side: route.side,
            tried: &self.tried,
            source: self.source,
            identity: account.identities.caller(),
            turn: self.turn.unwrap_or_default(),
            off: worker.process.families.off(now),
            now,
        }
    }

    /// Whether no endpoint has been tried.
    pub(crate) fn are_none(&self) -> bool {
        self.tried.is_empty()
    }

    /// Returns why there is no endpoint: the failure of the last one, if any was tried; otherwise that this caller may
    /// use none, if so.
    pub(crate) fn none_left(&self, service: &Service, refusal: Option<Reason>) -> Reason {
        match self.failed.or(refusal) {
            Some(reason) => reason,
            None if service.endpoints.is_empty() && service.leads_back => Reason::Loop,
            None => Reason::NoEndpoint,
        }
    }

    /// Prepares the next attempt. Under memory pressure the hello is dropped once sent and cannot be replayed.
    pub(crate) fn start<'a>(
        &'a self,
        step: Step<'a>,
        tls: Option<Upstream>,
        client: &Leg,
        account: &Account,
        worker: &Worker,
    ) -> Attempt<'a> {
        let limits = &step.route.service.rules.timeouts;
        let scarce = worker.process.limits.hellos.is_scarce(step.tables.live.limits.hello_memory);
        let is_passthrough = matches!(client.speaks, Speaks::Passthrough);
        let first = self.flight.bytes();
        let wire = self.wire(step, if tls.is_some() { &[] } else { first }, client, account);
        Attempt {
            step,
            sent: if is_passthrough { wire.len() } else { first.len() },
            wire,
            tls: tls.map(|tls| (tls, first)),
            patience: patience(step.endpoint, limits.connect)
                .min(limits.connect_total.saturating_sub(self.since.elapsed())),
            leg: if is_passthrough { Leg::passthrough } else { Leg::plaintext },
            may_move: is_passthrough && self.replayable && !scarce,
        }
    }

    /// Returns the first bytes for an endpoint: the client's, behind a PROXY header if the service asks for one.
    fn wire<'a>(&self, step: Step<'_>, first: &'a [u8], client: &Leg, account: &Account) -> Cow<'a, [u8]> {
        if !step.route.service.rules.send_proxy {
            return Cow::Borrowed(first);
        }
        let conn = &account.conn;
        let reached = client.stream.local_addr().map_or(conn.client(), socket::canonical);
        let tls = ClientTls {
            sni: conn.sni.get(),
            identity: account.identities.caller(),
            protocol: client.session().and_then(Session::protocol),
        };
        let mut wire = proxy::write(conn.client(), reached, tls);
        wire.extend_from_slice(first);
        Cow::Owned(wire)
    }

    /// Decides what follows a failure.
    pub(crate) fn after(
        &mut self,
        failure: Failure,
        step: Step<'_>,
        account: &mut Account,
        worker: &Worker,
    ) -> AfterFailure {
        self.tried.push(step.endpoint.address);
        match failure {
            Failure::ClientGone => AfterFailure::GiveUp(Reason::ClientGone),
            Failure::Unreached(reason) => {
                account.unreached(reason, step);
                self.failed = Some(reason);
                match reason {
                    Reason::LocalResources => return AfterFailure::GiveUp(reason),
                    Reason::Loop => {}
                    _ => demote(step, reason, worker, Demotion::unreached),
                }
                self.another_or(reason, step, (account, worker))
            }
            Failure::Refused(reason) => {
                self.failed = Some(reason);
                worker.counters.failed(reason);
                self.another_or(reason, step, (account, worker))
            }
            Failure::Rejected(server) => {
                self.failed = Some(Reason::UpstreamRejected);
                if step.route.service.own_name().is_some() {
                    self.turned_away(step, worker);
                } else {
                    self.doubted.push(Arc::clone(&step.endpoint.state));
                }
                if self.another_is_left(step, account, worker) && account.may_replay(step) {
                    AfterFailure::TryAnother
                } else {
                    account.turned_down(server.said.length());
                    AfterFailure::Forward(server)
                }
            }
        }
    }

    /// Records that an endpoint has the hello, and perhaps answered it.
    pub(crate) fn reached(&mut self, server: &Server, step: Step<'_>, worker: &Worker) {
        if !matches!(server.said, Reply::Bytes(_)) {
            return;
        }
        for doubted in std::mem::take(&mut self.doubted) {
            let endpoints = &step.route.service.endpoints;
            if let Some(endpoint) = endpoints.iter().find(|endpoint| Arc::ptr_eq(&endpoint.state, &doubted)) {
                self.turned_away(Step { endpoint, ..step }, worker);
            }
        }
    }

    fn turned_away(&self, step: Step<'_>, worker: &Worker) {
        demote(step, Reason::UpstreamRejected, worker, |demotion, now, length| {
            demotion.turned_away(self.source, now, length)
        });
    }

    fn another_or(&self, reason: Reason, step: Step<'_>, on: (&Account, &Worker)) -> AfterFailure {
        let is_left = self.another_is_left(step, on.0, on.1);
        if is_left { AfterFailure::TryAnother } else { AfterFailure::GiveUp(reason) }
    }

    fn another_is_left(&self, step: Step<'_>, account: &Account, worker: &Worker) -> bool {
        let service = &step.route.service;
        self.tried.len() < step.tables.live.upstream.attempts as usize
            && self.since.elapsed() < service.rules.timeouts.connect_total
            && pick(service, &self.choice(step.route, account, worker), &mut fastrand::Rng::new()).is_some()
    }
}

/// Demotes an endpoint and queues it for the gateway's own hello. A service's only endpoint is not demoted.
fn demote(
    step: Step<'_>,
    reason: Reason,
    worker: &Worker,
    note: impl FnOnce(&Demotion, Millis, Millis) -> bool,
) {
    let (service, endpoint) = (&step.route.service, step.endpoint);
    let has_others = service.endpoints.len() > 1;
    let Some(length) = step.tables.live.upstream.demotion.filter(|_| has_others) else { return };
    let (now, length) = (socket::now(), length.as_millis().try_into().unwrap_or(Millis::MAX));
    if note(endpoint.state.demotion(), now, length) {
        add(&worker.counters.demotions, 1);
        tracing::warn!(service = %service.name(), endpoint = %endpoint.address, %reason, "endpoint demoted; trying it last for a while");
    }
    // An endpoint without TLS would take a ClientHello for garbage, and may count it as an error.
    if !service.ends_tls() {
        worker.process.suspects.check(service, endpoint, now, &worker.process.metrics);
    }
}
