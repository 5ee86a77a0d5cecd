//! The sections about names as written.

use schemars::JsonSchema;
use serde::Deserialize;

use isthmus_model::address::{Cidr, ListenAddress};
use isthmus_model::at::At;

use crate::agent::config::DNS;

/// Ranges of virtual addresses. Nothing else may use them.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::agent::config) struct VirtualAddresses {
    /// IPv6, such as a ULA `/64`. Default: names have no IPv6 address.
    pub(in crate::agent::config) ipv6: Option<At<Cidr>>,
    /// IPv4, such as `240.15.0.0/16`. Default: names have no IPv4 address.
    pub(in crate::agent::config) ipv4: Option<At<Cidr>>,
}

/// The DNS server, on UDP and TCP.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::agent::config) struct Dns {
    /// `IP:PORT` or `[IPV6]:PORT`; port 0 picks a free one.
    #[schemars(extend("default" = DNS))]
    pub(in crate::agent::config) listen: Option<At<ListenAddress>>,
    /// Ranges of addresses that may ask; others are refused. Default: this machine, and the sources of `callers`.
    pub(in crate::agent::config) clients: Option<Vec<At<Cidr>>>,
    /// Who answers what is not in the tables: `system` (the name servers of this machine), `off`, or a list of `IP:PORT`
    /// in the order in which they are tried.
    #[schemars(extend("default" = "system"))]
    pub(in crate::agent::config) upstreams: Option<At<Upstreams>>,
    /// Suffixes of which nobody else knows names: what is not in the tables does not exist. Default: none.
    pub(in crate::agent::config) zones: Option<Vec<At<String>>>,
}

/// `system`, `off`, or servers.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(in crate::agent::config) enum Upstreams {
    /// A word.
    Word(String),
    /// `off` is false in YAML 1.1.
    Flag(bool),
    /// `IP:PORT` each.
    Servers(Vec<String>),
}
