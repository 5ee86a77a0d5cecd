//! Defines `bindings:` and `capture:` as written.

use isthmus_model::address::{Cidr, Host, Ip, ServerAddress};
use isthmus_model::at::At;
use isthmus_model::units::Count;
use isthmus_model::values::PORTS;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::defaults;

/// What leads to one host from applications without TLS.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Binding {
    /// HOST of a service, or `INSTANCE.HOST`; once.
    #[schemars(required)]
    pub(crate) host: Option<At<Host>>,
    /// Virtual addresses, at most one of each family; no other binding has them. Default: none.
    pub(crate) addresses: Option<Vec<At<Ip>>>,
    /// Ports of the service that can be reached; at least one. Others of these addresses are refused.
    #[schemars(required, length(min = 1))]
    pub(crate) ports: Option<Vec<At<BoundPort>>>,
}

/// One port of a bound host.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BoundPort {
    /// The port of the service.
    #[schemars(required)]
    #[schemars(extend("minimum" = PORTS.0, "maximum" = PORTS.1))]
    pub(crate) port: Option<At<Count>>,
    /// The port that stands for it on listeners with `ports`; no other binding has it. Default: none.
    #[schemars(extend("minimum" = PORTS.0, "maximum" = PORTS.1))]
    pub(crate) listener_port: Option<At<Count>>,
}

/// Which connections and DNS queries of this machine are captured.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Capture {
    /// Ranges of virtual addresses. TCP to them goes to the first listener with `original_destination` that accepts the
    /// family; anything else to them is rejected.
    #[schemars(required, length(min = 1))]
    pub(crate) ranges: Option<Vec<At<Cidr>>>,
    /// The agent's DNS server, which gets all queries to port 53: at most one address of each family. Default: none is
    /// captured.
    pub(crate) dns: Option<Vec<At<ServerAddress>>>,
    /// Users, by name or number, whose connections and queries are not captured: those that the gateway and the agent
    /// run as. Required with `dns`, or the agent's own queries would come back to it.
    pub(crate) exclude_users: Option<Vec<At<String>>>,
    /// With `original_destination: tproxy`: the mark of captured packets, and the routing table that keeps them on this
    /// machine.
    #[schemars(extend("default" = defaults::CAPTURE_MARK))]
    #[schemars(extend("minimum" = defaults::CAPTURE_MARKS.0, "maximum" = defaults::CAPTURE_MARKS.1))]
    pub(crate) mark: Option<At<Count>>,
}
