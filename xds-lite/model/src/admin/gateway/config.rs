//! `/config` of a gateway: the settings in use, in the words of the configuration file. What each setting means is in
//! the file's own schema (`isthmus-gateway check --schema`); here, the sections are named.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Settings by name, as the configuration file writes them.
pub type Section = BTreeMap<String, Value>;

/// The settings in use, with every default and without secrets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Config {
    /// `node`.
    #[serde(default)]
    pub node: Section,
    /// `workers`: the number of worker threads.
    #[serde(default)]
    pub workers: u64,
    /// `listeners`.
    pub listeners: Vec<ListenerConfig>,
    /// `services` of the file.
    pub services: Vec<Section>,
    /// `bindings` of the file.
    #[serde(default)]
    pub bindings: Vec<Section>,
    /// `capture`; null without the section.
    pub capture: Option<Section>,
    /// `limits`.
    #[serde(default)]
    pub limits: Section,
    /// `timeouts`.
    #[serde(default)]
    pub timeouts: Section,
    /// `upstream`.
    #[serde(default)]
    pub upstream: Section,
    /// `relay`.
    #[serde(default)]
    pub relay: Section,
    /// `tcp`.
    #[serde(default)]
    pub tcp: Section,
    /// `drain`.
    #[serde(default)]
    pub drain: Section,
    /// `admin`.
    #[serde(default)]
    pub admin: Section,
    /// `metrics`.
    #[serde(default)]
    pub metrics: Section,
    /// `health`.
    #[serde(default)]
    pub health: Section,
    /// `access_log`.
    #[serde(default)]
    pub access_log: Section,
    /// The file of the audit log, or `off`.
    #[serde(default)]
    pub audit_log: String,
    /// `trust`; null without an identity.
    pub trust: Option<Section>,
    /// `xds`; null without an agent or control plane.
    pub xds: Option<Section>,
    /// `dns`.
    #[serde(default)]
    pub dns: Section,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ListenerConfig {
    /// Its name.
    pub name: String,
    /// The address as written in the file; with a range of ports, or `virtual addresses`, where bindings say what is open.
    pub address: String,
    /// Whether it refuses IPv4 on an IPv6 address.
    #[serde(default)]
    pub ipv6_only: bool,
    /// The length of the kernel's accept queue, for each worker.
    #[serde(default)]
    pub backlog: u32,
    /// Connections at once.
    #[serde(default)]
    pub max_connections: u32,
    /// The service for names that no service has, `HOST:PORT`.
    pub default: Option<String>,
    /// `proxy_protocol`.
    #[serde(default)]
    pub proxy_protocol: Section,
    /// `originate`, if it takes plaintext; none: it takes TLS and passes it through, or ends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// The service that plaintext is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The port of that service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// How the service is found, unless it is always the same: `ports`, `original_destination` or `virtual_addresses`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found_by: Option<String>,
    /// Which sources are which identity; none: as the agent says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub callers: Option<Vec<Section>>,
}
