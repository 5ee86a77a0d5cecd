//! Reads Envoy's Cluster as an upstream: balancing, limits, and where its endpoints come from. (In Isthmus a cluster is
//! a site.)

use std::time::Duration;

use prost::Message as _;

use super::assignment::{self, Assignment};
use super::fields::{Shape, unknown};
use super::filters::{duration, is_raw, observes};
use super::{message, quoted};
use isthmus_model::services::Balance;
use isthmus_model::services::defaults::CONNECTION_COUNTS;
use isthmus_proto::envoy::config::cluster::v3::Cluster;
use isthmus_proto::envoy::config::cluster::v3::cluster::common_lb_config::LocalityConfigSpecifier;
use isthmus_proto::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
use isthmus_proto::envoy::config::core::v3::RoutingPriority;

/// Fields that are read or ignored. Ignored: statistics, HTTP, name resolution and outlier detection, which the
/// gateway's own file configures.
static SHAPE: Shape = Shape {
    name: "Cluster",
    plain: &[
        1, 2, 3, 4, 5, 6, 8, 9, 10, 13, 14, 16, 17, 18, 19, 20, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32,
        33, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 49, 50, 52, 53, 54, 55, 57, 58, 59,
    ],
    messages: &[],
};
const FILTERS: u32 = 40;
/// Envoy's defaults.
const CONNECTIONS: u32 = 1024;
const CONNECT: Duration = Duration::from_secs(5);

/// A set of equivalent endpoints.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Upstream {
    pub(super) balance: Balance,
    pub(super) connect: Duration,
    /// None: no limit.
    pub(super) max_connections: Option<u32>,
    /// Localities are weighted, whatever the weights of their endpoints.
    pub(super) by_locality: bool,
    pub(super) endpoints: Endpoints,
}

/// Where the endpoints come from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Endpoints {
    /// From the ClusterLoadAssignment of this name.
    Discovered(String),
    /// From the Cluster itself.
    Written(Assignment),
}

/// Reads a Cluster.
///
/// # Errors
/// What of it is not supported.
pub(super) fn read(name: &str, bytes: &[u8]) -> Result<Upstream, String> {
    let cluster = Cluster::decode(bytes).map_err(|error| format!("cannot be read: {error}"))?;
    if cluster.name != name {
        return Err(format!("has the name {}", quoted(&cluster.name)));
    }
    if let Some(field) = unknown(bytes, &SHAPE) {
        return Err(format!("{field} is not supported"));
    }
    check(&cluster, bytes)?;
    let connect = cluster.connect_timeout.map(|time| duration("connect_timeout", time)).transpose()?;
    let locality =
        cluster.common_lb_config.as_ref().and_then(|common| common.locality_config_specifier.as_ref());
    Ok(Upstream {
        balance: balance(cluster.lb_policy)?,
        connect: connect.filter(|time| !time.is_zero()).unwrap_or(CONNECT),
        max_connections: max_connections(&cluster)?,
        by_locality: matches!(locality, Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_))),
        endpoints: endpoints(&cluster)?,
    })
}

/// Refuses settings that would change the bytes sent to an endpoint, or its choice.
fn check(cluster: &Cluster, bytes: &[u8]) -> Result<(), String> {
    if let Some(socket) = cluster.transport_socket.as_ref().filter(|socket| !is_raw(socket)) {
        return Err(format!(
            "transport_socket {} is set: originating TLS here is not supported yet",
            quoted(&socket.name)
        ));
    }
    let set = [
        ("transport_socket_matches", !cluster.transport_socket_matches.is_empty()),
        ("transport_socket_matcher", cluster.transport_socket_matcher.is_some()),
        ("health_checks", !cluster.health_checks.is_empty()),
        ("lb_subset_config", cluster.lb_subset_config.is_some()),
        ("load_balancing_policy", cluster.load_balancing_policy.is_some()),
    ];
    if let Some((field, _)) = set.iter().find(|(_, set)| *set) {
        return Err(format!("{field} is not supported"));
    }
    for filter in super::fields::messages(bytes, FILTERS) {
        let filter = Filter::decode(filter).map_err(|error| format!("filters cannot be read: {error}"))?;
        let only_observes =
            filter.typed_config.as_ref().is_some_and(|any| observes(message(&any.type_url), &any.value));
        if !only_observes {
            return Err(format!("filter {} is not supported", quoted(&filter.name)));
        }
    }
    Ok(())
}

/// An upstream network filter.
#[derive(Clone, PartialEq, prost::Message)]
struct Filter {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    typed_config: Option<prost_types::Any>,
}

fn balance(policy: i32) -> Result<Balance, String> {
    match LbPolicy::try_from(policy) {
        Ok(LbPolicy::RoundRobin) => Ok(Balance::RoundRobin),
        Ok(LbPolicy::LeastRequest) => Ok(Balance::LeastConnections),
        Ok(LbPolicy::Random) => Ok(Balance::Random),
        // A chain hashes the source, or nothing: then any choice will do.
        Ok(LbPolicy::RingHash | LbPolicy::Maglev) => Ok(Balance::SourceHash),
        Ok(other) => Err(format!("lb_policy {} is not supported", other.as_str_name())),
        Err(_) => Err(format!("lb_policy {policy} is unknown")),
    }
}

fn max_connections(cluster: &Cluster) -> Result<Option<u32>, String> {
    let breakers = cluster.circuit_breakers.clone().unwrap_or_default();
    if !breakers.per_host_thresholds.is_empty() {
        return Err("circuit_breakers.per_host_thresholds is not supported".to_owned());
    }
    let default = breakers.thresholds.iter().find(|entry| entry.priority == RoutingPriority::Default as i32);
    let most = default.and_then(|entry| entry.max_connections).unwrap_or(CONNECTIONS);
    Ok(Some(most).filter(|most| u64::from(*most) <= CONNECTION_COUNTS.1))
}

fn endpoints(cluster: &Cluster) -> Result<Endpoints, String> {
    let kind = match &cluster.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => *kind,
        Some(ClusterDiscoveryType::ClusterType(kind)) => {
            return Err(format!("cluster_type {} is not supported", quoted(&kind.name)));
        }
        None => DiscoveryType::Static as i32,
    };
    match DiscoveryType::try_from(kind) {
        Ok(DiscoveryType::Eds) => {
            let service = cluster.eds_cluster_config.as_ref().map(|eds| eds.service_name.as_str());
            let name = service.filter(|name| !name.is_empty()).unwrap_or(&cluster.name);
            Ok(Endpoints::Discovered(name.to_owned()))
        }
        Ok(kind @ (DiscoveryType::Static | DiscoveryType::StrictDns | DiscoveryType::LogicalDns)) => {
            let names = if kind == DiscoveryType::Static {
                assignment::Hosts::Addresses
            } else {
                assignment::Hosts::Names
            };
            let written = cluster.load_assignment.clone().unwrap_or_default();
            let (assignment, refused) = assignment::made(written, names)?;
            match refused.as_slice() {
                [] => Ok(Endpoints::Written(assignment)),
                refused => Err(super::listed(refused)),
            }
        }
        Ok(DiscoveryType::OriginalDst) => Err("type ORIGINAL_DST is not supported".to_owned()),
        Err(_) => Err(format!("type {kind} is unknown")),
    }
}
