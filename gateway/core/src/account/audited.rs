//! Tells the audit log what is decided about a connection's caller.

use std::sync::Arc;

use isthmus_model::access::{Decision, Verdict};

use super::Account;
use crate::audit::Finding;
use crate::reason::Reason;
use crate::snapshot::Service;

impl Account {
    /// Returns the service, once it is known.
    pub(crate) fn service(&self) -> Option<&Arc<Service>> {
        self.service.as_ref()
    }

    /// Audits a verdict about the caller, once until it changes.
    pub(crate) fn audit(
        &mut self,
        verdict: Verdict,
        decision: Option<&Decision<'_>>,
        reason: Option<Reason>,
    ) {
        if !self.identities.audit(verdict) {
            return;
        }
        let cause = reason.and_then(|_| self.identities.error());
        let finding = Finding {
            conn: &self.conn,
            service: self.service.as_deref(),
            caller: self.identities.caller(),
            server: self.identities.server(),
            verdict,
            decision,
            reason,
            cause: cause.map(str::to_owned),
        };
        finding.record(&self.worker.process, self.worker.index);
    }

    /// Audits an end that is a refusal by no rule: in a handshake, or for an address. A live connection that is not
    /// allowed any more was audited by the recheck.
    pub(super) fn audit_end(&mut self) {
        let is_refusal =
            matches!(self.reason, Reason::IdentityDenied | Reason::SourceDenied | Reason::TlsFailed);
        if is_refusal && !self.conn.is_denied() {
            self.audit(Verdict::Denied, None, Some(self.reason));
        }
    }
}
