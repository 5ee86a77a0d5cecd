//! `services:`, the one section that a gateway's file and a registry's file share: what is written, and the
//! services that come of it. These types cannot hold a wrong service. Not who else offers it, or who may see it.

pub mod defaults;
mod names;
pub mod raw;
mod resolve;
mod scope;
mod table;

use std::time::Duration;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::host::{HostName, HostPattern};
use crate::locality::Locality;

use super::address::Target;
use super::units;

pub use resolve::{Refusal, timeouts};
pub use scope::{ExportMeta, Named, RemoteGateway, Scope, Staleness};
pub use table::{Entry, Table};

/// One service: a host and a port, and who serves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Exact or `*.suffix`; unique together with the port.
    pub host: HostPattern,
    /// The port in `outbound_.PORT_._.HOST`.
    pub port: u16,
    /// Whether the bare host, the aliases and `INSTANCE.HOST` mean this port.
    #[serde(rename = "bare")]
    pub default_port: bool,
    /// Other names.
    pub aliases: Vec<HostPattern>,
    /// Condition: the client offers one of these protocols. Empty: no condition.
    pub alpn: Vec<String>,
    /// Condition: the client's address is in one of these. Empty: no condition.
    pub sources: Vec<IpNet>,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// Connections at once; none: no limit of its own.
    #[serde(serialize_with = "units::count_or_off")]
    pub max_connections: Option<u32>,
    /// Send a PROXY v2 header with the client's address and the SNI.
    pub send_proxy: bool,
    /// This service's deadlines, the general ones filled in.
    pub timeouts: ServiceTimeouts,
    /// Who serves it; may be empty.
    pub endpoints: Vec<Endpoint>,
    /// Connections that come from other clusters may name it.
    pub exposed: bool,
    /// What only the agent of a registry reads; none where nothing is said.
    pub about: Option<Box<ExportMeta>>,
}

impl Service {
    /// Whether VMs may add themselves to it.
    #[must_use]
    pub fn takes_registrations(&self) -> bool {
        self.about.as_ref().is_some_and(|about| about.registered)
    }
}

/// How an endpoint is chosen among the healthy ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Balance {
    /// In turn, by weight.
    #[default]
    RoundRobin,
    /// Of two chosen at random, the one with fewer connections for its weight.
    LeastConnections,
    /// At random, by weight.
    Random,
    /// By the client's address: the same endpoint while it lives.
    SourceHash,
}

/// One address that serves a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Where.
    pub address: Target,
    /// Its stable name, one label, unique in the service.
    pub instance: Option<HostName>,
    /// 0 takes no new connections.
    pub weight: u32,
    /// Where it stands.
    pub locality: Locality,
    /// Other names of the instance.
    pub aliases: Box<[HostName]>,
    /// Who may end up here.
    pub reach: Scope,
    /// 0 is tried first; a higher one only where no lower one is healthy.
    pub priority: u8,
}

/// Deadlines of one service. None: no limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ServiceTimeouts {
    /// One attempt to connect.
    #[serde(serialize_with = "units::duration")]
    pub connect: Duration,
    /// All attempts together.
    #[serde(serialize_with = "units::duration")]
    pub connect_total: Duration,
    /// No byte in either direction.
    #[serde(serialize_with = "units::duration_or_off")]
    pub idle: Option<Duration>,
    /// One side closed, the other silent.
    #[serde(serialize_with = "units::duration_or_off")]
    pub half_closed: Option<Duration>,
    /// From connect to the server's first byte.
    #[serde(serialize_with = "units::duration_or_off")]
    pub first_byte: Option<Duration>,
    /// From accept to the end.
    #[serde(serialize_with = "units::duration_or_off")]
    pub max_duration: Option<Duration>,
}

impl Default for ServiceTimeouts {
    /// Those of a service where nothing is said.
    fn default() -> ServiceTimeouts {
        ServiceTimeouts {
            connect: defaults::CONNECT,
            connect_total: defaults::CONNECT_TOTAL,
            idle: defaults::IDLE,
            half_closed: defaults::HALF_CLOSED,
            first_byte: defaults::FIRST_BYTE,
            max_duration: defaults::MAX_DURATION,
        }
    }
}
