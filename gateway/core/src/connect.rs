//! Makes one attempt to reach one endpoint: connects, sends the client's first flight and, while the connection can
//! still move to another endpoint, waits for the server's first bytes. `conn` chooses the endpoint and decides on
//! further attempts.

mod hedge;

use std::borrow::Cow;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::account::Account;
use crate::answer::{Failure, Reply, Server, answer, in_time, reset_of};
use crate::dial::send_rest;
use crate::leg::Leg;
use crate::originate::{self, Upstream};
use crate::pick::Step;
use crate::reason::Reason;
use crate::snapshot::{Endpoint, Service};
use crate::worker::Worker;
use hedge::dial_hedged;

/// One attempt.
#[derive(Debug)]
pub(crate) struct Attempt<'t, 'a> {
    /// The attempts before it.
    pub(crate) attempts: &'a dyn Earlier,
    /// The endpoint.
    pub(crate) step: Step<'t>,
    /// The bytes sent first.
    pub(crate) wire: Cow<'a, [u8]>,
    /// How many of the client's bytes are among them.
    pub(crate) sent: usize,
    /// TLS to begin with the endpoint, and the application's first bytes for it.
    pub(crate) tls: Option<(Upstream, &'a [u8])>,
    /// How long connecting may take.
    pub(crate) patience: Duration,
    /// When a second endpoint is tried beside this one, if it is not connected by then.
    pub(crate) hedge_after: Option<Duration>,
    /// The leg that the endpoint is, without TLS of the gateway's own.
    pub(crate) leg: fn(TcpStream) -> Leg,
    /// Whether the connection can still move to another endpoint afterwards.
    pub(crate) may_move: bool,
}

/// What the attempts before this one leave to it.
pub(crate) trait Earlier: std::fmt::Debug + Sync {
    /// Returns a healthy endpoint to try beside a slow one.
    fn beside<'t>(&self, slow: Step<'t>, account: &Account, worker: &Worker) -> Option<&'t Endpoint>;

    /// Returns what is left of the time for all attempts.
    fn time_left(&self, service: &Service) -> Duration;
}

/// The endpoints that one attempt has tried.
#[derive(Debug)]
pub(crate) struct Tried<'t> {
    /// The endpoint that its result is about.
    pub(crate) step: Step<'t>,
    /// A second endpoint was tried beside a slow one.
    pub(crate) hedged: bool,
    /// The one of the two that does not serve the connection, unless it had no time to.
    pub(crate) beaten: Option<Beaten<'t>>,
}

/// An endpoint that lost against another one.
#[derive(Debug)]
pub(crate) struct Beaten<'t> {
    pub(crate) endpoint: &'t Endpoint,
    /// Why it was not reached; none: it was slower.
    pub(crate) failure: Option<Reason>,
}

impl Attempt<'_, '_> {
    /// Waits until the client does not want the endpoint any more.
    async fn given_up_by(&self, client: &TcpStream) {
        match self.tls {
            Some((_, first)) => originate::given_up_by(client, first).await,
            None => reset_of(client).await,
        }
    }

    /// Returns what is left of the time for all attempts.
    pub(crate) fn time_left(&self) -> Duration {
        self.attempts.time_left(&self.step.route.service)
    }
}

/// Connects and sends the first bytes; then, if the connection can still move, waits for an answer. Returns what was
/// tried, and the server or why this endpoint will not serve the client.
pub(crate) async fn connect<'t>(
    attempt: Attempt<'t, '_>,
    client: &TcpStream,
    account: &mut Account,
    worker: &Worker,
) -> (Tried<'t>, Result<Server, Failure>) {
    let mut tried = Tried { step: attempt.step, hedged: false, beaten: None };
    let reached = reach(attempt, &mut tried, client, account, worker).await;
    (tried, reached)
}

/// Whether an endpoint is this gateway itself.
pub(crate) fn leads_back(step: Step<'_>, worker: &Worker) -> bool {
    let target = step.endpoint.address;
    worker.process.is_own(target) || step.tables.bindings.have(target.ip())
}

async fn reach<'t>(
    mut attempt: Attempt<'t, '_>,
    tried: &mut Tried<'t>,
    client: &TcpStream,
    account: &mut Account,
    worker: &Worker,
) -> Result<Server, Failure> {
    let pending = account.attempt(attempt.step).map_err(Failure::Limited)?;
    if leads_back(attempt.step, worker) {
        return Err(Failure::Unreached(Reason::Loop));
    }
    let dialled = tokio::select! {
        biased;
        dialled = dial_hedged(&attempt, tried, account, worker) => dialled,
        () = attempt.given_up_by(client) => return Err(Failure::ClientGone),
    };
    drop(pending);
    let connected = dialled.map_err(Failure::Unreached)?;
    let stream = connected.stream;
    account.connected(tried.step, attempt.sent);
    let sent = tokio::select! {
        biased;
        sent = send_rest(&stream, attempt.wire.get(connected.sent..).unwrap_or_default()) => sent,
        () = attempt.given_up_by(client) => return Err(Failure::ClientGone),
    };
    if let Some((tls, first)) = attempt.tls.take() {
        sent.map_err(|_| Failure::Refused(Reason::UpstreamRejected))?;
        let tls = (tls, tried.step);
        return originate::open(stream, tls, (client, first), attempt.patience, account, worker).await;
    }
    match (sent, attempt.may_move) {
        (Ok(()), true) => {
            let half_closed = || account.conn.set_half_closed(worker.live.coarse_now());
            let is_over = || account.conn.is_hello_revoked();
            let answer = answer(stream, client, half_closed, is_over);
            let limit = tried.step.route.service.rules.timeouts.first_byte;
            let server = in_time(limit, &account.conn, answer).await.unwrap_or(Err(Failure::Silent))?;
            account.answered(server.said.length());
            Ok(server)
        }
        (Ok(()), false) => Ok(Server { leg: (attempt.leg)(stream), said: Reply::Nothing }),
        // The endpoint already had a part of the hello, so this is not a refused connect.
        (Err(_), true) => Err(Failure::Rejected(Server { leg: (attempt.leg)(stream), said: Reply::Reset })),
        (Err(_), false) => Ok(Server { leg: (attempt.leg)(stream), said: Reply::Reset }),
    }
}
