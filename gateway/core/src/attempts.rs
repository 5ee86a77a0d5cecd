//! Tracks the attempts of one connection: which endpoint is next, and with which bytes. [`after`] decides what follows a
//! failed one.

mod after;

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::account::Account;
use crate::breakers::UnderWay;
use crate::connect::{Attempt, Earlier};
use crate::dial::patience;
use crate::endpoint::EndpointState;
use crate::hello::Hello;
use crate::leg::{Leg, Speaks};
use crate::memory::Flight;
use crate::originate::Upstream;
use crate::pick::{Choice, Step, pick};
use crate::proxy::{self, ClientTls};
use crate::reason::Reason;
use crate::route::Route;
use crate::session::Session;
use crate::snapshot::{Endpoint, Service, Snapshot};
use crate::socket;
use crate::trial::trial;
use crate::untried::pick_in_untried_priority;
use crate::worker::Worker;

pub(crate) use after::AfterFailure;

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
    /// Other gateways of clusters through which an attempt has failed.
    same_cluster: Vec<SocketAddr>,
    /// Endpoints that rejected the hello; it counts against them only if another endpoint answers the same hello.
    doubted: Vec<Arc<EndpointState>>,
    failed: Option<Reason>,
    /// A second endpoint was tried beside a slow one.
    hedged: bool,
    /// The attempt under way counts against the service's budget.
    retry: Option<UnderWay>,
    since: Instant,
}

impl Attempts {
    pub(crate) fn new(hello: &Hello, flight: Flight, source: IpAddr) -> Attempts {
        Attempts {
            replayable: !hello.early_data && flight.bytes().len() == hello.wire_len,
            flight,
            source,
            turn: None,
            tried: Vec::new(),
            same_cluster: Vec::new(),
            doubted: Vec::new(),
            failed: None,
            hedged: false,
            retry: None,
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

    /// Returns the endpoint of the next attempt: picked from all for as many attempts as the settings allow, then from
    /// each priority that has a healthy endpoint and got no attempt.
    pub(crate) fn next<'t>(
        &self,
        route: &'t Route,
        tables: &Snapshot,
        account: &Account,
        worker: &Worker,
    ) -> Option<&'t Endpoint> {
        self.following((&self.tried, &self.same_cluster), (route, tables), account, worker)
    }

    /// Returns an endpoint that was not tried: a healthy one elsewhere than at the avoided addresses, or else any.
    fn following<'t>(
        &self,
        (tried, avoided): (&[SocketAddr], &[SocketAddr]),
        (route, tables): (&'t Route, &Snapshot),
        account: &Account,
        worker: &Worker,
    ) -> Option<&'t Endpoint> {
        let (service, now) = (&route.service, socket::now());
        let random = &mut fastrand::Rng::new();
        let choice = Choice {
            instance: route.instance.as_ref(),
            side: route.side,
            tried,
            source: self.source,
            identity: account.identities.caller(),
            turn: self.turn.unwrap_or_default(),
            off: worker.process.families.off(now),
            now,
        };
        if tried.is_empty() {
            return trial(service, &choice).or_else(|| pick(service, &choice, random));
        }
        if self.time_left(service).is_zero() {
            return None;
        }
        let attempts = tried.len();
        let mut from = |tried: &[SocketAddr]| {
            let choice = Choice { tried, ..choice };
            if attempts < tables.live.upstream.attempts as usize {
                pick(service, &choice, random)
            } else {
                pick_in_untried_priority(service, &choice, random)
            }
        };
        let elsewhere = (!avoided.is_empty()).then(|| [tried, avoided].concat());
        let healthy = |endpoint: &&Endpoint| endpoint.state.healthy(now);
        elsewhere.and_then(|tried| from(&tried)).filter(healthy).or_else(|| from(tried))
    }

    /// Prefers endpoints elsewhere: the other gateways of a cluster lead to the same endpoints.
    fn avoid_cluster_of(&mut self, step: Step<'_>) {
        self.same_cluster.extend(gateways_beside(step));
    }

    /// Whether no endpoint has been tried.
    pub(crate) fn are_none(&self) -> bool {
        self.tried.is_empty()
    }

    /// Returns why there is no endpoint: the failure of the last one, if any was tried; otherwise that this caller may
    /// use none, if so.
    pub(crate) fn none_left(&self, route: &Route, refusal: Option<Reason>) -> Reason {
        let service = &route.service;
        let serves = |endpoint: &&Endpoint| endpoint.weight > 0 && endpoint.takes(route.side);
        match self.failed.or(refusal) {
            Some(reason) => reason,
            None if service.endpoints.is_empty() && service.leads_back => Reason::Loop,
            None if service.endpoints.iter().filter(serves).any(|one| !service.has_room(one)) => {
                Reason::LimitEndpoint
            }
            None => Reason::NoEndpoint,
        }
    }

    /// Prepares the next attempt. Under memory pressure the hello is dropped once sent and cannot be replayed.
    pub(crate) fn start<'t, 'a>(
        &'a self,
        step: Step<'t>,
        tls: Option<Upstream>,
        client: &Leg,
        account: &Account,
        worker: &Worker,
    ) -> Attempt<'t, 'a> {
        let service = &step.route.service;
        let scarce = worker.process.limits.hellos.is_scarce(step.tables.live.limits.hello_memory);
        let is_passthrough = matches!(client.speaks, Speaks::Passthrough);
        let first = self.flight.bytes();
        let wire = self.wire(step, if tls.is_some() { &[] } else { first }, client, account);
        let patience = patience(step.endpoint, service.rules.timeouts.connect).min(self.time_left(service));
        Attempt {
            attempts: self,
            step,
            sent: match tls {
                Some(_) => 0,
                None if is_passthrough => wire.len(),
                None => first.len(),
            },
            wire,
            tls: tls.map(|tls| (tls, first)),
            patience,
            hedge_after: self.hedge_after(service).filter(|after| *after < patience),
            leg: if is_passthrough { Leg::passthrough } else { Leg::plaintext },
            may_move: is_passthrough && self.replayable && !scarce,
        }
    }

    /// Returns when a second endpoint may be tried, once for each connection. A server without TLS may count a connection
    /// that ends without a byte as a failed login, and block the gateway for it.
    fn hedge_after(&self, service: &Service) -> Option<Duration> {
        if self.hedged || service.ends_tls() { None } else { service.state.connects.time.hedge_after() }
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
}

impl Earlier for Attempts {
    fn beside<'t>(&self, slow: Step<'t>, account: &Account, worker: &Worker) -> Option<&'t Endpoint> {
        let tried = [&self.tried[..], &[slow.endpoint.address]].concat();
        // Where a cluster's link is cut, none of its gateways is reached.
        let avoided = [&self.same_cluster[..], &gateways_beside(slow)].concat();
        let beside = self.following((&tried, &avoided), (slow.route, slow.tables), account, worker);
        beside.filter(|endpoint| endpoint.state.healthy(socket::now()))
    }

    fn time_left(&self, service: &Service) -> Duration {
        service.rules.timeouts.connect_total.saturating_sub(self.since.elapsed())
    }
}

/// Returns the addresses of the cluster's gateways, where the endpoint is one of them.
fn gateways_beside(step: Step<'_>) -> Vec<SocketAddr> {
    let Some(cluster) = step.endpoint.cluster() else { return Vec::new() };
    let alike = step.route.service.endpoints.iter().filter(|one| one.cluster() == Some(cluster));
    alike.map(|endpoint| endpoint.address).collect()
}
