//! What an agent's file says of a peer (consent, access), and the state of the contact with it.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use isthmus_certs::TrustDomain;

use isthmus_grpc::budget::LogLimiter;
use isthmus_model::address::Ranges;
use isthmus_registry::imports::Consent;
use isthmus_registry::registry::PeerAccess;

use super::config::{Peer, Settings};

/// The state of the contact with a peer's agent.
#[derive(Clone, Debug)]
pub(super) struct Contact {
    pub(super) address: String,
    pub(super) trust_domain: TrustDomain,
    pub(super) connected: bool,
    /// Why the last contact was lost.
    pub(super) error: Option<String>,
    /// When `connected` last changed.
    pub(super) since: SystemTime,
    /// Invalid slices rejected since the start.
    pub(super) refusals: u64,
    /// The last rejected slice, and why.
    pub(super) refusal: Option<String>,
    pub(super) bundle: BundleStatus,
    /// Limits how many of its refusals are logged.
    pub(super) log_limiter: Arc<LogLimiter>,
}

/// The outcome of a peer's bundle updates.
#[derive(Clone, Debug, Default)]
pub(super) struct BundleStatus {
    /// The sequence of the last bundle accepted since this agent started.
    pub(super) taken: Option<u64>,
    /// Updates rejected since the start.
    pub(super) refusals: u64,
    /// The last rejected update and why, unless one was accepted since.
    pub(super) refusal: Option<String>,
    /// A recommended change on this side.
    pub(super) advice: Option<String>,
}

impl Contact {
    /// A peer that has not been connected yet.
    pub(super) fn none(peer: &Peer) -> Contact {
        Contact {
            address: peer.address.to_string(),
            trust_domain: peer.domain.clone(),
            connected: false,
            error: None,
            since: SystemTime::now(),
            refusals: 0,
            refusal: None,
            bundle: BundleStatus::default(),
            log_limiter: Arc::default(),
        }
    }
}

/// A time as Unix seconds, as pages render it.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What a peer may offer here.
pub(super) fn consent(settings: &Settings, peer: &Peer) -> Consent {
    let import = settings.imports.iter().find(|import| import.cluster == peer.cluster);
    let own = Some(settings.network.as_str());
    Consent {
        cluster: peer.cluster.clone(),
        domain: peer.domain.clone(),
        network: peer.network.clone(),
        is_reachable: settings.reachability.allows(own, peer.network.as_deref()),
        is_near: peer.network.as_deref() == own,
        hosts: import.map(|import| import.hosts.clone()).unwrap_or_default(),
        shared: isthmus_registry::exports::shared(&settings.exports),
        gateways: Ranges(import.map(|import| import.gateways.clone()).unwrap_or_default()),
        gateway_hosts: import.map(|import| import.gateway_hosts.clone()).unwrap_or_default(),
        endpoints: import.map(|import| import.endpoints.clone()).unwrap_or_default(),
        limits: settings.limits.slices,
    }
}

/// How a peer sees this cluster's slices.
pub(super) fn peer_access(settings: &Settings, peer: &Peer) -> PeerAccess {
    let own = Some(settings.network.as_str());
    match peer.network.as_deref() {
        network if !settings.reachability.allows(network, own) => PeerAccess::Hidden,
        network if network == own => PeerAccess::Direct,
        _ => PeerAccess::ViaGateway,
    }
}
