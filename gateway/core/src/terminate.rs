//! Ends the TLS of clients for a service that does not speak it: the handshake with the service's certificate, and the
//! decision who may enter. Both come before any endpoint is dialled.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use isthmus_certs::{Gate, SpiffeId};
use isthmus_model::access::{Access, Caller, Verdict};
use tokio::time::timeout;

use crate::access;
use crate::account::Account;
use crate::leg::{Leg, Speaks};
use crate::memory::Flight;
use crate::reason::Reason;
use crate::route::Route;
use crate::session::{Broken, Session};
use crate::snapshot::Snapshot;

/// Lets the client in, if the service's rules do. Ends its TLS first where that ends here, unless that was done for an
/// earlier attempt.
///
/// # Errors
/// `tls_failed`, `identity_denied` or `source_denied`.
pub(crate) async fn pass(
    client: &mut Leg,
    flight: &mut Flight,
    route: &Route,
    tables: &Snapshot,
    account: &mut Account,
) -> Result<(), Reason> {
    let service = &route.service;
    if !service.ends_tls() {
        // The client's TLS ended here, and the service was edited since: it expects that TLS itself.
        return if client.is_tls() { Err(Reason::TlsFailed) } else { access::admit(service, account) };
    }
    if matches!(client.speaks, Speaks::Passthrough) {
        let door = Arc::new(Doorkeeper {
            access: service.access().cloned().unwrap_or_else(|| Arc::new(Access::closed())),
            source: account.conn.client().ip(),
            port: service.port,
            client: OnceLock::new(),
        });
        let shaken = handshake(client, flight, tables, route, Arc::clone(&door)).await;
        match shaken {
            Ok(()) => account.identities.calls_as(client.session().and_then(Session::peer)),
            Err(broken) => {
                if let Some(client) = door.client.get() {
                    account.identities.calls_as(Some(client.clone()));
                    account.identities.decided(&door.access.decide(&door.caller(client)));
                }
                return Err(broken.record(&mut account.identities));
            }
        }
    }
    access::admit(service, account)
}

async fn handshake(
    client: &mut Leg,
    flight: &mut Flight,
    tables: &Snapshot,
    route: &Route,
    door: Arc<Doorkeeper>,
) -> Result<(), Broken> {
    let unusable = |error: &dyn std::fmt::Display| Broken::Tls(rustls::Error::General(error.to_string()));
    let server = tables.ends.server(&route.service.host, route.service.port);
    let server = server.ok_or_else(|| unusable(&"the service has no certificate here"))?;
    let config = server.config_with(door).map_err(|error| unusable(&error))?;
    let mut session = Box::new(Session::server(config)?);
    let begun = session.begin_with(flight.bytes());
    flight.clear();
    let Leg { stream, speaks } = client;
    *speaks = Speaks::Tls(session);
    let Speaks::Tls(session) = speaks else { return Ok(()) };
    if let Err(error) = begun {
        // The alert that says why.
        let _sent = std::future::poll_fn(|cx| session.poll_flush(cx, stream, || {})).await;
        return Err(error.into());
    }
    let shaking = std::future::poll_fn(|cx| session.poll_handshake(cx, stream));
    timeout(tables.live.timeouts.hello, shaking).await.unwrap_or(Err(Broken::Slow))
}

/// Decides within the handshake, so that a refused client gets an alert that says so.
#[derive(Debug)]
struct Doorkeeper {
    access: Arc<Access>,
    source: IpAddr,
    port: u16,
    /// The client that asked.
    client: OnceLock<SpiffeId>,
}

impl Doorkeeper {
    fn caller<'a>(&self, client: &'a SpiffeId) -> Caller<'a> {
        Caller { identity: Some(client), source: self.source, port: self.port }
    }
}

impl Gate for Doorkeeper {
    fn admits(&self, client: &SpiffeId) -> bool {
        let known = self.client.get_or_init(|| client.clone());
        self.access.decide(&self.caller(known)).verdict == Verdict::Allowed
    }
}
