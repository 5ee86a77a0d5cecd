//! Who may reach what: the agent's metadata of a service, and the connections that an endpoint accepts. The
//! agent decides; this is only its result.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::address::Ranges;
use crate::cluster::Cluster;
use crate::host::HostName;
use crate::units::{Scalar, Wrong, read_duration, show_duration};

/// Metadata of a service for its agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExportMeta {
    /// The namespace, if the name does not tell it.
    pub namespace: Option<String>,
    /// Labels that exports select by.
    pub labels: BTreeMap<String, String>,
    /// How it is known that its endpoints require a client certificate.
    pub client_certificate: ClientCertificate,
    /// Whether it merges with the same host of other clusters that also set this.
    pub merge: bool,
    /// What others do with it while its cluster is unreachable.
    pub staleness: Staleness,
    /// Whether VMs may register themselves for it.
    pub registered: bool,
}

/// How the agent knows that endpoints require a client certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ClientCertificate {
    /// It checks each by a handshake.
    #[default]
    Probed,
    /// The service's file says so; the handshake does not show it.
    Declared,
    /// They require none, and are exported all the same.
    None,
}

/// The connections that an endpoint accepts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All, including those from other clusters.
    #[serde(rename = "all")]
    Exported {
        /// Whether these may use the name of the instance, too.
        by_name: bool,
    },
    /// Connections of local clients only.
    #[serde(rename = "inside")]
    Local,
    /// Connections of local clients only; the endpoint is not a workload but a gateway of another cluster.
    #[serde(rename = "beyond")]
    RemoteGateway(Arc<RemoteGateway>),
}

/// What is behind another cluster's gateway.
#[derive(Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RemoteGateway {
    /// The other cluster.
    pub cluster: Cluster,
    /// Instances that are reachable there by name.
    pub instances: Vec<Named>,
    /// Addresses that the gateway may have; checked each time its name is resolved.
    pub ranges: Ranges,
    /// Whether the gateway ends the TLS of this service.
    pub terminates: bool,
}

impl Scope {
    /// Whether the gateway may have an address that its name resolved to.
    #[must_use]
    pub fn allows(&self, ip: IpAddr) -> bool {
        match self {
            Scope::Exported { .. } | Scope::Local => true,
            Scope::RemoteGateway(beyond) => beyond.ranges.allow(ip),
        }
    }
}

/// An instance with its names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Named {
    /// Its name, one label.
    pub name: HostName,
    /// Its other names, in full.
    pub aliases: Vec<HostName>,
}

/// What becomes of a slice while its owner is unreachable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Staleness {
    /// It is kept.
    #[default]
    Keep,
    /// It expires after this time.
    ExpireAfter(Duration),
    /// It is kept as far as it answers a probe.
    Probe,
}

/// `keep`, `probe`, or a duration of at least a second.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("pattern" = "^([0-9]+(ms|s|m|h)|keep|probe)$"))]
pub(super) struct StaleRule(String);

impl Scalar for StaleRule {
    type Value = Staleness;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<Staleness, Wrong> {
        match self.0.as_str() {
            "keep" => Ok(Staleness::Keep),
            "probe" => Ok(Staleness::Probe),
            time => {
                let time = read_duration(time).filter(|time| *time >= Duration::from_secs(1));
                time.map(Staleness::ExpireAfter).ok_or(Wrong {
                    what: "is not a valid rule",
                    remedy: "write keep, probe, or a duration of at least 1s, such as 30s, 10m or 1h",
                })
            }
        }
    }
}

impl fmt::Display for Staleness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Staleness::Keep => f.write_str("keep"),
            Staleness::ExpireAfter(time) => f.write_str(&show_duration(*time)),
            Staleness::Probe => f.write_str("probe"),
        }
    }
}

impl Staleness {
    /// Whether it ends after this time without contact.
    #[must_use]
    pub fn is_over(self, silence: Duration) -> bool {
        match self {
            Staleness::ExpireAfter(time) => silence >= time,
            Staleness::Keep | Staleness::Probe => false,
        }
    }
}
