//! An endpoint as connections see it. Its state is in `crate::endpoint`; which connections reach it is in `reach`.

use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_model::access::RemoteAccess;
use isthmus_model::{HostName, Labels, Locality};

use super::Service;
use crate::config::settings::{HealthCheck, Scope};
use crate::endpoint::EndpointState;
use crate::socket;

/// One address of a service.
#[derive(Debug)]
pub struct Endpoint {
    /// Address to connect to.
    pub address: SocketAddr,
    /// Weight; 0 receives no new connections.
    pub weight: u32,
    pub(super) priority: u8,
    /// Its part of the split.
    pub(super) part: u8,
    /// How many endpoints it stands for, in the weights of its group, if it is none of another cluster's gateways.
    pub(super) unit: u8,
    /// Whether its registry says that it accepts connections; one that does not counts as unhealthy.
    pub(super) is_ready: bool,
    /// Its other properties.
    pub traits: Arc<EndpointMeta>,
    /// State that survives table swaps.
    pub state: Arc<EndpointState>,
}

/// Properties of an endpoint besides its address.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct EndpointMeta {
    /// Its instance name.
    pub instance: Option<HostName>,
    /// Other names of the instance.
    pub aliases: Box<[HostName]>,
    /// Its locality.
    pub locality: Locality,
    /// Its labels.
    pub labels: Labels,
    /// The connections that may reach it.
    pub reach: Scope,
    /// The rules for callers of its cluster, if that is another one and has any.
    pub access: Option<Arc<RemoteAccess>>,
}

/// The state of an endpoint: the one that it has, or that of an endpoint that joins the others.
pub(super) fn state(
    address: SocketAddr,
    check: &HealthCheck,
    before: Option<&Service>,
) -> Arc<EndpointState> {
    let before = before.map(|service| &service.endpoints[..]).unwrap_or_default();
    let Some(known) = before.iter().find(|known| known.address == address) else {
        return match check.slow_start {
            Some(_) if !before.is_empty() => {
                Arc::new(EndpointState::joining(socket::now(), check.slow_start))
            }
            _ => Arc::default(),
        };
    };
    if !check.probes() {
        known.state.health.forget_probes();
    }
    Arc::clone(&known.state)
}
