//! Predicts what would be decided about a caller: by its address, by trust, and by rules, in the order in which a
//! connection meets them.

use std::net::IpAddr;

use isthmus_certs::{SpiffeId, Trust};
use isthmus_model::access::{Caller, Decision, Verdict};
use isthmus_model::admin::Decided;

use crate::access;
use crate::control::Control;
use crate::reason::Reason;
use crate::route::Route;
use crate::snapshot::Service;

/// Who asks for a service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking<'a> {
    /// The identity that the address has on the listener.
    pub(super) by_address: Option<&'a SpiffeId>,
    /// The identity that the question names.
    pub(super) claimed: Option<&'a SpiffeId>,
    /// The address.
    pub(super) source: IpAddr,
}

/// What would be decided; nothing where only the handshake would tell who calls.
#[derive(Debug, Default)]
pub(super) struct Prediction<'a> {
    pub(super) decision: Option<Decision<'a>>,
    pub(super) refusal: Option<Reason>,
    /// The cause of a refusal that is no rule.
    cause: Option<String>,
}

impl<'a> Asking<'a> {
    /// Returns the identity that the gateway would see.
    pub(super) fn seen(&self, service: &Service) -> Option<&'a SpiffeId> {
        self.by_address.or(self.claimed.filter(|_| service.ends_tls()))
    }

    /// Predicts the decision about a connection to a service.
    pub(super) fn predict<'r>(&self, route: &'r Route, control: &Control) -> Prediction<'r> {
        let service = &route.service;
        if let (Some(own), Some(claimed)) = (self.by_address, self.claimed)
            && own != claimed
        {
            let cause = format!("{} has the identity {own} on this listener", self.source);
            return Prediction::refused(Reason::IdentityDenied, cause);
        }
        let identity = self.seen(service);
        if let Some(claimed) = self.claimed.filter(|_| self.by_address.is_none() && service.ends_tls())
            && let Some((reason, cause)) = distrust(claimed, control)
        {
            return Prediction::refused(reason, cause);
        }
        if identity.is_none() && service.ends_tls() {
            return Prediction::default();
        }
        let caller = Caller { identity, source: self.source, port: service.port };
        let own = service.access().map(|access| access.decide(&caller));
        if own.as_ref().is_some_and(|own| own.verdict == Verdict::Denied) {
            return Prediction::of_rules(own, &caller);
        }
        let mut open = service.endpoints.iter().filter(|one| one.weight > 0 && one.takes(route.side));
        let through =
            open.find(|endpoint| endpoint.admits(&caller)).or(service.refusing(route.side, &caller));
        Prediction::of_rules(through.and_then(|endpoint| endpoint.decide(&caller)).or(own), &caller)
    }
}

/// Why the handshake would refuse an identity, whatever the rules say.
fn distrust(id: &SpiffeId, control: &Control) -> Option<(Reason, String)> {
    let trust = control.process.trust.get().map(Trust::current)?;
    let domain = id.trust_domain();
    if trust.bundles.get(domain).is_none() {
        return Some((Reason::TlsFailed, format!("there is no bundle of {domain}")));
    }
    let denied = trust.bundles.denied(domain)?;
    let entry = denied.identities().find(|pattern| pattern.matches(id))?;
    Some((Reason::IdentityDenied, format!("the deny-list of {domain} has {entry}")))
}

impl<'a> Prediction<'a> {
    fn refused(reason: Reason, cause: String) -> Prediction<'a> {
        Prediction { decision: None, refusal: Some(reason), cause: Some(cause) }
    }

    fn of_rules(decision: Option<Decision<'a>>, caller: &Caller<'_>) -> Prediction<'a> {
        let is_denied = decision.as_ref().is_some_and(|decision| decision.verdict == Verdict::Denied);
        Prediction { decision, refusal: is_denied.then(|| access::refusal(caller)), cause: None }
    }

    /// Returns the decision as the page shows it.
    pub(super) fn page(&self) -> Option<Decided> {
        let of_rules = self.decision.as_ref().map(Decided::from);
        let cause = self.cause.clone();
        let without = cause.map(|cause| Decided {
            verdict: Verdict::Denied,
            rule: None,
            dry_run: Vec::new(),
            cause: Some(cause),
        });
        of_rules.or(without)
    }
}
