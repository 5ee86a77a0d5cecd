//! Defines how a listener for applications without TLS finds the service of a connection, the sockets that it opens for
//! that, and what is captured for it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use isthmus_model::HostName;
use isthmus_model::allotment::PlaceRange;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::settings::{Bind, Callers, Listener};

/// How a connection's service is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// There is one.
    Service {
        /// The host, or an instance of it.
        host: HostName,
        /// The service's port.
        port: u16,
    },
    /// By the port that the application dialled.
    ListenerPort,
    /// By the address and port that the application dialled, which nftables redirected.
    Redirected,
    /// By the address and port that the application dialled, which are those of the socket.
    Dialled,
}

/// How nftables sends connections to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum OriginalDestination {
    /// By `redirect` or `dnat`; the kernel remembers the destination.
    Redirect,
    /// By `tproxy`; the socket has the destination. The gateway needs CAP_NET_RAW.
    Tproxy,
}

/// How a listener comes by virtual addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum VirtualAddresses {
    /// It binds them, whether or not an interface has them.
    Bind,
}

/// The sockets of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sockets {
    /// One address.
    Address(SocketAddr),
    /// One address, which also accepts what TPROXY sends there.
    Transparent(SocketAddr),
    /// Ports of an address, as bindings come and go.
    Ports(IpAddr, PlaceRange<u16>),
    /// Virtual addresses and ports, as bindings come and go.
    Virtual,
}

impl Sockets {
    /// Returns the address that is bound at start; none: what is bound depends on bindings.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Sockets::Address(address) | Sockets::Transparent(address) => Some(*address),
            Sockets::Ports(..) | Sockets::Virtual => None,
        }
    }
}

impl fmt::Display for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sockets::Address(address) | Sockets::Transparent(address) => address.fmt(f),
            Sockets::Ports(IpAddr::V4(ip), ports) => write!(f, "{ip}:{ports}"),
            Sockets::Ports(IpAddr::V6(ip), ports) => write!(f, "[{ip}]:{ports}"),
            Sockets::Virtual => f.write_str("virtual addresses"),
        }
    }
}

impl Serialize for Sockets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Bind {
    /// Returns the address at which it accepts connections of a family, if it does from its start on.
    #[must_use]
    pub fn accepts(&self, is_ipv4: bool) -> Option<SocketAddr> {
        let takes_both =
            |address: &SocketAddr| address.ip().is_unspecified() && address.is_ipv6() && !self.ipv6_only;
        self.sockets.address().filter(|address| address.is_ipv4() == is_ipv4 || takes_both(address))
    }
}

impl Listener {
    /// Whether it needs bindings, or callers of the agent.
    #[must_use]
    pub fn needs_bindings(&self) -> bool {
        self.originate.as_ref().is_some_and(|originate| {
            !matches!(originate.to, Destination::Service { .. }) || originate.callers == Callers::OfAgent
        })
    }
}

/// What `isthmus-gateway capture` captures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capture {
    /// Ranges of virtual addresses, at least one.
    pub ranges: Vec<IpNet>,
    /// The DNS server for IPv4 queries and that for IPv6 queries.
    pub dns: Vec<SocketAddr>,
    /// Users whose traffic is not captured: names, or numbers.
    pub exclude_users: Vec<String>,
    /// The mark of packets for TPROXY, and the routing table for them.
    pub mark: u32,
}
