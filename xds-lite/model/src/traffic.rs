//! The traffic policy of a service, as callers of one cluster see it: which endpoints come first, when connections
//! spill over to farther ones, how they are split, and how many there may be. Only the settings: `pick` of the gateway
//! acts on them.

pub mod raw;
mod resolve;

use std::fmt;
use std::sync::{Arc, LazyLock};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use crate::cluster::Cluster;
use crate::labels::Labels;
use crate::units;
use crate::values::Range;

pub use resolve::traffic;

/// The limit of parts of one split.
pub const MAX_PARTS: usize = 32;
pub(crate) const OVERPROVISIONING: Range = (100, 1_000);
pub(crate) const PANIC: Range = (1, 100);
pub(crate) const WEIGHTS: Range = (0, 65_535);
pub(crate) const ABORT_IF: Range = (0, 99);
pub(crate) const DEFAULT_OVERPROVISIONING: u16 = 140;
pub(crate) const DEFAULT_PANIC: u8 = 50;

static UNWRITTEN: LazyLock<Arc<Traffic>> = LazyLock::new(Arc::default);

/// The traffic policy of one service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Traffic {
    /// Whether endpoints of the own cluster come before others.
    pub affinity: Affinity,
    /// The finest level at which nearer endpoints come before others.
    pub locality: LocalityScope,
    /// Per cent, 100 to 1000: a priority keeps all connections while its healthy share times this is at least 100 %.
    pub overprovisioning: u16,
    /// Per cent, 1 to 100: with a smaller healthy share than this over all priorities, unhealthy endpoints get
    /// connections, too. `None`: never.
    #[serde(serialize_with = "share_or_off")]
    pub panic: Option<u8>,
    /// The parts among which connections are divided by weight; empty: all endpoints are one.
    pub split: Vec<SplitPart>,
    /// Whether connections of one source address stay with one part of the split.
    #[serde(serialize_with = "sticky")]
    pub sticky: bool,
    /// The limits beyond which connections are refused.
    #[serde(flatten)]
    pub breakers: Breakers,
}

impl Default for Traffic {
    fn default() -> Traffic {
        Traffic {
            affinity: Affinity::default(),
            locality: LocalityScope::default(),
            overprovisioning: DEFAULT_OVERPROVISIONING,
            panic: Some(DEFAULT_PANIC),
            split: Vec::new(),
            sticky: false,
            breakers: Breakers::default(),
        }
    }
}

impl Traffic {
    /// The policy of a service for which none is written. All of them share one.
    #[must_use]
    pub fn unwritten() -> Arc<Traffic> {
        Arc::clone(&UNWRITTEN)
    }
}

/// The clusters whose endpoints come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Affinity {
    /// The own cluster, then the others.
    #[default]
    Local,
    /// None: endpoints of all clusters are one set.
    None,
    /// The other clusters, then the own one.
    Remote,
}

/// The finest level of locality that counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum LocalityScope {
    /// The same zone, then the same region, then the rest.
    #[default]
    Zone,
    /// The same region, then the rest.
    Region,
    /// Locality does not count.
    Off,
}

/// One part of a split.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct SplitPart {
    /// Its endpoints.
    #[serde(flatten)]
    pub to: SplitTo,
    /// Its share of the sum of all weights.
    pub weight: u16,
    /// Per cent, 0 to 99: with more failures than this, the part gets no more connections. `None`: it stays.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "abort_if")]
    pub abort_if: Option<u8>,
}

/// The endpoints of a part.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitTo {
    /// Those of a cluster, through its gateways or directly.
    Cluster(Cluster),
    /// Those with all of these labels, among the ones that are reached directly. At least one label.
    Labels(Labels),
}

/// Limits of a service beyond `max_connections`. `None`: no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Breakers {
    /// Connects that wait for an answer at the same time.
    #[serde(serialize_with = "units::count_or_off")]
    pub max_pending: Option<u32>,
    /// Connections to one endpoint at the same time.
    #[serde(serialize_with = "units::count_or_off")]
    pub max_connections_per_endpoint: Option<u32>,
}

/// What differs from the defaults, as it is written in files: `{ affinity: remote, panic: off }`.
impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = &**UNWRITTEN;
        let mut keys: Vec<String> = Vec::new();
        if self.affinity != default.affinity {
            keys.push(format!("affinity: {}", self.affinity));
        }
        if self.locality != default.locality {
            keys.push(format!("locality: {}", self.locality));
        }
        if self.overprovisioning != default.overprovisioning {
            keys.push(format!("overprovisioning: {}", self.overprovisioning));
        }
        match self.panic {
            None => keys.push("panic: off".to_owned()),
            share if share == default.panic => {}
            Some(share) => keys.push(format!("panic: {share}")),
        }
        if !self.split.is_empty() {
            let parts: Vec<_> = self.split.iter().map(ToString::to_string).collect();
            keys.push(format!("split: [{}]", parts.join(", ")));
        }
        if self.sticky {
            keys.push("sticky: source".to_owned());
        }
        let Breakers { max_pending, max_connections_per_endpoint } = self.breakers;
        keys.extend(max_pending.map(|most| format!("max_pending: {most}")));
        keys.extend(max_connections_per_endpoint.map(|most| format!("max_connections_per_endpoint: {most}")));
        if keys.is_empty() { f.write_str("default") } else { write!(f, "{{ {} }}", keys.join(", ")) }
    }
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl fmt::Display for LocalityScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl fmt::Display for SplitPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{ {}, weight: {}", self.to, self.weight)?;
        if let Some(share) = self.abort_if {
            write!(f, ", abort_if: {}", AbortIf(share))?;
        }
        f.write_str(" }")
    }
}

impl fmt::Display for SplitTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SplitTo::Cluster(cluster) => write!(f, "cluster: {cluster}"),
            SplitTo::Labels(labels) => {
                let pairs: Vec<_> = labels.iter().map(|(key, value)| format!("{key}: {value:?}")).collect();
                write!(f, "labels: {{ {} }}", pairs.join(", "))
            }
        }
    }
}

/// The written form of `abort_if`.
struct AbortIf(u8);

impl fmt::Display for AbortIf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failures > {} %", self.0)
    }
}

/// For `serialize_with`: the policy that is used where none is written.
pub(crate) fn in_use<S: Serializer>(
    traffic: &Option<Arc<Traffic>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    traffic.as_ref().unwrap_or(&UNWRITTEN).serialize(serializer)
}

fn share_or_off<S: Serializer>(share: &Option<u8>, serializer: S) -> Result<S::Ok, S::Error> {
    units::count_or_off(&share.map(u32::from), serializer)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn sticky<S: Serializer>(sticky: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *sticky { "source" } else { "off" })
}

fn abort_if<S: Serializer>(share: &Option<u8>, serializer: S) -> Result<S::Ok, S::Error> {
    match share {
        Some(share) => serializer.collect_str(&AbortIf(*share)),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
