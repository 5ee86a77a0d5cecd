//! Reads the filters of a chain: target clusters, timeouts and access rules. Filters that only observe are ignored, by
//! type.

use std::time::Duration;

use prost::Message as _;

use super::fields::{Shape, unknown};
use super::matching::Sources;
use super::{MOST_ITEMS, message, quoted, rbac};
use isthmus_proto::envoy::config::core::v3::TransportSocket;
use isthmus_proto::envoy::config::core::v3::transport_socket;
use isthmus_proto::envoy::config::listener::v3::filter::ConfigType;
use isthmus_proto::envoy::config::listener::v3::{Filter, FilterChain};
use isthmus_proto::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use isthmus_proto::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::ClusterSpecifier;
use isthmus_proto::envoy::r#type::v3::hash_policy::PolicySpecifier;

/// Filters that affect neither the target nor the admission of a connection, by the type of their settings: a filter's
/// name is arbitrary. Istio's are sometimes in a wrapper.
pub(super) const OBSERVERS: &[&str] = &[
    "stats.PluginConfig",
    "envoy.tcp.metadataexchange.config.MetadataExchange",
    "envoy.extensions.network_filters.peer_metadata.Config",
];
/// Types that carry settings of another type.
const WRAPPERS: &[&str] = &["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"];
const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const RBAC: &str = "envoy.extensions.filters.network.rbac.v3.RBAC";
const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";

static TCP_PROXY_SHAPE: Shape = Shape {
    name: "TcpProxy",
    // Ignored: statistics, logs, connect attempts and jitter.
    plain: &[1, 2, 5, 7, 8, 13, 15, 16, 17, 18, 20],
    messages: &[(10, &WEIGHTED), (11, &HASH)],
};
static WEIGHTED: Shape = Shape { name: "TcpProxy.weighted_clusters", plain: &[], messages: &[(1, &WEIGHT)] };
static WEIGHT: Shape = Shape { name: "ClusterWeight", plain: &[1, 2], messages: &[] };
static HASH: Shape = Shape { name: "HashPolicy", plain: &[1, 2], messages: &[] };

/// Where a chain sends connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Forward {
    /// Clusters by name, each with its weight.
    pub(super) clusters: Vec<(String, u32)>,
    /// None: the default. Some(None): no limit.
    pub(super) idle: Option<Option<Duration>>,
    pub(super) max_duration: Option<Duration>,
}

/// Reads a chain's filters: the targets, and the admitted sources.
///
/// # Errors
/// What of them is not supported.
pub(super) fn read(chain: &FilterChain) -> Result<(Forward, Sources), String> {
    // Deprecated, and it would change which address counts as the client's.
    if chain.use_proxy_proto == Some(true) {
        return Err("use_proxy_proto is not supported".to_owned());
    }
    if let Some(socket) = &chain.transport_socket
        && !is_raw(socket)
    {
        return Err(format!(
            "transport_socket {} is set: terminating TLS here is not supported yet",
            quoted(&socket.name)
        ));
    }
    let (last, before) = chain.filters.split_last().ok_or("it has no filters")?;
    let mut sources = Sources::Any;
    for filter in before {
        let (kind, bytes) = settings(filter)?;
        match kind {
            RBAC => sources = sources.and(rbac::read(bytes)?),
            kind if observes(kind, bytes) => {}
            kind => {
                return Err(format!("filter {} ({}) is not supported", quoted(&filter.name), quoted(kind)));
            }
        }
    }
    let (kind, bytes) = settings(last)?;
    if kind != TCP_PROXY {
        let name = quoted(&last.name);
        return Err(format!("its last filter is {name} ({}): only TcpProxy is supported", quoted(kind)));
    }
    Ok((tcp_proxy(bytes)?, sources))
}

/// Whether a transport socket leaves the bytes unchanged.
pub(super) fn is_raw(socket: &TransportSocket) -> bool {
    match &socket.config_type {
        Some(transport_socket::ConfigType::TypedConfig(any)) => message(&any.type_url) == RAW_BUFFER,
        None => false,
    }
}

/// Whether settings of this type only observe.
pub(super) fn observes(kind: &str, bytes: &[u8]) -> bool {
    OBSERVERS.contains(&kind) || (WRAPPERS.contains(&kind) && OBSERVERS.contains(&wrapped(bytes).as_str()))
}

/// The type that a wrapper carries.
fn wrapped(bytes: &[u8]) -> String {
    #[derive(Clone, PartialEq, prost::Message)]
    struct TypedStruct {
        #[prost(string, tag = "1")]
        type_url: String,
    }
    TypedStruct::decode(bytes).map(|inner| message(&inner.type_url).to_owned()).unwrap_or_default()
}

fn settings(filter: &Filter) -> Result<(&str, &[u8]), String> {
    match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) => Ok((message(&any.type_url), &any.value)),
        Some(ConfigType::ConfigDiscovery(_)) => {
            Err(format!("filter {} uses config_discovery, which is not supported", quoted(&filter.name)))
        }
        None => Err(format!("filter {} has no typed_config", quoted(&filter.name))),
    }
}

fn tcp_proxy(bytes: &[u8]) -> Result<Forward, String> {
    let proxy = TcpProxy::decode(bytes).map_err(|error| format!("TcpProxy cannot be read: {error}"))?;
    if let Some(field) = unknown(bytes, &TCP_PROXY_SHAPE) {
        return Err(format!("{field} is not supported"));
    }
    for policy in &proxy.hash_policy {
        if !matches!(policy.policy_specifier, Some(PolicySpecifier::SourceIp(_))) {
            return Err("TcpProxy.hash_policy other than source_ip is not supported".to_owned());
        }
    }
    let clusters = match proxy.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => vec![(name, 1)],
        Some(ClusterSpecifier::WeightedClusters(list)) if list.clusters.len() <= MOST_ITEMS => {
            list.clusters.into_iter().map(|cluster| (cluster.name, cluster.weight)).collect()
        }
        Some(ClusterSpecifier::WeightedClusters(_)) => {
            return Err(format!("TcpProxy.weighted_clusters has more than {MOST_ITEMS} clusters"));
        }
        None => Vec::new(),
    };
    if clusters.iter().all(|(_, weight)| *weight == 0) || clusters.iter().any(|(name, _)| name.is_empty()) {
        return Err("TcpProxy names no cluster".to_owned());
    }
    let idle = proxy.idle_timeout.map(|time| duration("TcpProxy.idle_timeout", time)).transpose()?;
    let most = proxy.max_downstream_connection_duration;
    let most = most.map(|time| duration("TcpProxy.max_downstream_connection_duration", time)).transpose()?;
    Ok(Forward {
        clusters,
        idle: idle.map(|time| Some(time).filter(|time| !time.is_zero())),
        max_duration: most.filter(|time| !time.is_zero()),
    })
}

/// A duration: not negative, and capped at what the gateway's own file may say.
pub(super) fn duration(field: &str, time: prost_types::Duration) -> Result<Duration, String> {
    let time = Duration::try_from(time).map_err(|_| format!("{field} is negative"))?;
    Ok(time.min(isthmus_model::values::LONGEST))
}
