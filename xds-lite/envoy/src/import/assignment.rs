//! Reads a ClusterLoadAssignment: endpoints with locality, priority, weight and health.

use std::net::{IpAddr, SocketAddr};

use prost::Message as _;

use super::fields::{Shape, unknown};
use super::{MOST_ENDPOINTS, quoted};
use isthmus_model::address::Target;
use isthmus_model::host::HostName;
use isthmus_model::locality::Locality;
use isthmus_proto::envoy::config::core::v3::address::Address;
use isthmus_proto::envoy::config::core::v3::socket_address::{PortSpecifier, Protocol};
use isthmus_proto::envoy::config::core::v3::{HealthStatus, SocketAddress};
use isthmus_proto::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use isthmus_proto::envoy::config::endpoint::v3::locality_lb_endpoints::LbConfig;
use isthmus_proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints};

static SHAPE: Shape = Shape { name: "ClusterLoadAssignment", plain: &[1, 4, 5], messages: &[(2, &LOCALITY)] };
static LOCALITY: Shape =
    Shape { name: "LocalityLbEndpoints", plain: &[1, 3, 5, 6, 7, 8, 9], messages: &[(2, &ENDPOINT)] };
static ENDPOINT: Shape = Shape { name: "LbEndpoint", plain: &[1, 2, 3, 4, 5], messages: &[] };

/// The endpoints of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Assignment {
    pub(super) groups: Vec<Group>,
}

/// The endpoints of one locality and priority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// The lowest is preferred.
    pub(super) priority: u32,
    /// The locality's share among those of its priority.
    pub(super) weight: u32,
    pub(super) locality: Locality,
    pub(super) endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) address: Target,
    pub(super) weight: u32,
    pub(super) health: Health,
}

/// An endpoint's health according to the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Health {
    Good,
    /// Used only when none is good.
    Degraded,
    /// Receives no new connections.
    Bad,
}

/// How endpoints may be addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hosts {
    Addresses,
    /// By host names or addresses.
    Names,
}

/// Reads an assignment; also returns the refused endpoints, each with its reason.
///
/// # Errors
/// Why the whole assignment is refused.
pub(super) fn read(name: &str, bytes: &[u8]) -> Result<(Assignment, Vec<String>), String> {
    let assignment =
        ClusterLoadAssignment::decode(bytes).map_err(|error| format!("cannot be read: {error}"))?;
    if assignment.cluster_name != name {
        return Err(format!("has the cluster_name {}", quoted(&assignment.cluster_name)));
    }
    if let Some(field) = unknown(bytes, &SHAPE) {
        return Err(format!("{field} is not supported"));
    }
    made(assignment, Hosts::Addresses)
}

/// As [`read`], of a decoded assignment.
pub(super) fn made(
    assignment: ClusterLoadAssignment,
    hosts: Hosts,
) -> Result<(Assignment, Vec<String>), String> {
    if let Some(policy) = &assignment.policy {
        // Ignoring either would admit more connections, or for longer, than intended.
        let set = [
            ("drop_overloads", !policy.drop_overloads.is_empty()),
            ("endpoint_stale_after", policy.endpoint_stale_after.is_some()),
        ];
        if let Some((field, _)) = set.iter().find(|(_, set)| *set) {
            return Err(format!("policy.{field} is not supported"));
        }
    }
    let mut refused = Vec::new();
    let mut groups = Vec::with_capacity(assignment.endpoints.len());
    let mut left = MOST_ENDPOINTS;
    for group in assignment.endpoints {
        let group = self::group(group, hosts, &mut refused)?;
        left = left
            .checked_sub(group.endpoints.len())
            .ok_or_else(|| format!("has more than {MOST_ENDPOINTS} endpoints"))?;
        groups.push(group);
    }
    Ok((Assignment { groups }, refused))
}

fn group(group: LocalityLbEndpoints, hosts: Hosts, refused: &mut Vec<String>) -> Result<Group, String> {
    let listed = match group.lb_config {
        Some(LbConfig::LoadBalancerEndpoints(list)) => list.lb_endpoints,
        Some(LbConfig::LedsClusterLocalityConfig(_)) => {
            return Err("leds_cluster_locality_config is not supported".to_owned());
        }
        None => group.lb_endpoints,
    };
    let mut endpoints = Vec::with_capacity(listed.len().min(MOST_ENDPOINTS));
    for entry in &listed {
        match endpoint(entry, hosts) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(why) => refused.push(why),
        }
    }
    let locality = group.locality.unwrap_or_default();
    Ok(Group {
        priority: group.priority,
        // A locality without a weight gets nothing under locality-weighted balancing.
        weight: group.load_balancing_weight.unwrap_or(0),
        locality: Locality { region: locality.region, zone: locality.zone, sub_zone: locality.sub_zone },
        endpoints,
    })
}

fn endpoint(entry: &LbEndpoint, hosts: Hosts) -> Result<Endpoint, String> {
    let Some(HostIdentifier::Endpoint(endpoint)) = &entry.host_identifier else {
        return Err("an endpoint without an address is not supported".to_owned());
    };
    let address = match endpoint.address.as_ref().and_then(|address| address.address.as_ref()) {
        Some(Address::SocketAddress(socket)) => target(socket, hosts)?,
        Some(Address::Pipe(pipe)) => {
            return Err(format!("endpoint {} is a pipe, which is not supported", quoted(&pipe.path)));
        }
        Some(Address::EnvoyInternalAddress(_)) => {
            return Err("an endpoint is an internal address of Envoy, as for HBONE, which is not supported"
                .to_owned());
        }
        None => return Err("an endpoint has no address".to_owned()),
    };
    let health = match HealthStatus::try_from(entry.health_status) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy) => Health::Good,
        Ok(HealthStatus::Degraded) => Health::Degraded,
        Ok(HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout) => Health::Bad,
        Err(_) => {
            return Err(format!("endpoint {address} has the unknown health status {}", entry.health_status));
        }
    };
    Ok(Endpoint { address, weight: entry.load_balancing_weight.unwrap_or(1), health })
}

fn target(socket: &SocketAddress, hosts: Hosts) -> Result<Target, String> {
    let wrong = |what: &str| format!("endpoint {} {what}", quoted(&socket.address));
    if socket.protocol != Protocol::Tcp as i32 {
        return Err(wrong("does not use TCP, which is not supported"));
    }
    if !socket.resolver_name.is_empty() || !socket.network_namespace_filepath.is_empty() {
        return Err(wrong("has its own resolver or network namespace, which is not supported"));
    }
    let port = match &socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(*port).ok().filter(|port| *port != 0),
        Some(PortSpecifier::NamedPort(_)) | None => None,
    };
    let port = port.ok_or_else(|| wrong("has no port from 1 to 65535"))?;
    if let Ok(ip) = socket.address.parse::<IpAddr>() {
        return Ok(Target::Address(SocketAddr::new(ip.to_canonical(), port)));
    }
    match HostName::parse(&socket.address) {
        Ok(host) if hosts == Hosts::Names => Ok(Target::Name { host, port }),
        _ => Err(wrong("is not an IP address")),
    }
}
