//! Decides which connections may reach an endpoint, and by which instance.

use isthmus_model::HostName;
use isthmus_model::access::{Caller, Decision, Verdict};

use super::endpoint::{Endpoint, EndpointMeta};
use super::service::Service;
use crate::config::settings::{Named, Scope, Side};

impl EndpointMeta {
    /// Returns the instances behind it, if it is another cluster's gateway.
    pub(super) fn beyond(&self) -> &[Named] {
        match &self.reach {
            Scope::RemoteGateway(beyond) => &beyond.instances,
            Scope::Exported { .. } | Scope::Local => &[],
        }
    }

    pub(super) fn has_names(&self) -> bool {
        self.instance.is_some() || !self.aliases.is_empty() || !self.beyond().is_empty()
    }
}

impl Service {
    /// Whether callers are told apart at it, or at one of its endpoints.
    pub(super) fn has_rules(&self) -> bool {
        self.access().is_some() || self.endpoints.iter().any(|endpoint| endpoint.traits.access.is_some())
    }

    /// Returns an endpoint that connections of this side could reach, if the rules of its cluster let this caller through.
    pub(crate) fn refusing(&self, side: Side, caller: &Caller<'_>) -> Option<&Endpoint> {
        let mut reached =
            self.endpoints.iter().filter(|endpoint| endpoint.weight > 0 && endpoint.takes(side));
        reached.find(|endpoint| !endpoint.admits(caller))
    }
}

impl Endpoint {
    /// Returns what the rules of its cluster say about a caller, if that is another one and has rules.
    pub(crate) fn decide(&self, caller: &Caller<'_>) -> Option<Decision<'_>> {
        self.traits.access.as_ref().map(|access| access.decide(caller))
    }

    /// Whether the rules of its cluster let a caller through, as far as they are known here.
    pub(crate) fn admits(&self, caller: &Caller<'_>) -> bool {
        self.decide(caller).is_none_or(|decision| decision.verdict == Verdict::Allowed)
    }

    /// Whether connections of this side may reach it.
    pub(crate) fn takes(&self, side: Side) -> bool {
        side == Side::Outbound || matches!(self.traits.reach, Scope::Exported { .. })
    }

    /// Whether it is this instance, or a gateway to it, for connections of this side.
    pub(crate) fn is_instance(&self, name: &HostName, side: Side) -> bool {
        match &self.traits.reach {
            Scope::RemoteGateway(_) => self.traits.beyond().iter().any(|named| named.name == *name),
            Scope::Exported { by_name: false } if side == Side::EastWest => false,
            Scope::Exported { .. } | Scope::Local => self.traits.instance.as_ref() == Some(name),
        }
    }

    /// Whether it is another cluster's gateway, and ends the TLS there.
    pub(crate) fn is_terminated(&self) -> bool {
        matches!(&self.traits.reach, Scope::RemoteGateway(beyond) if beyond.terminates)
    }

    /// Returns its part of the split, and its priority: what a group has in common.
    pub(crate) fn place(&self) -> (u8, u8) {
        (self.part, self.priority)
    }

    /// Whether it counts for the health of its priority; one that was taken out of service does not.
    pub(super) fn counts(&self) -> bool {
        self.weight > 0 || !self.is_ready
    }

    /// Returns how many endpoints it counts for: itself, or its share of those behind it.
    pub(super) fn stands_for(&self) -> u64 {
        match &self.traits.reach {
            Scope::RemoteGateway(_) if self.weight > 0 => self.weight.into(),
            _ => self.unit.into(),
        }
    }

    /// Returns its cluster, if it is another cluster's gateway.
    #[must_use]
    pub fn cluster(&self) -> Option<&str> {
        match &self.traits.reach {
            Scope::RemoteGateway(beyond) => Some(beyond.cluster.as_str()),
            Scope::Exported { .. } | Scope::Local => None,
        }
    }
}
