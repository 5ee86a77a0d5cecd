//! Serves one connection: accept → peek → route → pick → connect → relay → account. Each step is a module of that
//! name; this file only defines their order and what follows a failure.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::net::TcpStream;
use tracing::Instrument as _;

use crate::account::Account;
use crate::answer::Server;
use crate::attempts::{AfterFailure, Attempts};
use crate::close;
use crate::connect::connect;
use crate::endpoint::Counted;
use crate::leg::{Leg, Speaks};
use crate::memory::Flight;
use crate::metrics::add;
use crate::peek::{Peeked, Rules, peek};
use crate::pick::Step;
use crate::reason::Reason;
use crate::relay::{End, Side, relay};
use crate::route::{Query, route};
use crate::worker::Worker;
use crate::{access, originate, terminate};

/// Serves one accepted connection until its end.
pub(crate) async fn serve(client: TcpStream, listener: usize, peer: SocketAddr, worker: Arc<Worker>) {
    let _task = Counted::one(&worker.process.tasks);
    let mut account = Account::open(&worker, listener, peer);
    let conn = Arc::clone(&account.conn);
    let (mut client, mut server) = (Leg::passthrough(client), None);
    let reason = {
        let story = pin!(story(&mut client, &mut server, &mut account, &worker));
        conn.until_ended(story).await
    };
    let is_cut = reason == Reason::Shutdown || conn.is_denied();
    account.close(reason);
    if is_cut {
        return close::at_once(client, server);
    }
    // Boxed like the beginning: a relay that idles for hours should not carry the state of either.
    Box::pin(farewell(client, server, reason, &worker)).await;
}

async fn farewell(client: Leg, server: Option<Leg>, reason: Reason, worker: &Worker) {
    match (reason, server) {
        (
            Reason::IdleTimeout
            | Reason::HalfCloseTimeout
            | Reason::FirstByteTimeout
            | Reason::MaxDuration
            | Reason::EndpointUnhealthy
            | Reason::Drained,
            server,
        ) => close::in_order(client, server).await,
        (_, Some(_)) => {} // the relay has closed both sides
        (reason, None) if client.is_refused_by_reset(reason.alert()) => close::at_once(client, None),
        (reason, None) => {
            if let Some(_permit) = worker.process.limits.may_linger() {
                close::refuse(client, reason.alert()).await;
            }
        }
    }
}

async fn story(client: &mut Leg, server: &mut Option<Leg>, account: &mut Account, worker: &Worker) -> Reason {
    let conn = Arc::clone(&account.conn);
    // A level that is off by default, and no span for the relay: an idle connection should not carry one.
    let span = tracing::debug_span!("conn", id = conn.id, listener = conn.listener, peer = %conn.peer);
    let mut beginning = Box::pin(begin(client, account, worker).instrument(span));
    let begun = conn.until_revoked(beginning.as_mut()).await;
    drop(beginning);
    let Server { leg, said } = match begun {
        Ok(server) => server,
        Err(reason) => return reason,
    };
    let server = server.insert(leg);
    let end = relay(client, server, said, worker, &account.conn).await;
    if let Some(error) = client.failure().or(server.failure()) {
        account.identities.failed(error);
    }
    let is_unanswered = account.conn.bytes_out.load(Relaxed) == 0;
    let refusal = server.refusal(matches!(end, End::Reset(_))).filter(|_| is_unanswered);
    let is_lost = match end {
        End::Closed(Side::Server) => refusal.is_some(),
        End::Reset(side) => side == Side::Server,
        End::Closed(Side::Client) => false,
    };
    if is_lost && !account.rejected {
        add(&worker.counters.lost, 1);
    }
    match end {
        // Which side closes first after a refusal is chance.
        _ if account.rejected => Reason::UpstreamRejected,
        End::Closed(Side::Client) => Reason::ClientClosed,
        End::Reset(Side::Client) => Reason::ClientReset,
        End::Closed(Side::Server) => refusal.unwrap_or(Reason::ServerClosed),
        End::Reset(Side::Server) => refusal.unwrap_or(Reason::ServerReset),
    }
}

/// Runs the steps from accept to a server that has the client's hello.
async fn begin(client: &mut Leg, account: &mut Account, worker: &Worker) -> Result<Server, Reason> {
    let Peeked { hello, flight } = ask(client, account, worker).await?;
    account.record_hello(&hello);
    let query = Query {
        listener: account.conn.listener,
        sni: hello.sni.as_ref(),
        alpn: matches!(client.speaks, Speaks::Passthrough).then_some(&hello.alpn),
        source: account.conn.client().ip(),
    };
    let mut attempts = Attempts::new(&hello, flight, query.source);
    loop {
        // Loaded anew for each attempt: a service that was removed meanwhile refuses at once.
        let tables = worker.process.tables.load_full();
        let route = route(&tables, query)?;
        account.admit_service(&route.service)?;
        let tls = originate::upstream(&tables, client, &route.service, account)?;
        let had_tls = client.is_tls();
        terminate::pass(client, attempts.flight(), &route, &tables, account, worker).await?;
        if client.is_tls() != had_tls {
            // The handshake has taken time: its client is judged by the tables of now.
            continue;
        }
        attempts.take_turn(&route.service);
        let Some(endpoint) = attempts.next(&route, &tables, account, worker) else {
            let refusal = attempts.are_none().then(|| access::refusal_of_all(&route, account));
            return Err(attempts.none_left(&route, refusal.flatten()));
        };
        if tls.is_none() {
            access::passed(endpoint, account);
        }
        let step = Step { route: &route, endpoint, tables: &tables };
        let attempt = attempts.start(step, tls, client, account, worker);
        let (tried, reached) = connect(attempt, &client.stream, account, worker).await;
        match reached {
            Ok(server) => {
                attempts.reached(&server, tried, account, worker);
                return Ok(server);
            }
            Err(failure) => match attempts.after(failure, tried, account, worker) {
                AfterFailure::TryAnother => {}
                AfterFailure::Forward(server) => return Ok(server),
                AfterFailure::GiveUp(reason) => return Err(reason),
            },
        }
    }
}

/// Finds out what the client asks for: its ClientHello says it, or its listener where applications speak plaintext.
async fn ask(client: &mut Leg, account: &mut Account, worker: &Worker) -> Result<Peeked, Reason> {
    let tables = worker.process.tables.load_full();
    let live = &tables.live;
    let listener = live.listeners.get(account.conn.listener);
    let originate = listener.and_then(|listener| listener.originate.as_deref());
    if originate.is_some() {
        client.speaks = Speaks::Plaintext;
    }
    account.admit()?;
    let peer = account.conn.peer.ip();
    let rules = Rules {
        proxy_due: listener.is_some_and(|listener| listener.proxy_from.iter().any(|net| net.contains(&peer))),
        hello_size: live.limits.hello_size,
        deadline: live.timeouts.hello,
    };
    let flight = Flight::new(&worker.process.limits.hellos, live.limits.hello_memory, &account.conn);
    let conn = Arc::clone(&account.conn);
    let admit_source = |source| account.admit_source(source);
    match originate {
        Some(originate) => {
            let destination = originate::destination(originate, &client.stream, &tables);
            originate::ask(destination, &mut client.stream, flight, rules, admit_source).await
        }
        None => {
            let refused_name = |name| conn.set_refused_name(name);
            peek(&mut client.stream, flight, rules, admit_source, refused_name).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, B, C, D, F: Future>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn connection_future_is_small() {
        assert!(size_of_future(serve) <= 1024, "{} bytes", size_of_future(serve));
    }
}
