//! Asks the rules of a service about a connection, and records what they say.

use isthmus_model::access::{Caller, Verdict};

use crate::account::Account;
use crate::reason::Reason;
use crate::snapshot::Service;

/// Refuses a client that the rules of the service refuse.
///
/// # Errors
/// `identity_denied`, or `source_denied` for a client whose identity nobody here sees.
pub(crate) fn admit(service: &Service, account: &mut Account) -> Result<(), Reason> {
    let Some(access) = service.access() else { return Ok(()) };
    let source = account.conn.client().ip();
    let caller = Caller { identity: account.identities.caller(), source, port: service.port };
    let refusal = refusal(&caller);
    let decision = access.decide(&caller);
    account.identities.decided(&decision);
    match decision.verdict {
        Verdict::Allowed => Ok(()),
        Verdict::Denied => Err(refusal),
    }
}

/// The reason that a refused caller gets.
pub(crate) fn refusal(caller: &Caller<'_>) -> Reason {
    if caller.identity.is_some() { Reason::IdentityDenied } else { Reason::SourceDenied }
}
