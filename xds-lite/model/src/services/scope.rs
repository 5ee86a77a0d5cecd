//! Who may reach what: what a registry says of a service to its agent, and which connections an endpoint
//! takes. Not how an agent decides it.

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

/// What a registry says of a service to its agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExportMeta {
    /// Where it belongs, if its name does not tell.
    pub namespace: Option<String>,
    /// By which exports choose it.
    pub labels: BTreeMap<String, String>,
    /// It is exported though its endpoints let in clients without a certificate.
    pub allow_unauthenticated: bool,
    /// It may be one service with those of other clusters that say so, too.
    pub merge: bool,
    /// What others do with it when they hear nothing of its cluster.
    pub staleness: Staleness,
    /// VMs may add themselves to it.
    pub registered: bool,
}

/// Which connections an endpoint takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All; also those from other clusters.
    #[serde(rename = "all")]
    Exported {
        /// Those may name the instance, too.
        by_name: bool,
    },
    /// Only those of local clients.
    #[serde(rename = "inside")]
    Local,
    /// Those of local clients, and it is no workload but a gateway of another cluster.
    #[serde(rename = "beyond")]
    RemoteGateway(Arc<RemoteGateway>),
}

/// What stands behind another cluster's gateway.
#[derive(Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RemoteGateway {
    /// Which cluster.
    pub cluster: Cluster,
    /// What can be reached there by the name of an instance.
    pub instances: Vec<Named>,
    /// Where the gateway may stand; a name is looked at each time that it is resolved.
    pub ranges: Ranges,
}

impl Scope {
    /// Whether the endpoint may be at an address that its name resolved to.
    #[must_use]
    pub fn allows(&self, ip: IpAddr) -> bool {
        match self {
            Scope::Exported { .. } | Scope::Local => true,
            Scope::RemoteGateway(beyond) => beyond.ranges.allow(ip),
        }
    }
}

/// An instance by its names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Named {
    /// One label.
    pub name: HostName,
    /// Whole other names.
    pub aliases: Vec<HostName>,
}

/// What is done with a slice once nothing more is heard of its owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Staleness {
    /// It stays.
    #[default]
    Keep,
    /// It goes after this long.
    ExpireAfter(Duration),
    /// What answers a probe stays.
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
                    what: "is no rule",
                    remedy: "write keep, probe, or a whole number and its unit of a second or more, as 30s, 10m or 1h",
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
    /// Whether it is over after nothing was heard for so long.
    #[must_use]
    pub fn is_over(self, silence: Duration) -> bool {
        match self {
            Staleness::ExpireAfter(time) => silence >= time,
            Staleness::Keep | Staleness::Probe => false,
        }
    }
}
