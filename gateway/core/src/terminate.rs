//! Ends the TLS of clients for a service that does not speak it: the handshake with the service's certificate, and the
//! decision who may enter. Both come before any endpoint is dialled.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use isthmus_certs::{Gate, Role, SpiffeId, behind};
use isthmus_model::access::{Access, Caller, Verdict};
use isthmus_model::{HostName, HostPattern, sni};
use tokio::time::timeout;

use crate::access;
use crate::account::Account;
use crate::leg::{Leg, Speaks};
use crate::memory::Flight;
use crate::reason::Reason;
use crate::route::Route;
use crate::session::{Broken, Session};
use crate::snapshot::{Service, Snapshot};
use crate::worker::{Process, Worker};

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
    worker: &Worker,
) -> Result<(), Reason> {
    let service = &route.service;
    if !service.ends_tls() {
        // The client's TLS ended here, and the service was edited since: it expects that TLS itself.
        return if client.is_tls() { Err(Reason::TlsFailed) } else { access::admit(service, account) };
    }
    if matches!(client.speaks, Speaks::Passthrough) {
        let door = Arc::new(Doorkeeper {
            process: Arc::clone(&worker.process),
            service: Arc::clone(service),
            source: account.conn.client().ip(),
            client: OnceLock::new(),
        });
        let gate: Arc<dyn Gate> = Arc::<Doorkeeper>::clone(&door);
        let shaken = handshake(client, flight, (tables, route), account.conn.sni.get(), &gate).await;
        match shaken {
            Ok(()) => proven(client, service, account, worker),
            Err(broken) => {
                let recorded = broken.record(&mut account.identities);
                let reason = if is_about_the_service(&broken) { Reason::TlsFailed } else { recorded };
                if let Some((client, access)) = door.client.get() {
                    account.identities.calls_as(Some(client.clone()));
                    let decision = access.decide(&door.caller(client));
                    account.identities.decided(&decision);
                    if decision.verdict == Verdict::Denied {
                        account.audit(Verdict::Denied, Some(&decision), Some(reason));
                    }
                }
                return Err(reason);
            }
        }
    }
    access::admit(service, account)
}

/// Whether the client refuses the service: its alert is not about itself.
fn is_about_the_service(broken: &Broken) -> bool {
    matches!(broken, Broken::Tls(rustls::Error::AlertReceived(_)))
}

/// Records who the client has proven to be, and the gateway to it.
fn proven(client: &Leg, service: &Service, account: &mut Account, worker: &Worker) {
    let Some(session) = client.session() else { return };
    account.identities.calls_as(session.peer());
    let chain = worker.process.chains.intern(Role::Client, session.peer_chain());
    account.conn.admit(|admission| {
        admission.caller = session.peer();
        admission.presented = service.issued_identity().cloned();
        let [client, _] = &mut admission.chains;
        *client = Some(chain);
    });
}

async fn handshake(
    client: &mut Leg,
    flight: &mut Flight,
    (tables, route): (&Snapshot, &Route),
    sni: Option<&HostName>,
    gate: &Arc<dyn Gate>,
) -> Result<(), Broken> {
    let unusable = |error: &dyn std::fmt::Display| Broken::Tls(rustls::Error::General(error.to_string()));
    let service = &route.service;
    let server =
        tables.ends.server((&service.host, service.port), service.issued_identity(), &service.rules.alpn);
    let server = server.map_err(|error| unusable(&error))?;
    let host_of_instance = route.instance.as_ref().map(|_| &service.host);
    if let Some(sni) = sni.filter(|sni| !is_named(&server.dns_names(), sni, host_of_instance)) {
        return Err(unusable(&format_args!("the certificate of the service is not for {sni}")));
    }
    let mut session = Box::new(Session::server(server.config())?);
    let begun = behind(gate, || session.begin_with(flight.bytes()));
    flight.clear();
    let Leg { stream, speaks } = client;
    *speaks = Speaks::Tls(session);
    let Speaks::Tls(session) = speaks else { return Ok(()) };
    if let Err(error) = begun {
        // The alert that says why.
        let _sent = std::future::poll_fn(|cx| session.poll_flush(cx, stream, || {})).await;
        return Err(error.into());
    }
    let shaking = std::future::poll_fn(|cx| behind(gate, || session.poll_handshake(cx, stream)));
    timeout(tables.live.timeouts.hello, shaking).await.unwrap_or(Err(Broken::Slow))
}

/// Whether a certificate with these DNS names is for the name that the client asked for. One without any is for every name:
/// its identity is the SPIFFE ID. An instance is named by its host, too.
fn is_named(names: &[String], sni: &HostName, host_of_instance: Option<&HostPattern>) -> bool {
    let (asked, _port) = sni::split(sni.as_str());
    let host = host_of_instance.map(ToString::to_string);
    let covers = |name: &String| {
        let is_below = || name.strip_prefix('*').is_some_and(|suffix| asked.ends_with(suffix));
        name == asked || Some(name) == host.as_ref() || is_below()
    };
    names.is_empty() || names.iter().any(covers)
}

/// Decides within the handshake, so that a refused client gets an alert that says so: by the rules of that moment.
#[derive(Debug)]
struct Doorkeeper {
    process: Arc<Process>,
    service: Arc<Service>,
    source: IpAddr,
    /// The client that asked, and the rules that it was judged by.
    client: OnceLock<(SpiffeId, Arc<Access>)>,
}

impl Doorkeeper {
    fn caller<'a>(&self, client: &'a SpiffeId) -> Caller<'a> {
        Caller { identity: Some(client), source: self.source, port: self.service.port }
    }

    /// Nobody may enter a service that is gone.
    fn access(&self) -> Arc<Access> {
        let tables = self.process.tables.load();
        let service = tables.service(&self.service.host, self.service.port);
        service.and_then(|service| service.access().cloned()).unwrap_or_else(|| Arc::new(Access::closed()))
    }
}

impl Gate for Doorkeeper {
    fn admits(&self, client: &SpiffeId) -> bool {
        let (client, access) = self.client.get_or_init(|| (client.clone(), self.access()));
        access.decide(&self.caller(client)).verdict == Verdict::Allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_with_dns_names_is_for_these_names_alone() {
        let is_for = |names: &[&str], sni: &str, host: Option<&str>| {
            let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
            let host = host.map(|host| HostPattern::parse(host).unwrap());
            is_named(&names, &HostName::parse(sni).unwrap(), host.as_ref())
        };
        for (sni, host) in [
            ("stock.shop", None),
            ("outbound_.3306_._.stock.shop", None),
            ("a.apps", None),
            ("a.b.apps", None),
            ("db-0.stock.shop", Some("stock.shop")),
            ("src-db.pxc", Some("stock.shop")),
        ] {
            assert!(is_for(&["stock.shop", "*.apps"], sni, host), "{sni}");
            assert!(is_for(&[], sni, host), "{sni}");
        }
        for (sni, host) in [
            ("other.shop", None),
            ("outbound_.3306_._.other.shop", None),
            ("apps", None),
            ("xapps", None),
            ("db-0.stock.shop", None),
            ("db-0.other.shop", Some("other.shop")),
        ] {
            assert!(!is_for(&["stock.shop", "*.apps"], sni, host), "{sni}");
        }
    }
}
