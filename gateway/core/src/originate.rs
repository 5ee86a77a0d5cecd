//! Begins mTLS for applications without TLS: whose identity a client has, and which service its connection is for.
//! [`handshake`] is the handshake with an endpoint, [`first_bytes`] what comes before the relay.

mod first_bytes;
mod handshake;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isthmus_certs::{Client, SpiffeId};
use isthmus_model::{HostName, binding, sni};
use tokio::net::TcpStream;

use crate::account::Account;
use crate::answer::{end_of_silent, reset_of};
use crate::config::settings::{self, Callers, CertificateFiles, Destination, Originate};
use crate::hello::{Alpn, Hello};
use crate::leg::{Leg, Speaks};
use crate::memory::Flight;
use crate::peek::{Peeked, Rules, peek_source};
use crate::reason::Reason;
use crate::snapshot::{Service, Snapshot};
use crate::socket;

pub(crate) use handshake::open;

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
    if caller.files().is_none() {
        account.conn.admit(|admission| admission.presented = Some(caller.identity().clone()));
    }
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
