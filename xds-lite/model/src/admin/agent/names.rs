//! Names for applications without TLS, in `/status` of an agent.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Names and what is allotted to them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Names {
    /// Hosts and exported instances with virtual addresses or allotted ports.
    pub count: u64,
    /// Addresses and ports that names lack because a range is exhausted.
    pub exhausted: u64,
    /// Which, at most 1000.
    pub without: Vec<String>,
    /// Virtual addresses that something else has, at most 1000.
    pub collisions: Vec<String>,
    /// Why what is allotted is not persisted; none: it is, or there is no state directory.
    pub unsaved: Option<String>,
    /// The DNS server; none without `dns`.
    pub dns: Option<DnsStatus>,
}

/// The DNS server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DnsStatus {
    /// The servers that are asked what the tables do not answer.
    pub upstreams: Vec<Upstream>,
    /// Questions that they are asked now.
    pub forwarded: u64,
    /// Open TCP connections.
    pub connections: u64,
    /// Questions since the start, by what became of them.
    pub questions: BTreeMap<String, u64>,
}

/// A name server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Upstream {
    /// Its address, or the file that names none.
    pub server: String,
    /// What is wrong with it; none: nothing is known.
    pub problem: Option<String>,
}
