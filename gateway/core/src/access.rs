//! Decides which clients may use a service whose TLS ends here.

use std::collections::HashSet;
use std::net::IpAddr;

use isthmus_certs::SpiffeId;

use crate::config::settings;

/// Who may use a service: nobody, unless something allows it. A denial wins.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Access {
    allow: HashSet<SpiffeId>,
    deny: HashSet<SpiffeId>,
}

/// A client that asks to enter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller<'a> {
    /// The identity that it has proven.
    pub(crate) identity: Option<&'a SpiffeId>,
    /// Its address.
    pub(crate) source: IpAddr,
    /// The service's port.
    pub(crate) port: u16,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) allowed: bool,
}

impl Access {
    pub(crate) fn new(rules: &settings::Access) -> Access {
        let set = |ids: &[SpiffeId]| ids.iter().cloned().collect();
        Access { allow: set(&rules.allow), deny: set(&rules.deny) }
    }

    pub(crate) fn decide(&self, caller: &Caller<'_>) -> Decision {
        let allowed = caller.identity.is_some_and(|id| self.allow.contains(id) && !self.deny.contains(id));
        tracing::trace!(identity = ?caller.identity, source = %caller.source, port = caller.port, allowed, "access decided");
        Decision { allowed }
    }
}
