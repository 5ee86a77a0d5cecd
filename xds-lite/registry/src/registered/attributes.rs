//! Attributes of a service that a registration may set. An omitted attribute is left to the other instances,
//! so that instances agree without each repeating everything.

use isthmus_model::services::{ExportMeta, Service};

/// Service keys that control access: not allowed in a registration.
pub(super) const OF_FILES: [&str; 12] = [
    "access",
    "allow_unauthenticated",
    "certificate",
    "client_certificate",
    "identities",
    "key",
    "labels",
    "merge",
    "namespace",
    "registered",
    "tls",
    "traffic",
];

/// A service key that all instances share.
pub(super) struct Attribute {
    /// The key as written.
    pub(super) key: &'static str,
    /// Whether two services agree on it.
    pub(super) same: fn(&Service, &Service) -> bool,
    /// Copies it from the second service.
    pub(super) take: fn(&mut Service, &Service),
}

impl std::fmt::Debug for Attribute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.key)
    }
}

/// All attributes; `sni_port` is missing, since it belongs to the host.
pub(super) static ATTRIBUTES: [Attribute; 9] = [
    Attribute {
        key: "aliases",
        same: |one, other| one.aliases == other.aliases,
        take: |to, from| to.aliases.clone_from(&from.aliases),
    },
    Attribute {
        key: "alpn",
        same: |one, other| one.alpn == other.alpn,
        take: |to, from| to.alpn.clone_from(&from.alpn),
    },
    Attribute {
        key: "sources",
        same: |one, other| one.sources == other.sources,
        take: |to, from| to.sources.clone_from(&from.sources),
    },
    Attribute {
        key: "balance",
        same: |one, other| one.balance == other.balance,
        take: |to, from| to.balance = from.balance,
    },
    Attribute {
        key: "max_connections",
        same: |one, other| one.max_connections == other.max_connections,
        take: |to, from| to.max_connections = from.max_connections,
    },
    Attribute {
        key: "proxy_protocol",
        same: |one, other| one.send_proxy == other.send_proxy,
        take: |to, from| to.send_proxy = from.send_proxy,
    },
    Attribute {
        key: "timeouts",
        same: |one, other| one.timeouts == other.timeouts,
        take: |to, from| to.timeouts.clone_from(&from.timeouts),
    },
    Attribute {
        key: "health",
        same: |one, other| one.health == other.health,
        take: |to, from| to.health.clone_from(&from.health),
    },
    Attribute {
        key: "stale",
        same: |one, other| metadata(one).staleness == metadata(other).staleness,
        take: |to, from| metadata_mut(to).staleness = metadata(from).staleness,
    },
];

/// The agent's metadata of a service.
fn metadata(service: &Service) -> ExportMeta {
    service.about.as_deref().cloned().unwrap_or_default()
}

fn metadata_mut(service: &mut Service) -> &mut ExportMeta {
    service.about.get_or_insert_default()
}
