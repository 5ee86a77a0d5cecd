//! Decides which connections may reach an endpoint, and by which instance.

use isthmus_model::HostName;

use super::service::{Endpoint, EndpointMeta};
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

impl Endpoint {
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

    /// Returns its cluster, if it is another cluster's gateway.
    #[must_use]
    pub fn cluster(&self) -> Option<&str> {
        match &self.traits.reach {
            Scope::RemoteGateway(beyond) => Some(beyond.cluster.as_str()),
            Scope::Exported { .. } | Scope::Local => None,
        }
    }
}
