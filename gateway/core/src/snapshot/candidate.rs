//! An endpoint before its name is resolved.

use std::net::SocketAddr;
use std::sync::Arc;

use super::Resolved;
use super::endpoint::EndpointMeta;
use crate::config::settings::Target;

/// An endpoint before its name is resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) target: Target,
    pub(super) weight: u32,
    pub(super) priority: u8,
    pub(super) part: u8,
    pub(super) is_ready: bool,
    pub(super) traits: Arc<EndpointMeta>,
}

impl Candidate {
    /// Whether it may resolve to an address. Literal addresses were checked on import; names are checked here.
    pub(super) fn may_stand_at(&self, address: SocketAddr) -> bool {
        matches!(self.target, Target::Address(_)) || self.traits.reach.allows(address.ip())
    }
}

/// Returns the addresses of a target.
pub(super) fn addresses(target: &Target, resolved: &Resolved) -> Vec<SocketAddr> {
    match target {
        Target::Address(address) => vec![*address],
        Target::Name { host, port } => {
            let addresses = resolved.get(host).map(Vec::as_slice).unwrap_or_default();
            addresses.iter().map(|ip| SocketAddr::new(*ip, *port)).collect()
        }
    }
}
