//! A slice: one host as one cluster offers it, exchanged by agents and gateways. An invalid slice cannot be
//! represented; `wire` parses messages. Whether to trust a slice is up to its receiver.

mod wire;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use isthmus_certs::{SpiffeId, TrustDomain};

use crate::access::Access;
use crate::address::{Ranges, Target};
use crate::host::{HostName, HostPattern};
use crate::labels::Labels;
use crate::locality::Locality;
use crate::services::{Balance, HealthCheck, ServiceTimeouts, TlsMode};
use crate::traffic::Traffic;

pub use crate::cluster::{Cluster, NoCluster};
pub use crate::services::Staleness;
pub use wire::{MAX_MESSAGE, WireError, version};

/// The key of a slice: a host of a cluster. Its text, `CLUSTER/HOST`, is the resource's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The owner.
    pub cluster: Cluster,
    /// The host.
    pub host: HostPattern,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cluster, self.host)
    }
}

/// The text is not a slice name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a slice name is CLUSTER/HOST")]
pub struct NoKey;

impl FromStr for Key {
    type Err = NoKey;

    fn from_str(name: &str) -> Result<Key, NoKey> {
        let (cluster, host) = name.split_once('/').ok_or(NoKey)?;
        let host = HostPattern::parse(host).map_err(|_| NoKey)?;
        Ok(Key { cluster: cluster.parse().map_err(|_| NoKey)?, host })
    }
}

/// Orders the slices of one key; only the owner's registry assigns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Order {
    /// Grows with each start of the owner's agent.
    pub incarnation: u64,
    /// Grows with each change.
    pub revision: u64,
}

/// A slice, or its withdrawal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Its key.
    pub key: Key,
    /// Its revision.
    pub order: Order,
    /// Its content; `None` after its owner withdrew it.
    pub offer: Option<Offer>,
}

impl Slice {
    /// Whether other clusters may use any port of it.
    #[must_use]
    pub fn is_exported(&self) -> bool {
        self.offer.as_ref().is_some_and(|offer| offer.ports.iter().any(|port| port.exported))
    }

    /// Checks that its owner vouches for every identity that its endpoints are to prove.
    ///
    /// # Errors
    /// An identity is of none of the owner's trust domains.
    pub fn check_identities(&self, domains: &[TrustDomain]) -> Result<(), ForeignIdentity> {
        let ports = self.offer.iter().flat_map(|offer| &offer.ports);
        let mut identities = ports.flat_map(|port| {
            port.identities
                .iter()
                .chain(port.endpoints.iter().filter_map(|endpoint| endpoint.identity.as_ref()))
        });
        match identities.find(|id| !domains.contains(id.trust_domain())) {
            Some(id) => Err(ForeignIdentity { cluster: self.key.cluster.clone(), id: id.clone() }),
            None => Ok(()),
        }
    }

    /// Whether it has expired after this time without contact to its owner.
    #[must_use]
    pub fn has_expired(&self, silence: Duration) -> bool {
        self.offer.as_ref().is_some_and(|offer| offer.staleness.is_over(silence))
    }
}

/// A slice promises an identity of another's trust domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "names identity {id}, which is of no trust domain of cluster {cluster}; a cluster names its own identities only"
)]
pub struct ForeignIdentity {
    cluster: Cluster,
    id: SpiffeId,
}

/// The content of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The network of its endpoints.
    pub network: String,
    /// Other names.
    pub aliases: Vec<HostPattern>,
    /// At least one; numbers are unique.
    pub ports: Vec<Port>,
    /// The gateways for other networks.
    pub gateways: Vec<Gateway>,
    /// What others do while its owner is unreachable.
    pub staleness: Staleness,
    /// Whether it merges with the same host of other clusters that also set this.
    pub merge: bool,
    /// For the owner's gateways: the gateways that expose it to other clusters; empty: all.
    pub exposed_on: Vec<String>,
    /// For the importing cluster's gateways: addresses that the names in `gateways` may resolve to.
    pub gateway_ranges: Ranges,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// 1 to 65535.
    pub number: u16,
    /// Whether the bare host, the aliases and `INSTANCE.HOST` mean it; at most one port of a host.
    pub default_port: bool,
    /// The TLS mode of its endpoints.
    pub tls: Tls,
    /// Condition: the client offers one of these protocols. Empty: none.
    pub alpn: Vec<String>,
    /// Condition: the client's address is in one of these ranges. Empty: none.
    pub sources: Vec<IpNet>,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// Limit of concurrent connections.
    pub max_connections: Option<u32>,
    /// Whether to send a PROXY v2 header to the endpoints.
    pub send_proxy: bool,
    /// The endpoints that the receiver may see; addresses are unique.
    pub endpoints: Vec<Endpoint>,
    /// Counts of ready endpoints by locality, for receivers that do not see them.
    pub ready: Vec<Ready>,
    /// Its deadlines.
    pub timeouts: ServiceTimeouts,
    /// How the health of its endpoints is learned; `None`: by connects alone.
    pub health: Option<Box<HealthCheck>>,
    /// Whether other clusters may use it.
    pub exported: bool,
    /// Who may connect.
    pub access: Access,
    /// The identities of its endpoints, as far as none has its own. Empty: TLS cannot be originated to it.
    pub identities: Vec<SpiffeId>,
    /// For the gateways of the cluster whose callers use it, from their own agent: the policy of its traffic.
    pub traffic: Option<Arc<Traffic>>,
}

impl Offer {
    /// An offer of these ports in a network, with defaults for the rest.
    #[must_use]
    pub fn new(network: &str, ports: Vec<Port>) -> Offer {
        Offer {
            network: network.to_owned(),
            aliases: Vec::new(),
            ports,
            gateways: Vec::new(),
            staleness: Staleness::Keep,
            merge: false,
            exposed_on: Vec::new(),
            gateway_ranges: Ranges::default(),
        }
    }
}

impl Port {
    /// A default port without endpoints, conditions and limits.
    #[must_use]
    pub fn new(number: u16, tls: Tls) -> Port {
        Port {
            number,
            default_port: true,
            tls,
            alpn: Vec::new(),
            sources: Vec::new(),
            balance: Balance::default(),
            max_connections: None,
            send_proxy: false,
            endpoints: Vec::new(),
            ready: Vec::new(),
            timeouts: ServiceTimeouts::default(),
            health: None,
            exported: false,
            access: Access::unwritten(tls),
            identities: Vec::new(),
            traffic: None,
        }
    }
}

/// One address that serves a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: Target,
    /// Its locality.
    pub locality: Locality,
    /// Its weight, 0 to 65535; 0 gets no new connections.
    pub weight: u16,
    /// Its health by its registry.
    pub health: Health,
    /// Its stable name.
    pub instance: Option<HostName>,
    /// Whether `INSTANCE.HOST` is a name in other clusters, too.
    pub instance_exported: bool,
    /// Its TLS mode, where it differs from its port's.
    pub tls: Option<Tls>,
    /// The identity that a gateway originating TLS requires of it.
    pub identity: Option<SpiffeId>,
    /// Whether connections from other clusters may end here.
    pub exposed: bool,
    /// Other names of this instance, exported with it.
    pub aliases: Vec<HostName>,
    /// Its labels.
    pub labels: Labels,
}

impl Endpoint {
    /// A ready endpoint that takes connections from other clusters, and nothing more.
    #[must_use]
    pub fn new(address: Target) -> Endpoint {
        Endpoint {
            address,
            locality: Locality::default(),
            weight: 1,
            health: Health::Ready,
            instance: None,
            instance_exported: false,
            tls: None,
            identity: None,
            exposed: true,
            aliases: Vec::new(),
            labels: Labels::default(),
        }
    }
}

/// The ready endpoints of a port in one locality.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The locality.
    pub locality: Locality,
    /// Their number.
    pub ready: u32,
    /// Those that are exported by name.
    pub instances: Vec<Instance>,
}

/// One endpoint that is exported by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its name, one label.
    pub name: HostName,
    /// Other names of it.
    pub aliases: Vec<HostName>,
}

/// A cluster's gateway, as reached from other networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its address.
    pub address: Target,
    /// Its locality.
    pub locality: Locality,
}

/// The TLS mode of endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tls {
    /// TLS that requires a client certificate.
    Mutual,
    /// TLS without client certificates, as the owner has explicitly allowed.
    Unauthenticated,
    /// Plaintext; a gateway terminates TLS.
    Terminated,
}

impl Tls {
    /// Who speaks TLS with the client.
    #[must_use]
    pub const fn mode(self) -> TlsMode {
        match self {
            Tls::Mutual | Tls::Unauthenticated => TlsMode::Passthrough,
            Tls::Terminated => TlsMode::Terminate,
        }
    }
}

/// The health of an endpoint by its registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// It accepts connections.
    Ready,
    /// It accepts none.
    NotReady,
    /// It keeps its connections and accepts no more.
    Draining,
}
