//! Ends the TLS of clients for a service that does not speak it: the handshake with the service's certificate, and the
//! decision who may enter. Both come before any endpoint is dialled.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use isthmus_certs::{Gate, SpiffeId};
use tokio::time::timeout;

use crate::access::{Access, Caller};
use crate::account::Account;
use crate::leg::{Leg, Speaks};
use crate::memory::Flight;
use crate::reason::Reason;
use crate::route::Route;
use crate::session::{Broken, Session};
use crate::snapshot::Snapshot;

/// Lets the client through the service's door, if it has one, or refuses it. Ends its TLS first, unless that was done
/// for an earlier attempt.
///
/// # Errors
/// `tls_failed` or `identity_denied`.
pub(crate) async fn pass(
    client: &mut Leg,
    flight: &mut Flight,
    route: &Route,
    tables: &Snapshot,
    account: &mut Account,
) -> Result<(), Reason> {
    let service = &route.service;
    let Some(access) = service.access() else {
        // The client's TLS ended here, and the service was edited since: it expects that TLS itself.
        return if client.is_tls() { Err(Reason::TlsFailed) } else { Ok(()) };
    };
    let source = account.conn.client().ip();
    if matches!(client.speaks, Speaks::Passthrough) {
        let door = Arc::new(Doorkeeper {
            access: Arc::clone(access),
            source,
            port: service.port,
            client: OnceLock::new(),
        });
        let shaken = handshake(client, flight, tables, route, Arc::clone(&door)).await;
        match shaken {
            Ok(()) => account.identities.calls_as(client.session().and_then(Session::peer)),
            Err(broken) => {
                account.identities.calls_as(door.client.get().cloned());
                return Err(broken.record(&mut account.identities));
            }
        }
    }
    let caller = Caller { identity: account.identities.caller(), source, port: service.port };
    if access.decide(&caller).allowed { Ok(()) } else { Err(Reason::IdentityDenied) }
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

impl Gate for Doorkeeper {
    fn admits(&self, client: &SpiffeId) -> bool {
        let known = self.client.get_or_init(|| client.clone());
        self.access.decide(&Caller { identity: Some(known), source: self.source, port: self.port }).allowed
    }
}
