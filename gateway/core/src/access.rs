//! Asks the rules for callers about a connection, records what they say, and has it audited. `recheck` asks again while
//! the connection lives.

use isthmus_model::access::{Caller, Verdict};

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
    let caller = account.identities.caller().cloned();
    let source = account.conn.client().ip();
    let caller = Caller { identity: caller.as_ref(), source, port: service.port };
    let decision = access.decide(&caller);
    account.identities.decided(&decision);
    match decision.verdict {
        Verdict::Allowed => Ok(()),
        Verdict::Denied => {
            let reason = refusal(&caller);
            account.audit(Verdict::Denied, Some(&decision), Some(reason));
            Err(reason)
        }
    }
}

/// Returns why a client may use no endpoint of a service, if the rules of other clusters are the cause.
pub(crate) fn refusal_of_all(route: &Route, account: &mut Account) -> Option<Reason> {
    let service = &route.service;
    let caller = account.identities.caller().cloned();
    let source = account.conn.client().ip();
    let caller = Caller { identity: caller.as_ref(), source, port: service.port };
    let endpoint = service.refusing(route.side, &caller)?;
    let decision = endpoint.decide(&caller)?;
    account.identities.decided(&decision);
    let reason = refusal(&caller);
    account.audit(Verdict::Denied, Some(&decision), Some(reason));
    Some(reason)
}

/// Records that a client is let through to an endpoint, where anything was decided about it.
pub(crate) fn passed(endpoint: &Endpoint, account: &mut Account) {
    let Some(service) = account.service().cloned() else { return };
    let caller = account.identities.caller().cloned();
    let source = account.conn.client().ip();
    let caller = Caller { identity: caller.as_ref(), source, port: service.port };
    let decision = endpoint.decide(&caller).or_else(|| Some(service.access()?.decide(&caller)));
    if let Some(decision) = &decision {
        account.identities.decided(decision);
    }
    if decision.is_some() || caller.identity.is_some() {
        account.audit(Verdict::Allowed, decision.as_ref(), None);
    }
}

/// The reason that a refused caller gets.
pub(crate) fn refusal(caller: &Caller<'_>) -> Reason {
    if caller.identity.is_some() { Reason::IdentityDenied } else { Reason::SourceDenied }
}
