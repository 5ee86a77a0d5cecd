//! Defines the configuration file as written. The doc comments are the descriptions in the JSON Schema;
//! [`super::resolve`] checks the values.

pub(crate) mod bindings;
pub(crate) mod general;
pub(crate) mod listeners;

use isthmus_model::at::At;
use isthmus_model::services;
use isthmus_model::units::Count;
use schemars::JsonSchema;
use serde::Deserialize;

pub(crate) use bindings::{Binding, Capture};
pub(crate) use general::{
    AccessLog, Admin, ControlPlane, Dns, Drain, Ejection, Health, Limits, Metrics, Node, Relay, Replay,
    StaleCrl, Tcp, Timeouts, Trust, Upstream, Xds,
};
pub(crate) use listeners::Listener;

use super::defaults;

/// The configuration of an Isthmus gateway. Durations are written `500ms`, `5s`, `3m` or `1h`, sizes
/// `16KiB`, `1MiB` or in bytes. Unknown keys are errors.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Isthmus gateway")]
pub(crate) struct File {
    /// The gateway's identity in its cluster. Needs a restart.
    pub(crate) node: Option<Node>,
    /// Worker threads. Default: the cores available to the process, by its affinity and cgroup quota;
    /// 1 to 256. Needs a restart.
    #[schemars(extend("minimum" = defaults::WORKERS.0, "maximum" = defaults::WORKERS.1))]
    pub(crate) workers: Option<At<Count>>,
    /// Where connections are accepted; at least one.
    #[schemars(required, length(min = 1))]
    pub(crate) listeners: Option<At<Vec<At<Listener>>>>,
    /// Services that clients reach by name. Default: none.
    pub(crate) services: Option<Vec<At<services::raw::Service>>>,
    /// What leads to the services' hosts from applications without TLS, beside the agent's. A host here hides that of the
    /// agent. Default: none.
    pub(crate) bindings: Option<Vec<At<Binding>>>,
    /// Which connections and DNS queries of this machine `isthmus-gateway capture` sends to the gateway and to the agent.
    /// A running gateway does not use it.
    pub(crate) capture: Option<At<Capture>>,
    /// Limits of the whole process.
    pub(crate) limits: Option<Limits>,
    /// Deadlines; each service can set its own, except for `hello`.
    pub(crate) timeouts: Option<Timeouts>,
    /// How endpoints are reached.
    pub(crate) upstream: Option<Upstream>,
    /// Splicing. Needs a restart.
    pub(crate) relay: Option<Relay>,
    /// Socket options, for clients and endpoints alike. Needs a restart.
    pub(crate) tcp: Option<Tcp>,
    /// How the gateway drains on SIGTERM or `POST /drain`.
    pub(crate) drain: Option<Drain>,
    /// The admin API: status, drain and others. Needs a restart.
    pub(crate) admin: Option<Admin>,
    /// Prometheus metrics. Needs a restart.
    pub(crate) metrics: Option<Metrics>,
    /// Liveness and readiness. Needs a restart.
    pub(crate) health: Option<Health>,
    /// One JSON line per connection on standard output. Needs a restart.
    pub(crate) access_log: Option<AccessLog>,
    /// File of the audit log, one JSON line for each decision about a caller, or `off`. Needs a restart.
    #[schemars(extend("default" = "off"))]
    pub(crate) audit_log: Option<At<String>>,
    /// This gateway's identity and the bundles that it trusts. Passthrough does not need it, because mTLS is between
    /// client and endpoint. Needs a restart; the files themselves are watched.
    pub(crate) trust: Option<At<Trust>>,
    /// The source of services beside this file. Needs `trust` and a restart.
    pub(crate) xds: Option<At<Xds>>,
    /// How host names of endpoints are resolved. Needs a restart.
    pub(crate) dns: Option<Dns>,
}
