//! Asks the rules for callers about a connection, records what they say, and has it audited. `recheck` asks again while
//! the connection lives.

use std::net::IpAddr;

use isthmus_certs::SpiffeId;
use isthmus_model::access::{Caller, Decision, Verdict};

use crate::account::Account;
use crate::reason::Reason;
use crate::route::Route;
use crate::snapshot::{Endpoint, Service};

/// Refuses a client that the rules of the service refuse.
///
/// # Errors
/// `identity_denied`, or `source_denied` for a client whose identity nobody here sees.
pub(crate) fn admit(service: &Service, account: &mut Account) -> Result<(), Reason> {
    let Some(access) = service.access() else { return Ok(()) };
    let asking = Asking::new(account, service);
    let decision = access.decide(&asking.caller());
    match decision.verdict {
        Verdict::Allowed => {
            account.identities.decided(&decision);
            Ok(())
        }
        Verdict::Denied => Err(asking.refused(&decision, account)),
    }
}

/// Returns why a client may use no endpoint of a service, if the rules of other clusters are the cause.
pub(crate) fn refusal_of_all(route: &Route, account: &mut Account) -> Option<Reason> {
    let asking = Asking::new(account, &route.service);
    let caller = asking.caller();
    let decision = route.service.refusing(route.side, &caller)?.decide(&caller)?;
    Some(asking.refused(&decision, account))
}

/// Records that a client is let through to an endpoint, where anything was decided about it.
pub(crate) fn passed(endpoint: &Endpoint, account: &mut Account) {
    let Some(service) = account.service().cloned() else { return };
    let asking = Asking::new(account, &service);
    let caller = asking.caller();
    let decision = endpoint.decide(&caller).or_else(|| Some(service.access()?.decide(&caller)));
    if let Some(decision) = &decision {
        account.identities.decided(decision);
    }
    if decision.is_some() || caller.identity.is_some() {
        account.audit(Verdict::Allowed, decision.as_ref(), None);
    }
}

/// Who asks for a service, apart from the account that notes the answer.
struct Asking {
    identity: Option<SpiffeId>,
    source: IpAddr,
    port: u16,
}

impl Asking {
    fn new(account: &Account, service: &Service) -> Asking {
        let identity = account.identities.caller().cloned();
        Asking { identity, source: account.conn.client().ip(), port: service.port }
    }

    fn caller(&self) -> Caller<'_> {
        Caller { identity: self.identity.as_ref(), source: self.source, port: self.port }
    }

    /// Records a refusal, and has it audited.
    fn refused(&self, decision: &Decision<'_>, account: &mut Account) -> Reason {
        let reason = refusal(&self.caller());
        account.identities.decided(decision);
        account.audit(Verdict::Denied, Some(decision), Some(reason));
        reason
    }
}

/// The reason that a refused caller gets.
pub(crate) fn refusal(caller: &Caller<'_>) -> Reason {
    if caller.identity.is_some() { Reason::IdentityDenied } else { Reason::SourceDenied }
}
