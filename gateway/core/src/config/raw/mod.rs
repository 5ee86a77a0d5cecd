//! The configuration file exactly as it is written. Its comments are what the JSON Schema shows. Not what
//! the values mean or whether they fit together: that is [`super::resolve`].

pub(crate) mod general;
pub(crate) mod listeners;

use isthmus_model::at::At;
use isthmus_model::services;
use isthmus_model::units::Count;
use schemars::JsonSchema;
use serde::Deserialize;

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
    /// Who this gateway is. Needs a restart.
    pub(crate) node: Option<Node>,
    /// Worker threads. Default: the cores available to the process, by its affinity and cgroup quota;
    /// 1 to 256. Needs a restart.
    #[schemars(extend("minimum" = defaults::WORKERS.0, "maximum" = defaults::WORKERS.1))]
    pub(crate) workers: Option<At<Count>>,
    /// Where connections are accepted; at least one.
    #[schemars(required, length(min = 1))]
    pub(crate) listeners: Option<At<Vec<At<Listener>>>>,
    /// What can be reached by name. Default: nothing.
    pub(crate) services: Option<Vec<At<services::raw::Service>>>,
    /// Limits of the whole process.
    pub(crate) limits: Option<Limits>,
    /// Deadlines; each service can have its own, except for the hello.
    pub(crate) timeouts: Option<Timeouts>,
    /// How endpoints are reached.
    pub(crate) upstream: Option<Upstream>,
    /// Splicing. Needs a restart.
    pub(crate) relay: Option<Relay>,
    /// Socket options, for clients and endpoints alike. Needs a restart.
    pub(crate) tcp: Option<Tcp>,
    /// How the gateway goes away, on SIGTERM or `POST /drain`.
    pub(crate) drain: Option<Drain>,
    /// Status, drain and the like. Needs a restart.
    pub(crate) admin: Option<Admin>,
    /// Prometheus metrics. Needs a restart.
    pub(crate) metrics: Option<Metrics>,
    /// Liveness and readiness. Needs a restart.
    pub(crate) health: Option<Health>,
    /// One JSON line a connection on standard output. Needs a restart.
    pub(crate) access_log: Option<AccessLog>,
    /// What this gateway shows of itself, and whom it believes. Passthrough needs none of it: there, mTLS is
    /// between the client and the endpoint. Needs a restart; the files themselves are followed.
    pub(crate) trust: Option<At<Trust>>,
    /// Who gives this gateway services, beside those of this file. Needs `trust`, and a restart.
    pub(crate) xds: Option<At<Xds>>,
    /// How host names of endpoints are resolved. Needs a restart.
    pub(crate) dns: Option<Dns>,
}
