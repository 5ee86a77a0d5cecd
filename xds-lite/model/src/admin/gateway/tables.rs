//! The lists of a gateway: `/routes`, `/services` and `/connections`, each a page of a longer list.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Locality;
use crate::services::Balance;

/// A page of a list: the items from `offset` on, at most `limit`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "PageOf{T}")]
pub struct Paged<T> {
    /// Items in all that match `name`.
    pub total: u64,
    /// Items skipped.
    #[serde(default)]
    pub offset: u64,
    /// The most items of a page.
    #[serde(default)]
    pub limit: u64,
    /// The items.
    pub items: Vec<T>,
}

/// The names of services, and the listeners' defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Routes {
    /// The names.
    #[serde(flatten)]
    pub page: Paged<Route>,
    /// The listeners that lead unmatched names to a service.
    #[serde(default)]
    pub defaults: Vec<DefaultService>,
}

/// A name and the service that it leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Route {
    /// The name in a ClientHello: exact, or `*.suffix`.
    pub name: String,
    /// The service, `HOST:PORT`.
    pub service: String,
    /// Condition: the client offers one of these protocols; empty: no condition.
    #[serde(default)]
    pub alpn: Vec<String>,
    /// Condition: the client's address is in one of these ranges; empty: no condition.
    #[serde(default)]
    pub sources: Vec<String>,
}

/// The default of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DefaultService {
    /// The listener.
    pub listener: String,
    /// The service, `HOST:PORT`.
    pub service: String,
}

/// A service and its endpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Service {
    /// The service, `HOST:PORT`.
    pub service: String,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// The policy of its traffic: what differs from the defaults, as files write it; `default`: nothing.
    #[serde(default)]
    pub traffic: String,
    /// Its open connections.
    #[serde(default)]
    pub connections: u32,
    /// Its endpoints.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
    /// Host names of endpoints that do not resolve.
    #[serde(default)]
    pub unresolved: Vec<String>,
    /// Endpoints left out because they failed their probes while the agent is unreachable.
    #[serde(default)]
    pub down: Vec<DownEndpoint>,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Endpoint {
    /// Its address, `IP:PORT`.
    pub address: String,
    /// Its stable name.
    pub instance: Option<String>,
    /// Its share of connections.
    #[serde(default)]
    pub weight: u32,
    /// Its priority: 0 is the nearest.
    #[serde(default)]
    pub priority: u8,
    /// Its locality.
    #[serde(default)]
    pub locality: Locality,
    /// The cluster behind it, if it is another cluster's gateway.
    pub cluster: Option<String>,
    /// False while it is ejected or has failed its probes: it receives no new connections.
    pub healthy: bool,
    /// Whether it is tried last for a while.
    #[serde(default)]
    pub demoted: bool,
    /// The outcome of the gateway's last ClientHello to it after a client's failed: `answered`, `alert`, `closed`,
    /// `reset`, `silent`, `unreached`, `not_served` or `not_asked`; none before the first.
    pub own_hello: Option<String>,
    /// Failures in a row.
    #[serde(default)]
    pub failures: u32,
    /// Its open connections.
    #[serde(default)]
    pub connections: u32,
}

/// An endpoint that failed its probes while the agent is unreachable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DownEndpoint {
    /// Its address as written.
    pub address: String,
    /// When it went down, RFC 3339.
    #[serde(default)]
    pub since: String,
    /// The error of the last probe.
    #[serde(default)]
    pub why: String,
}

/// An open connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Connection {
    /// Its number, also in the logs.
    pub id: u64,
    /// The listener.
    pub listener: Option<String>,
    /// The other end of the socket, `IP:PORT`.
    pub peer: String,
    /// The client: as `peer`, or from a PROXY header.
    pub client: String,
    /// The name in the ClientHello; none before it, or without one.
    pub sni: Option<String>,
    /// The service, `HOST:PORT`, once there is one.
    pub service: Option<String>,
    /// The endpoint, `IP:PORT`, once one was chosen.
    pub endpoint: Option<String>,
    /// When it was accepted, RFC 3339.
    #[serde(default)]
    pub since: String,
    /// Milliseconds since the last byte of either side.
    #[serde(default)]
    pub idle_ms: u64,
    /// Bytes from the client.
    #[serde(default)]
    pub bytes_in: u64,
    /// Bytes from the endpoint.
    #[serde(default)]
    pub bytes_out: u64,
}
