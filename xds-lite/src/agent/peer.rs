//! Another cluster as an agent's file makes it: what it may bring, how it sees this one, and how it stands with it.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use isthmus_certs::TrustDomain;
use serde::Serialize;

use isthmus_grpc::budget::LogLimiter;
use isthmus_model::address::Ranges;
use isthmus_registry::imports::Consent;
use isthmus_registry::registry::PeerAccess;

use super::config::{Peer, Settings};

/// How it stands with another cluster's agent.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Contact {
    /// Where it is.
    pub(super) address: String,
    /// Who vouches for it.
    pub(super) trust_domain: TrustDomain,
    /// It answers.
    pub(super) connected: bool,
    /// What was wrong the last time.
    pub(super) error: Option<String>,
    /// When it last answered, or was lost.
    #[serde(serialize_with = "since")]
    pub(super) since: SystemTime,
    /// Slices of it that were refused as wrong, ever.
    pub(super) refusals: u64,
    /// The last of them, and why.
    pub(super) refusal: Option<String>,
    /// What it has said of its trust domain.
    pub(super) bundle: BundleStatus,
    /// How often its refusals are logged.
    #[serde(skip)]
    pub(super) told: Arc<LogLimiter>,
}

/// What became of what another cluster's agent says of its trust domain.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct BundleStatus {
    /// The number of the last bundle that was taken, since this agent has started.
    pub(super) taken: Option<u64>,
    /// What was refused, ever.
    pub(super) refusals: u64,
    /// The last of it and why, unless something was taken since.
    pub(super) refusal: Option<String>,
    /// What could be better on this side.
    pub(super) advice: Option<String>,
}

impl Contact {
    /// Of one that was not heard yet.
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
            told: Arc::default(),
        }
    }
}

fn since<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(seconds(*time))
}

/// A time as pages show it.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What a peer may bring.
pub(super) fn consent(settings: &Settings, peer: &Peer) -> Consent {
    let import = settings.imports.iter().find(|import| import.cluster == peer.cluster);
    let own = Some(settings.network.as_str());
    Consent {
        cluster: peer.cluster.clone(),
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

/// How slices look to a peer.
pub(super) fn peer_access(settings: &Settings, peer: &Peer) -> PeerAccess {
    let own = Some(settings.network.as_str());
    match peer.network.as_deref() {
        network if !settings.reachability.allows(network, own) => PeerAccess::Hidden,
        network if network == own => PeerAccess::Direct,
        _ => PeerAccess::ViaGateway,
    }
}
