//! The written form of `traffic:`. Its comments are the descriptions in the JSON Schema. Values are resolved in
//! [`super::resolve`].

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::address::Host;
use crate::at::{At, Spot};
use crate::services::defaults::CONNECTION_COUNTS;
use crate::units::{Count, CountOrOff, Scalar, Wrong};

use super::{
    ABORT_IF, Affinity, DEFAULT_OVERPROVISIONING, DEFAULT_PANIC, LocalityScope, OVERPROVISIONING, PANIC,
    WEIGHTS,
};

/// Declares a mapping with the keys of a policy after its own: serde can flatten no mapping whose values know their
/// place.
macro_rules! with_policy {
    ($(#[$about:meta])* $name:ident { $($own:tt)* }) => {
        $(#[$about])*
        #[derive(Debug, Default, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($own)*
            /// The clusters whose endpoints come first: the own one (`local`), the others (`remote`), or neither (`none`).
            #[schemars(extend("default" = "local"))]
            affinity: Option<Affinity>,
            /// The finest level at which nearer endpoints come first: `zone`, `region`, or `off`.
            #[schemars(extend("default" = "zone"))]
            locality: Option<LocalityScope>,
            /// Per cent: connections spill over to farther endpoints as soon as the healthy share of the nearer ones, times
            /// this, is below 100 %. With 140, at 71 %.
            #[schemars(extend("default" = DEFAULT_OVERPROVISIONING))]
            #[schemars(extend("minimum" = OVERPROVISIONING.0, "maximum" = OVERPROVISIONING.1))]
            overprovisioning: Option<At<Count>>,
            /// Per cent: if fewer of all endpoints are healthy, unhealthy ones get connections, too. `off`: never; without a
            /// healthy endpoint, connections are refused.
            #[schemars(extend("default" = DEFAULT_PANIC))]
            #[schemars(extend("minimum" = PANIC.0, "maximum" = PANIC.1))]
            panic: Option<At<CountOrOff>>,
            /// Parts among which connections are divided by weight. Default: none; all endpoints are one part.
            split: Option<Vec<At<SplitPart>>>,
            /// `source`: connections of one source address stay with one part of the split.
            #[schemars(extend("default" = "off"))]
            sticky: Option<At<Sticky>>,
            /// Limit of connects that wait for an answer at the same time, or `off`.
            #[schemars(extend("default" = "off"))]
            #[schemars(extend("minimum" = CONNECTION_COUNTS.0, "maximum" = CONNECTION_COUNTS.1))]
            max_pending: Option<At<CountOrOff>>,
            /// Limit of connections to one endpoint at the same time, or `off`.
            #[schemars(extend("default" = "off"))]
            #[schemars(extend("minimum" = CONNECTION_COUNTS.0, "maximum" = CONNECTION_COUNTS.1))]
            max_connections_per_endpoint: Option<At<CountOrOff>>,
        }

        impl $name {
            /// Its keys of a policy.
            #[must_use]
            pub fn policy(&self) -> Policy<'_> {
                Policy {
                    affinity: self.affinity,
                    locality: self.locality,
                    overprovisioning: self.overprovisioning.as_ref(),
                    panic: self.panic.as_ref(),
                    split: self.split.as_deref().unwrap_or_default(),
                    sticky: self.sticky.as_ref(),
                    max_pending: self.max_pending.as_ref(),
                    max_connections_per_endpoint: self.max_connections_per_endpoint.as_ref(),
                }
            }
        }
    };
}

with_policy! {
    /// Which endpoints of a service the cluster's own callers use, and how many connections at once. Other clusters are
    /// not told.
    Traffic {}
}

with_policy! {
    /// The policy of services by host, own and imported ones.
    HostsTraffic {
        /// The hosts, each exact or `*.suffix`.
        #[schemars(required, length(min = 1))]
        pub hosts: Option<Vec<At<Host>>>,
    }
}

/// The keys of a policy.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    pub(super) affinity: Option<Affinity>,
    pub(super) locality: Option<LocalityScope>,
    pub(super) overprovisioning: Option<&'a At<Count>>,
    pub(super) panic: Option<&'a At<CountOrOff>>,
    pub(super) split: &'a [At<SplitPart>],
    pub(super) sticky: Option<&'a At<Sticky>>,
    pub(super) max_pending: Option<&'a At<CountOrOff>>,
    pub(super) max_connections_per_endpoint: Option<&'a At<CountOrOff>>,
}

impl Policy<'_> {
    /// The places of the split's parts by labels, with their positions.
    pub fn parts_by_labels(&self) -> impl Iterator<Item = (usize, Spot)> {
        let parts = self.split.iter().enumerate();
        parts.filter_map(|(index, part)| Some((index, part.value.labels.as_ref()?.spot)))
    }

    /// Likewise of those by cluster.
    pub fn parts_by_cluster(&self) -> impl Iterator<Item = (usize, Spot)> {
        let parts = self.split.iter().enumerate();
        parts.filter_map(|(index, part)| Some((index, part.value.cluster.as_ref()?.spot)))
    }
}

/// One part of a split: either a cluster or labels, and a weight.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SplitPart {
    /// The endpoints of this cluster.
    pub(super) cluster: Option<At<String>>,
    /// The endpoints with all of these labels. Only endpoints that are reached directly, without another cluster's
    /// gateway, have labels.
    pub(super) labels: Option<At<BTreeMap<String, String>>>,
    /// Its share of the sum of all weights; 0 gets no new connections.
    #[schemars(required, extend("minimum" = WEIGHTS.0, "maximum" = WEIGHTS.1))]
    pub(super) weight: Option<At<Count>>,
    /// `failures > N %`: takes the part out, until the split is edited, once more of its connects fail than this, of at
    /// least 100 in 60 s. Not on every part. Default: it stays.
    pub(super) abort_if: Option<At<AbortIf>>,
}

/// Whether a source address stays with its part of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(super) enum Sticky {
    /// It stays.
    Source,
    /// Each connection is divided anew.
    Off,
}

/// `failures > N %`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("pattern" = "^failures *> *[0-9]{1,2} *%$"))]
pub(super) struct AbortIf(String);

impl Scalar for AbortIf {
    type Value = u8;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<u8, Wrong> {
        let share = self.0.strip_prefix("failures").and_then(|rest| {
            let share = rest.trim_start_matches(' ').strip_prefix('>')?.strip_suffix('%')?.trim_matches(' ');
            share.bytes().all(|byte| byte.is_ascii_digit()).then(|| share.parse::<u8>().ok())?
        });
        share.filter(|share| (ABORT_IF.0..=ABORT_IF.1).contains(&u64::from(*share))).ok_or(Wrong {
            what: "is not a condition",
            remedy: "write 'failures > 5 %', with a whole number from 0 to 99",
        })
    }
}
