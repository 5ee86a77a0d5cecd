//! What a gateway decides about a caller before it sends the connection on to another cluster: a refusal where that
//! cluster is sure to refuse. For good decides its owner.

use isthmus_certs::TrustDomain;
use serde::Serialize;

use super::{Access, Caller, Decision, Verdict, first};

/// Another cluster's rules for one of its ports, as far as they were sent to this side.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RemoteAccess {
    /// The rules that concern callers of `domain`.
    pub rules: Access,
    /// The trust domain of this side.
    pub domain: TrustDomain,
    /// Whether the owner's gateway ends TLS and learns the identity of every caller.
    pub ends_tls: bool,
}

impl RemoteAccess {
    /// Decides about a caller. Of one whose identity only the owner will see, or whose rules were not sent here, no more
    /// is known than which callers are refused whoever they are.
    #[must_use]
    pub fn decide(&self, caller: &Caller<'_>) -> Decision<'_> {
        let is_known = match caller.identity {
            Some(id) => *id.trust_domain() == self.domain,
            None => !self.ends_tls,
        };
        if is_known { self.rules.decide(caller) } else { self.rules.decide_about_anybody(caller) }
    }
}

impl Access {
    fn decide_about_anybody(&self, caller: &Caller<'_>) -> Decision<'_> {
        let caller = Caller { source: caller.source.to_canonical(), identity: None, ..*caller };
        let mut dry_run = Vec::new();
        let rule = first(&self.deny, &caller, Verdict::Denied, &mut dry_run);
        Decision { verdict: if rule.is_some() { Verdict::Denied } else { Verdict::Allowed }, rule, dry_run }
    }
}
