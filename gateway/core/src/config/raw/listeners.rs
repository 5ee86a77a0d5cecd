//! Defines `listeners:` as written.

use isthmus_model::address::{Cidr, Host, ListenAddress};
use isthmus_model::at::At;
use isthmus_model::identity::Identity;
use isthmus_model::port_range::Ports;
use isthmus_model::units::Count;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::defaults;
use crate::config::settings::{Mode, OriginalDestination, Side, VirtualAddresses};

/// One address to accept on.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listener {
    /// Name in logs and metrics: 1 to 63 ASCII letters, digits, `-`, `_` or `.`; unique. Default:
    /// `east-west` for the first, else `listener-N`, N being its position from 1. Needs a restart.
    #[schemars(extend("pattern" = "^[A-Za-z0-9._-]{1,63}$"))]
    pub(crate) name: Option<At<String>>,
    /// `IP:PORT` or `[IPV6]:PORT`; port 0 picks a free one, and is required with `ports`. Required, except with
    /// `virtual_addresses`. Needs a restart.
    pub(crate) address: Option<At<ListenAddress>>,
    /// `east-west` serves other clusters and reaches exported endpoints of this cluster only; `outbound` serves local
    /// clients and also reaches other clusters' gateways.
    #[schemars(extend("default" = "east-west"))]
    pub(crate) side: Option<Side>,
    /// `passthrough` routes TLS connections by their ClientHello. `originate`, on `outbound` listeners alone, takes the
    /// plaintext of applications and begins mTLS to a service with the caller's identity. The service is found by one of
    /// `service`, `ports`, `original_destination` and `virtual_addresses`.
    #[schemars(extend("default" = "passthrough"))]
    pub(crate) mode: Option<At<Mode>>,
    /// With `mode: originate`: the service, by the HOST of a service in this file or `INSTANCE.HOST`.
    pub(crate) service: Option<At<Host>>,
    /// With `mode: originate`: the service's port.
    #[schemars(extend("default" = isthmus_model::services::defaults::PORT))]
    #[schemars(extend("minimum" = isthmus_model::values::PORTS.0, "maximum" = isthmus_model::values::PORTS.1))]
    pub(crate) port: Option<At<Count>>,
    /// With `mode: originate`: a range of ports of `address`, `FROM-TO`. Each is open while a binding has it as its
    /// `listener_port`, and leads to that binding's host and port. Needs a restart.
    pub(crate) ports: Option<At<Ports>>,
    /// With `mode: originate`: the service is that of the virtual address and port that the application dialled, before
    /// nftables sent its connection here. Needs a restart.
    pub(crate) original_destination: Option<At<OriginalDestination>>,
    /// With `mode: originate`: `bind` listens on each port of each virtual address that `bindings` or the agent name, in
    /// place of `address`. Needs a restart.
    pub(crate) virtual_addresses: Option<At<VirtualAddresses>>,
    /// With `mode: originate`: the identity of every caller. Instead of `callers`. Without either, the agent's callers.
    pub(crate) identity: Option<At<Identity>>,
    /// With `identity`: the sources that have it. Default on a loopback address: loopback; otherwise required.
    pub(crate) sources: Option<Vec<At<Cidr>>>,
    /// With `identity`: its certificate chain, leaf first, PEM.
    pub(crate) certificate: Option<At<String>>,
    /// With `identity`: the certificate's private key, PEM.
    pub(crate) key: Option<At<String>>,
    /// With `mode: originate`: the callers by their addresses; the longest prefix decides. A caller that no range
    /// contains is refused.
    pub(crate) callers: Option<Vec<At<Caller>>>,
    /// For IPv6 addresses only: refuse IPv4 on the same socket. Needs a restart.
    #[schemars(extend("default" = true))]
    pub(crate) ipv6_only: Option<At<bool>>,
    /// Length of the kernel's accept queue, for each worker; the kernel caps it at net.core.somaxconn. Needs a
    /// restart.
    #[schemars(extend("default" = defaults::BACKLOG))]
    #[schemars(extend("minimum" = defaults::BACKLOGS.0, "maximum" = defaults::BACKLOGS.1))]
    pub(crate) backlog: Option<At<Count>>,
    /// Connections at once on this listener.
    #[schemars(extend("default" = defaults::LISTENER_CONNECTIONS))]
    #[schemars(extend("minimum" = defaults::CONNECTION_COUNTS.0, "maximum" = defaults::CONNECTION_COUNTS.1))]
    pub(crate) max_connections: Option<At<Count>>,
    /// Service for a ClientHello without SNI or with an unmatched name: `HOST` or `HOST:PORT` of a service in this
    /// file. Default: such a ClientHello is refused.
    pub(crate) default: Option<At<String>>,
    /// PROXY protocol from load balancers in front. Default: not accepted.
    pub(crate) proxy_protocol: Option<At<ReceiveProxy>>,
}

/// Callers with one identity.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Caller {
    /// Their addresses.
    #[schemars(required)]
    pub(crate) sources: Option<Vec<At<Cidr>>>,
    /// Their identity.
    #[schemars(required)]
    pub(crate) identity: Option<At<Identity>>,
    /// The identity's certificate chain, leaf first, PEM.
    #[schemars(required)]
    pub(crate) certificate: Option<At<String>>,
    /// The certificate's private key, PEM.
    #[schemars(required)]
    pub(crate) key: Option<At<String>>,
}

/// The sources that send PROXY headers to a listener.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReceiveProxy {
    /// Sources that must send a PROXY v1 or v2 header; all others must not.
    #[schemars(required)]
    pub(crate) from: Option<Vec<At<Cidr>>>,
}
