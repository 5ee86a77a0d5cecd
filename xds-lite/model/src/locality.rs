//! A locality: region, zone, sub-zone. Distances between localities are the balancer's.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Region, zone and sub-zone, each empty when unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Locality {
    /// Such as `eu-west`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// Such as `eu-west-2a`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// Such as a rack.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sub_zone: String,
}

impl Locality {
    /// Whether all parts are unknown.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.region.is_empty() && self.zone.is_empty() && self.sub_zone.is_empty()
    }
}

impl std::fmt::Display for Locality {
    /// `region/zone/sub-zone`, without unknown parts at the end.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(format!("{}/{}/{}", self.region, self.zone, self.sub_zone).trim_end_matches('/'))
    }
}
