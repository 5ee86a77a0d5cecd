//! Begins mTLS for applications without TLS: whose identity a client has, which service its listener is for, and the
//! handshake with an endpoint. No byte of the application leaves before the endpoint has proven who it is.

use std::net::SocketAddr;
use std::task::Poll;
use std::time::Duration;

use isthmus_certs::Client;
use isthmus_model::{HostName, sni};
use rustls::pki_types::{DnsName, ServerName};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::account::Account;
use crate::answer::{self, Failure, Said, Server, poll_client, reset_of};
use crate::config::settings::Originate;
use crate::hello::{Alpn, Hello};
use crate::leg::{Leg, Speaks};
use crate::memory::Flight;
use crate::peek::{Peeked, Rules, peek_source};
use crate::reason::Reason;
use crate::session::{Broken, Session};
use crate::snapshot::{Endpoint, Snapshot};
use crate::socket;
use crate::worker::Worker;

/// Reads who the client is, if a PROXY header tells, and asks for the listener's service in place of a ClientHello.
///
/// # Errors
/// The reason to refuse the connection.
pub(crate) async fn ask(
    originate: &Originate,
    client: &mut TcpStream,
    flight: Flight,
    rules: Rules,
    on_source: impl FnMut(Option<SocketAddr>) -> Result<(), Reason>,
) -> Result<Peeked, Reason> {
    let flight = peek_source(client, flight, rules, on_source).await?;
    let (sni, alpn) = originate.question();
    let hello = Hello { sni, alpn, early_data: false, wire_len: flight.bytes().len() };
    Ok(Peeked { hello, flight })
}

impl Originate {
    /// Returns the name and the protocols by which the service is looked up, as in a ClientHello for it.
    pub(crate) fn question(&self) -> (Option<HostName>, Alpn) {
        let name = HostName::parse(sni::name(self.service.as_str(), self.port)).ok();
        (name, Alpn::of(self.alpn.iter().map(String::as_str)))
    }
}

/// The TLS that an endpoint expects from the gateway.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Upstream<'a> {
    /// The caller's client.
    client: &'a Client,
    /// The service as the listener names it.
    service: &'a Originate,
}

/// Returns the TLS to begin for this client; none for a client that speaks TLS itself, and for a service whose TLS ends
/// here: its endpoints expect plaintext.
///
/// # Errors
/// `identity_denied` for a client that nothing is known of, `tls_failed` where TLS cannot be begun.
pub(crate) fn upstream<'a>(
    tables: &'a Snapshot,
    client: &Leg,
    is_own_door: bool,
    account: &mut Account,
) -> Result<Option<Upstream<'a>>, Reason> {
    if !matches!(client.speaks, Speaks::Plaintext) {
        return Ok(None);
    }
    let index = account.conn.listener;
    let listener = tables.live.listeners.get(index);
    // An edit may have taken the mode from the listener; plaintext goes nowhere then.
    let service = listener.and_then(|listener| listener.originate.as_deref()).ok_or(Reason::TlsFailed)?;
    let (caller, settings) = service.caller(account.conn.client().ip()).ok_or(Reason::IdentityDenied)?;
    account.identities.calls_as(Some(settings.identity.clone()));
    if is_own_door {
        return Ok(None);
    }
    let client = tables.ends.client(index, caller).ok_or(Reason::TlsFailed)?;
    Ok(Some(Upstream { client, service }))
}

/// Shakes hands with the server at `stream`, sends what the client has sent so far, and waits while the connection can
/// still move to another endpoint: until the application's first byte in either direction.
///
/// # Errors
/// [`Failure::Unreached`] if the server does not prove to be the destination; [`Failure::Refused`] if it refuses the
/// caller or ends the connection; [`Failure::ClientGone`] if the client resets.
pub(crate) async fn open(
    stream: TcpStream,
    (upstream, endpoint): (Upstream<'_>, &Endpoint),
    (client, first): (&TcpStream, &[u8]),
    patience: Duration,
    account: &mut Account,
    worker: &Worker,
) -> Result<Server, Failure> {
    let mut stream = stream;
    let mut session = session(upstream, endpoint).map_err(|error| unproven(&error.into(), account))?;
    let shaken = tokio::select! {
        biased;
        shaken = timeout(patience, std::future::poll_fn(|cx| session.poll_handshake(cx, &mut stream))) => shaken,
        () = reset_of(client) => return Err(Failure::ClientGone),
    };
    if let Err(broken) = shaken.unwrap_or(Err(Broken::Slow)) {
        return Err(unproven(&broken, account));
    }
    account.identities.answers_as(session.peer());
    if !first.is_empty() {
        session.seal(first).map_err(|_| Failure::Refused(Reason::TlsFailed))?;
        account.conn.moved(&account.conn.bytes_in, first.len(), worker.live.coarse_now());
    } else if let Err(broken) = first_byte(&mut session, &mut stream, client, account, worker).await? {
        account.identities.failed(&broken);
        return Err(Failure::Refused(refusal(&broken)));
    }
    Ok(Server { leg: Leg { stream, speaks: Speaks::Tls(session) }, said: Said::Nothing })
}

fn session(upstream: Upstream<'_>, endpoint: &Endpoint) -> Result<Box<Session>, rustls::Error> {
    let Originate { service, port, .. } = upstream.service;
    // Another cluster's gateway serves every port of it; the endpoint itself knows its own.
    let name = match endpoint.cluster() {
        Some(_) => sni::name(service.as_str(), *port),
        None => service.as_str().to_owned(),
    };
    let name = DnsName::try_from(name).map_err(|error| rustls::Error::General(error.to_string()))?;
    Session::client(upstream.client.config(), ServerName::DnsName(name)).map(Box::new)
}

/// An alert is about this caller, everything else about the endpoint.
fn unproven(broken: &Broken, account: &mut Account) -> Failure {
    let reason = broken.record(&mut account.identities);
    match broken {
        Broken::Tls(rustls::Error::AlertReceived(_)) => Failure::Refused(reason),
        _ => Failure::Unreached(reason),
    }
}

fn refusal(broken: &Broken) -> Reason {
    match broken {
        Broken::Tls(_) => broken.reason(),
        _ => Reason::UpstreamRejected,
    }
}

/// Waits for the first byte of the application or of the server. In TLS 1.3 a server may still refuse the caller now.
async fn first_byte(
    session: &mut Session,
    stream: &mut TcpStream,
    client: &TcpStream,
    account: &Account,
    worker: &Worker,
) -> Result<Result<(), Broken>, Failure> {
    std::future::poll_fn(|cx| {
        if account.conn.came_of_age() {
            socket::keep_alive_or_say(&*stream, &worker.process.fixed.tcp, account.conn.id);
        }
        loop {
            if session.has_early() {
                return Poll::Ready(Ok(Ok(())));
            }
            // The server's refusal counts even if the application has spoken since.
            match session.poll_read_early(cx, stream) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(Err(Broken::Closed))),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(broken)) => return Poll::Ready(Ok(Err(broken))),
                Poll::Pending => break,
            }
        }
        let _pending = session.poll_flush(cx, stream, || {});
        match poll_client(client, cx) {
            Poll::Ready(answer::Client::Spoke | answer::Client::Closed) => Poll::Ready(Ok(Ok(()))),
            Poll::Ready(answer::Client::Reset) => Poll::Ready(Err(Failure::ClientGone)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
