//! The handshake with an endpoint. No byte of the application leaves before the endpoint has proven who it is.

use std::time::Duration;

use isthmus_certs::Role;
use isthmus_model::{HostName, sni};
use rustls::pki_types::{DnsName, ServerName};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::first_bytes::Beginning;
use super::{Upstream, given_up_by};
use crate::access;
use crate::account::Account;
use crate::answer::{Failure, Server};
use crate::pick::Step;
use crate::session::{Broken, Session};
use crate::snapshot::Endpoint;
use crate::worker::Worker;

/// Shakes hands with the server at `stream`, sends what the client has sent so far, and waits while the connection can
/// still move to another endpoint.
///
/// # Errors
/// [`Failure::Unreached`] if the server does not prove to be the destination; [`Failure::Refused`] if it refuses the
/// caller or ends the connection; [`Failure::Undelivered`] if it says that it has delivered nothing;
/// [`Failure::ClientGone`] if the client resets.
pub(crate) async fn open(
    stream: TcpStream,
    (upstream, step): (Upstream, Step<'_>),
    (client, first): (&TcpStream, &[u8]),
    patience: Duration,
    account: &mut Account,
    worker: &Worker,
) -> Result<Server, Failure> {
    let (mut stream, endpoint) = (stream, step.endpoint);
    let begun = server_name(endpoint, account).and_then(|server| {
        Ok((Box::new(Session::client(upstream.client.config(), server.clone())?), server))
    });
    let (mut session, server) = begun.map_err(|error| unproven(&error.into(), account))?;
    let shaken = tokio::select! {
        biased;
        () = given_up_by(client, first) => return Err(Failure::ClientGone),
        shaken = timeout(patience, std::future::poll_fn(|cx| session.poll_handshake(cx, &mut stream))) => shaken,
    };
    if let Err(broken) = shaken.unwrap_or(Err(Broken::Slow)) {
        if matches!(broken, Broken::Tls(rustls::Error::DecryptError)) {
            upstream.client.forget(&server);
        }
        return Err(unproven(&broken, account));
    }
    proven(&session, endpoint, account, worker);
    Beginning { session, stream, client, account, worker }.serve(first, step).await
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

/// The name to ask an endpoint for.
fn server_name(endpoint: &Endpoint, account: &Account) -> Result<ServerName<'static>, rustls::Error> {
    let asked = account.conn.sni.get().map(HostName::as_str).unwrap_or_default();
    // Another cluster's gateway serves every port of the host; the endpoint itself knows its own.
    let name = match endpoint.cluster() {
        Some(_) => asked,
        None => sni::split(asked).0,
    };
    let name =
        DnsName::try_from(name.to_owned()).map_err(|error| rustls::Error::General(error.to_string()))?;
    Ok(ServerName::DnsName(name))
}

/// An alert is about this caller, everything else about the endpoint.
fn unproven(broken: &Broken, account: &mut Account) -> Failure {
    let reason = broken.record(&mut account.identities);
    match broken {
        Broken::Tls(rustls::Error::AlertReceived(_)) => Failure::Refused(reason),
        _ => Failure::Unreached(reason),
    }
}
