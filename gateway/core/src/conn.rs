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
use crate::attempts::{Attempts, Next};
use crate::close;
use crate::connect::connect;
use crate::endpoint::Counted;
use crate::memory::Flight;
use crate::peek::{Peeked, Rules, peek};
use crate::pick::{Step, pick};
use crate::reason::Reason;
use crate::relay::{End, Side, relay};
use crate::route::{Query, route};
use crate::worker::Worker;

/// Serves one accepted connection until its end.
pub(crate) async fn serve(mut client: TcpStream, listener: usize, peer: SocketAddr, worker: Arc<Worker>) {
    let _task = Counted::one(&worker.process.tasks);
    let mut account = Account::open(&worker, listener, peer);
    let conn = Arc::clone(&account.conn);
    let mut server = None;
    let reason = {
        let story = pin!(story(&mut client, &mut server, &mut account, &worker));
        conn.until_ended(story).await
    };
    account.close(reason);
    // Boxed like the beginning: a relay that idles for hours should not carry the state of either.
    Box::pin(farewell(client, server, reason, &worker)).await;
}

async fn farewell(client: TcpStream, server: Option<TcpStream>, reason: Reason, worker: &Worker) {
    match (reason, server) {
        (Reason::Shutdown, server) => close::at_once(client, server),
        (
            Reason::IdleTimeout
            | Reason::HalfCloseTimeout
            | Reason::FirstByteTimeout
            | Reason::MaxDuration
            | Reason::Drained,
            server,
        ) => close::in_order(client, server).await,
        (_, Some(_)) => {} // the relay has closed both sides
        (reason, None) => {
            if let Some(_permit) = worker.process.limits.may_linger() {
                close::refuse(client, reason.alert()).await;
            }
        }
    }
}

async fn story(
    client: &mut TcpStream,
    server: &mut Option<TcpStream>,
    account: &mut Account,
    worker: &Worker,
) -> Reason {
    let conn = Arc::clone(&account.conn);
    // A level that is off by default, and no span for the relay: an idle connection should not carry one.
    let span = tracing::debug_span!("conn", id = conn.id, listener = conn.listener, peer = %conn.peer);
    let mut beginning = Box::pin(begin(client, account, worker).instrument(span));
    let begun = conn.until_revoked(beginning.as_mut()).await;
    drop(beginning);
    let Server { stream, said } = match begun {
        Ok(server) => server,
        Err(reason) => return reason,
    };
    let end = relay(client, server.insert(stream), said, worker, &account.conn).await;
    match end {
        // Which side closes first after a refusal is chance.
        _ if account.was_turned_down() => Reason::UpstreamRejected,
        End::Closed(Side::Client) => Reason::ClientClosed,
        End::Reset(Side::Client) => Reason::ClientReset,
        End::Closed(Side::Server) | End::Reset(Side::Server) if account.conn.bytes_out.load(Relaxed) == 0 => {
            Reason::UpstreamRejected
        }
        End::Closed(Side::Server) => Reason::ServerClosed,
        End::Reset(Side::Server) => Reason::ServerReset,
    }
}

/// Runs the steps from accept to a server that has the client's hello.
async fn begin(client: &mut TcpStream, account: &mut Account, worker: &Worker) -> Result<Server, Reason> {
    account.admit()?;
    let (rules, flight) = first_bytes(account, worker);
    let conn = Arc::clone(&account.conn);
    let admit_source = |source| account.admit_source(source);
    let Peeked { hello, flight } =
        peek(client, flight, rules, admit_source, |name| conn.set_refused_name(name)).await?;
    account.heard(&hello);
    let query = Query {
        listener: account.conn.listener,
        sni: hello.sni.as_ref(),
        alpn: &hello.alpn,
        source: account.conn.client().ip(),
    };
    let mut attempts = Attempts::new(&hello, flight, query.source);
    loop {
        // Loaded anew for each attempt: a service that was removed meanwhile refuses at once.
        let tables = worker.process.tables.load_full();
        let route = route(&tables, query)?;
        account.admit_service(&route.service)?;
        attempts.take_turn(&route.service);
        let choice = attempts.choice(&route, worker);
        let endpoint = pick(&route.service, &choice, &mut fastrand::Rng::new())
            .ok_or_else(|| attempts.none_left(&route.service))?;
        let step = Step { route: &route, endpoint, tables: &tables };
        let attempt = attempts.start(step, client, account, worker);
        match connect(attempt, client, account, worker).await {
            Ok(server) => {
                attempts.reached(&server, step, worker);
                return Ok(server);
            }
            Err(failure) => match attempts.after(failure, step, account, worker) {
                Next::Again => {}
                Next::Take(server) => return Ok(server),
                Next::GiveUp(reason) => return Err(reason),
            },
        }
    }
}

fn first_bytes(account: &Account, worker: &Worker) -> (Rules, Flight) {
    let live = &worker.process.tables.load().live;
    let proxies = live.listeners.get(account.conn.listener).map(|listener| &listener.proxy_from);
    let peer = account.conn.peer.ip();
    let rules = Rules {
        proxy_due: proxies.is_some_and(|nets| nets.iter().any(|net| net.contains(&peer))),
        hello_size: live.limits.hello_size,
        deadline: live.timeouts.hello,
    };
    (rules, Flight::new(&worker.process.limits.hellos, live.limits.hello_memory, &account.conn))
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
