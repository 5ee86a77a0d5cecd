//! The attempts of one connection: which endpoints were tried, and what a failed attempt leads to: the
//! next endpoint, this server's answer passed on as it is, or a refusal.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use isthmus_xds::config::services::defaults;
use tokio::net::TcpStream;

use crate::account::Account;
use crate::answer::{Failure, Server};
use crate::connect::Attempt;
use crate::hello::Hello;
use crate::memory::Flight;
use crate::pick::{Choice, Step, pick};
use crate::proxy;
use crate::reason::Reason;
use crate::route::Route;
use crate::snapshot::{Endpoint, Service};
use crate::socket;
use crate::worker::Worker;

/// What was tried for one connection.
#[derive(Debug)]
pub(crate) struct Attempts {
    flight: Flight,
    /// The client has sent nothing that only one server may see.
    replayable: bool,
    tried: Vec<SocketAddr>,
    failed: Option<Reason>,
    since: Instant,
}

/// What a failed attempt leads to.
#[derive(Debug)]
pub(crate) enum Next {
    /// Another endpoint gets the same hello.
    Again,
    /// The client gets this server's answer.
    Take(Server),
    /// The client is refused.
    GiveUp(Reason),
}

impl Attempts {
    pub(crate) fn new(hello: &Hello, flight: Flight) -> Attempts {
        Attempts {
            replayable: !hello.early_data && flight.bytes().len() == hello.wire_len,
            flight,
            tried: Vec::new(),
            failed: None,
            since: Instant::now(),
        }
    }

    pub(crate) fn choice<'a>(&'a self, route: &'a Route, source: IpAddr) -> Choice<'a> {
        Choice {
            instance: route.instance.as_ref(),
            side: route.side,
            tried: &self.tried,
            source,
            turn: route.service.state.next_turn(),
            now: socket::now(),
        }
    }

    /// Why there is no endpoint: what the last one failed with, if any was tried.
    pub(crate) fn none_left(&self, service: &Service) -> Reason {
        match self.failed {
            Some(reason) => reason,
            None if service.endpoints.is_empty() && service.leads_back => Reason::Loop,
            None => Reason::NoEndpoint,
        }
    }

    /// The next attempt. Under memory pressure replays go first: this one's hello is let go once sent.
    pub(crate) fn start<'a>(
        &'a self,
        step: Step<'a>,
        client: &TcpStream,
        account: &Account,
        worker: &Worker,
    ) -> Attempt<'a> {
        let limits = &step.route.service.rules.timeouts;
        let scarce = worker.process.limits.hellos.is_scarce(step.tables.live.limits.hello_memory);
        Attempt {
            step,
            wire: self.wire(step, client, account),
            patience: patience(step.endpoint, limits.connect)
                .min(limits.connect_total.saturating_sub(self.since.elapsed())),
            may_move: self.replayable && !scarce,
        }
    }

    fn wire(&self, step: Step<'_>, client: &TcpStream, account: &Account) -> Cow<'_, [u8]> {
        let hello = self.flight.bytes();
        if !step.route.service.rules.send_proxy {
            return Cow::Borrowed(hello);
        }
        let conn = &account.conn;
        let reached = client.local_addr().map_or(conn.client(), socket::canonical);
        let mut wire = proxy::write(conn.client(), reached, conn.sni.get());
        wire.extend_from_slice(hello);
        Cow::Owned(wire)
    }

    /// What a failure leads to.
    pub(crate) fn after(&mut self, failure: Failure, step: Step<'_>, account: &mut Account) -> Next {
        self.tried.push(step.endpoint.address);
        match failure {
            Failure::ClientGone => Next::GiveUp(Reason::ClientGone),
            Failure::Unreached(reason) => {
                account.unreached(reason, step);
                self.failed = Some(reason);
                let hopeless = matches!(reason, Reason::LocalResources);
                if hopeless || !self.another_is_left(step) { Next::GiveUp(reason) } else { Next::Again }
            }
            Failure::Rejected(server) => {
                self.failed = Some(Reason::UpstreamRejected);
                if self.another_is_left(step) && account.may_replay(step) {
                    Next::Again
                } else {
                    account.turned_down(server.said.length());
                    Next::Take(server)
                }
            }
        }
    }

    fn another_is_left(&self, step: Step<'_>) -> bool {
        let service = &step.route.service;
        self.tried.len() < step.tables.live.upstream.attempts as usize
            && self.since.elapsed() < service.rules.timeouts.connect_total
            && pick(
                service,
                &self.choice(step.route, Ipv4Addr::UNSPECIFIED.into()),
                &mut fastrand::Rng::new(),
            )
            .is_some()
    }
}

/// Another cluster may be far away.
fn patience(endpoint: &Endpoint, connect: Duration) -> Duration {
    if endpoint.cluster().is_some() { connect.max(defaults::CONNECT_ACROSS) } else { connect }
}
