//! Begins mTLS for applications without TLS: whose identity a client has, which service its connection is for, and the
//! handshake with an endpoint. No byte of the application leaves before the endpoint has proven who it is.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use isthmus_certs::{Client, Role, SpiffeId};
use isthmus_model::{HostName, binding, sni};
use rustls::pki_types::{DnsName, ServerName};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::access;
use crate::account::Account;
use crate::answer::{self, Failure, Reply, Server, end_of_silent, poll_client, reset_of};
use crate::config::settings::{self, Callers, CertificateFiles, Destination, Originate};
use crate::hello::{Alpn, Hello};
use crate::leg::{Leg, Speaks};
use crate::memory::Flight;
use crate::peek::{Peeked, Rules, peek_source};
use crate::reason::Reason;
use crate::session::{Broken, Session};
use crate::snapshot::{Endpoint, Service, Snapshot};
use crate::socket;
use crate::worker::Worker;

/// Returns the name of the service that a listener's connection is for, as an SNI that tells its port, too; none: no
/// service has what the application dialled.
pub(crate) fn destination(originate: &Originate, client: &TcpStream, tables: &Snapshot) -> Option<HostName> {
    let local = || client.local_addr().ok().map(socket::canonical);
    match &originate.to {
        Destination::Service { host, port } => Some((host, *port)),
        Destination::ListenerPort => tables.bindings.at_listener_port(local()?.port()),
        // What was not redirected has dialled the listener itself.
        Destination::Redirected => tables.bindings.at(socket::original_destination(client, local()?)?),
        Destination::Dialled => tables.bindings.at(local()?),
    }
    .and_then(|(host, port)| HostName::parse(sni::name(host.as_str(), port)).ok())
}

/// Reads who the client is, if a PROXY header tells, and asks for the destination in place of a ClientHello.
///
/// # Errors
/// The reason to refuse the connection.
pub(crate) async fn ask(
    destination: Option<HostName>,
    client: &mut TcpStream,
    flight: Flight,
    rules: Rules,
    on_source: impl FnMut(Option<SocketAddr>) -> Result<(), Reason>,
) -> Result<Peeked, Reason> {
    let flight = peek_source(client, flight, rules, on_source).await?;
    let sni = Some(destination.ok_or(Reason::DestinationUnmatched)?);
    let hello = Hello { sni, alpn: Alpn::default(), early_data: false, wire_len: flight.bytes().len() };
    Ok(Peeked { hello, flight })
}

/// The TLS that an endpoint expects from the gateway.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// The caller's client for the service.
    client: Arc<Client>,
}

/// Returns the TLS to begin for this client; none for a client that speaks TLS itself, and for a service whose TLS ends
/// here: its endpoints expect plaintext.
///
/// # Errors
/// `identity_denied` for a client that nothing is known of, `tls_failed` where TLS cannot be begun.
pub(crate) fn upstream(
    tables: &Snapshot,
    client: &Leg,
    service: &Service,
    account: &mut Account,
) -> Result<Option<Upstream>, Reason> {
    if !matches!(client.speaks, Speaks::Plaintext) {
        return Ok(None);
    }
    let listener = tables.live.listeners.get(account.conn.listener);
    // An edit may have taken the mode from the listener; plaintext goes nowhere then.
    let originate = listener.and_then(|listener| listener.originate.as_deref()).ok_or(Reason::TlsFailed)?;
    let caller = Caller::find(originate, tables, account.conn.client().ip()).ok_or(Reason::IdentityDenied)?;
    account.identities.calls_as(Some(caller.identity().clone()));
    account.conn.admit(|admission| {
        admission.caller = Some(caller.identity().clone());
        admission.by_address = true;
    });
    if service.ends_tls() {
        return Ok(None);
    }
    // The gateway offers the service's in the application's place.
    account.alpn = Alpn::from_protocols(service.rules.alpn.iter().map(String::as_str));
    let (own, servers) = ((caller.identity(), caller.files()), service.identities());
    let client = tables.ends.client(own, servers, &service.rules.alpn).map_err(|missing| {
        account.identities.failed(&missing);
        Reason::TlsFailed
    })?;
    Ok(Some(Upstream { client }))
}

/// Whose identity a client has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Caller<'a> {
    /// As the file says.
    OfFile(&'a settings::Caller),
    /// As the agent says.
    OfAgent(&'a binding::Caller),
}

impl<'a> Caller<'a> {
    /// Finds the caller with this address; none: nobody knows it.
    pub(crate) fn find(originate: &'a Originate, tables: &'a Snapshot, source: IpAddr) -> Option<Caller<'a>> {
        match &originate.callers {
            Callers::OfFile(callers) => settings::Caller::find(source, callers).map(Caller::OfFile),
            Callers::OfAgent => tables.bindings.callers().get(source).map(Caller::OfAgent),
        }
    }

    /// Returns the identity.
    pub(crate) fn identity(self) -> &'a SpiffeId {
        match self {
            Caller::OfFile(caller) => &caller.identity,
            Caller::OfAgent(caller) => &caller.identity,
        }
    }

    /// Returns the files of its certificate and key; none: the agent issues it.
    fn files(self) -> Option<&'a CertificateFiles> {
        match self {
            Caller::OfFile(caller) => caller.files.as_ref(),
            Caller::OfAgent(_) => None,
        }
    }
}

/// Shakes hands with the server at `stream`, sends what the client has sent so far, and waits while the connection can
/// still move to another endpoint: until the application's first byte in either direction.
///
/// # Errors
/// [`Failure::Unreached`] if the server does not prove to be the destination; [`Failure::Refused`] if it refuses the
/// caller or ends the connection; [`Failure::ClientGone`] if the client resets.
pub(crate) async fn open(
    stream: TcpStream,
    (upstream, endpoint): (Upstream, &Endpoint),
    (client, first): (&TcpStream, &[u8]),
    patience: Duration,
    account: &mut Account,
    worker: &Worker,
) -> Result<Server, Failure> {
    let mut stream = stream;
    let mut session =
        session(&upstream, endpoint, account).map_err(|error| unproven(&error.into(), account))?;
    let shaken = tokio::select! {
        biased;
        () = given_up_by(client, first) => return Err(Failure::ClientGone),
        shaken = timeout(patience, std::future::poll_fn(|cx| session.poll_handshake(cx, &mut stream))) => shaken,
    };
    if let Err(broken) = shaken.unwrap_or(Err(Broken::Slow)) {
        return Err(unproven(&broken, account));
    }
    proven(&session, endpoint, account, worker);
    if !first.is_empty() {
        session.seal(first).map_err(|_| Failure::Refused(Reason::TlsFailed))?;
        account.conn.moved(&account.conn.bytes_in, first.len(), worker.live.coarse_now());
    } else if let Err(broken) = first_byte(&mut session, &mut stream, client, account, worker).await? {
        account.identities.failed(&broken);
        return Err(Failure::Refused(refusal(&broken)));
    }
    Ok(Server { leg: Leg { stream, speaks: Speaks::Tls(session) }, said: Reply::Nothing })
}

/// Records who the server has proven to be, and that the caller may use it.
fn proven(session: &Session, endpoint: &Endpoint, account: &mut Account, worker: &Worker) {
    account.identities.answers_as(session.peer());
    let chain = worker.process.chains.intern(Role::Server, session.peer_chain());
    account.conn.admit(|admission| {
        admission.server = session.peer();
        let [_, server] = &mut admission.chains;
        *server = Some(chain);
    });
    access::passed(endpoint, account);
}

/// Returns the identity that a client of a listener has by its address; none: it is refused.
pub(crate) fn identity(tables: &Snapshot, listener: usize, source: IpAddr) -> Option<&SpiffeId> {
    let originate = tables.live.listeners.get(listener)?.originate.as_deref()?;
    Caller::find(originate, tables, source).map(Caller::identity)
}

/// Waits until an application does not want an endpoint any more. One that closes without a byte has only looked whether
/// somebody listens: the handshake stays unfinished, and a server that counts failed logins sees nothing of it.
pub(crate) async fn given_up_by(client: &TcpStream, first: &[u8]) {
    if first.is_empty() { end_of_silent(client).await } else { reset_of(client).await }
}

fn session(
    upstream: &Upstream,
    endpoint: &Endpoint,
    account: &Account,
) -> Result<Box<Session>, rustls::Error> {
    let asked = account.conn.sni.get().map(HostName::as_str).unwrap_or_default();
    // Another cluster's gateway serves every port of the host; the endpoint itself knows its own.
    let name = match endpoint.cluster() {
        Some(_) => asked,
        None => sni::split(asked).0,
    };
    let name =
        DnsName::try_from(name.to_owned()).map_err(|error| rustls::Error::General(error.to_string()))?;
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
