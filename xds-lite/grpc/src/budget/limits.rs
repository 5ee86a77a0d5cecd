//! The default limits of each kind of client; `limits` in agent.yaml overrides them.

use std::fmt;

use serde::Serialize;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The largest report of a gateway, in bytes.
pub const LARGEST_REPORT: u64 = MIB;

/// The kind of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Kind {
    /// A gateway of this cluster.
    Gateway,
    /// A peer.
    Peer,
    /// A workload that renews its certificate here and is served nothing else.
    Workload,
    /// A trusted identity that is not served.
    Stranger,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 4] = [Kind::Gateway, Kind::Peer, Kind::Workload, Kind::Stranger];

    /// The name in logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Gateway => "gateway",
            Kind::Peer => "peer",
            Kind::Workload => "workload",
            Kind::Stranger => "stranger",
        }
    }

    pub(super) fn plural(self) -> &'static str {
        match self {
            Kind::Gateway => "gateways",
            Kind::Peer => "peers",
            Kind::Workload => "workloads",
            Kind::Stranger => "strangers",
        }
    }
}

/// A limited resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// TLS connections.
    Connections,
    /// Open requests, on all connections.
    Streams,
    /// Memory of requests not yet processed: their bytes, and the size of their parts once decoded.
    RequestBytes,
    /// Subscribed names, on all streams.
    Names,
    /// Memory of subscribed names: the bytes of each, plus 64.
    NameBytes,
}

impl Resource {
    /// All resources.
    pub const ALL: [Resource; 5] = [
        Resource::Connections,
        Resource::Streams,
        Resource::RequestBytes,
        Resource::Names,
        Resource::NameBytes,
    ];

    /// The name in status and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Resource::Connections => "connections",
            Resource::Streams => "streams",
            Resource::RequestBytes => "request_bytes",
            Resource::Names => "names",
            Resource::NameBytes => "name_bytes",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Resource::Connections => "connections",
            Resource::Streams => "streams",
            Resource::RequestBytes => "bytes of requests",
            Resource::Names => "subscribed names",
            Resource::NameBytes => "bytes of subscribed names",
        })
    }
}

/// An amount of each resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// [`Resource::Connections`].
    pub connections: u64,
    /// [`Resource::Streams`].
    pub streams: u64,
    /// [`Resource::RequestBytes`].
    pub request_bytes: u64,
    /// [`Resource::Names`].
    pub names: u64,
    /// [`Resource::NameBytes`].
    pub name_bytes: u64,
}

impl Amounts {
    /// The amount of a resource.
    #[must_use]
    pub fn get(&self, resource: Resource) -> u64 {
        match resource {
            Resource::Connections => self.connections,
            Resource::Streams => self.streams,
            Resource::RequestBytes => self.request_bytes,
            Resource::Names => self.names,
            Resource::NameBytes => self.name_bytes,
        }
    }

    pub(super) fn get_mut(&mut self, resource: Resource) -> &mut u64 {
        match resource {
            Resource::Connections => &mut self.connections,
            Resource::Streams => &mut self.streams,
            Resource::RequestBytes => &mut self.request_bytes,
            Resource::Names => &mut self.names,
            Resource::NameBytes => &mut self.name_bytes,
        }
    }
}

/// The limits of each kind of client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Limits of each gateway.
    pub gateway: Amounts,
    /// Limits of each peer, for all of its agents together.
    pub peer: Amounts,
    /// Limits of each workload.
    pub workload: Amounts,
    /// Limits of each stranger.
    pub stranger: Amounts,
}

impl Limits {
    pub(super) fn get(&self, kind: Kind) -> &Amounts {
        match kind {
            Kind::Gateway => &self.gateway,
            Kind::Peer => &self.peer,
            Kind::Workload => &self.workload,
            Kind::Stranger => &self.stranger,
        }
    }
}

impl Default for Limits {
    /// A gateway with 100 000 services names them all in its first request: some 34 MiB by this count. A peer has one
    /// connection for each of its agents, and names the slices it has: 16 MiB are 50 000 services.
    fn default() -> Limits {
        Limits {
            gateway: Amounts {
                connections: 64,
                streams: 256,
                request_bytes: 64 * MIB,
                names: 200_000,
                name_bytes: 32 * MIB,
            },
            peer: Amounts {
                connections: 16,
                streams: 8,
                request_bytes: 16 * MIB,
                names: 20_000,
                name_bytes: 4 * MIB,
            },
            workload: Amounts { connections: 64, streams: 64, request_bytes: 4 * MIB, ..Amounts::default() },
            stranger: Amounts { connections: 8, streams: 8, ..Amounts::default() },
        }
    }
}

/// The common limit on request memory of all clients of a kind.
pub(super) fn request_bytes_of_all(kind: Kind) -> u64 {
    match kind {
        Kind::Gateway => 512 * MIB,
        Kind::Peer => 64 * MIB,
        Kind::Workload => 16 * MIB,
        Kind::Stranger => 0,
    }
}

/// The largest request message of a kind of client.
pub(crate) fn longest_message(kind: Kind) -> u64 {
    match kind {
        Kind::Gateway => 32 * MIB,
        Kind::Peer => 8 * MIB,
        Kind::Workload => 64 * KIB,
        Kind::Stranger => 0,
    }
}

/// The HTTP/2 flow-control window of each stream and of the connection.
pub(crate) fn window(kind: Kind) -> u32 {
    match kind {
        Kind::Gateway => 1 << 20,
        Kind::Peer => 256 << 10,
        Kind::Workload | Kind::Stranger => 64 << 10,
    }
}
