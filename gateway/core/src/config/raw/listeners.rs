//! `listeners:` as it is written. Not the services they lead to.

use isthmus_model::address::{Cidr, ListenAddress};
use isthmus_model::at::At;
use isthmus_model::units::Count;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::defaults;
use crate::config::settings::Side;

/// One address to accept on.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listener {
    /// Its label in logs and metrics: 1 to 63 ASCII letters, digits, `-`, `_` or `.`; unique. Default:
    /// `east-west` for the first, else `listener-N`, N being its position from 1. Needs a restart.
    #[schemars(extend("pattern" = "^[A-Za-z0-9._-]{1,63}$"))]
    pub(crate) name: Option<At<String>>,
    /// `IP:PORT` or `[IPV6]:PORT`; port 0 picks a free one. Needs a restart.
    #[schemars(required)]
    pub(crate) address: Option<At<ListenAddress>>,
    /// Who comes here: `east-west` is for other clusters, and reaches what is exposed to them and stands in
    /// this cluster; `outbound` is for local clients, and reaches other clusters' gateways, too.
    #[schemars(extend("default" = "east-west"))]
    pub(crate) side: Option<Side>,
    /// For IPv6 addresses only: refuse IPv4 on the same socket. Needs a restart.
    #[schemars(extend("default" = true))]
    pub(crate) ipv6_only: Option<At<bool>>,
    /// The kernel's accept queue, for each worker; the kernel caps it at net.core.somaxconn. Needs a restart.
    #[schemars(extend("default" = defaults::BACKLOG))]
    #[schemars(extend("minimum" = defaults::BACKLOGS.0, "maximum" = defaults::BACKLOGS.1))]
    pub(crate) backlog: Option<At<Count>>,
    /// Connections at once on this listener.
    #[schemars(extend("default" = defaults::LISTENER_CONNECTIONS))]
    #[schemars(extend("minimum" = defaults::CONNECTION_COUNTS.0, "maximum" = defaults::CONNECTION_COUNTS.1))]
    pub(crate) max_connections: Option<At<Count>>,
    /// The service for a hello that no name matches or that has no SNI: `HOST` or `HOST:PORT` of a service
    /// in this file. Default: such a hello is refused.
    pub(crate) default: Option<At<String>>,
    /// PROXY protocol from load balancers in front. Default: nobody may send it.
    pub(crate) proxy_protocol: Option<At<ReceiveProxy>>,
}

/// Who sends PROXY headers to a listener.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReceiveProxy {
    /// Sources that must send a PROXY v1 or v2 header; all others must not.
    #[schemars(required)]
    pub(crate) from: Option<Vec<At<Cidr>>>,
}
