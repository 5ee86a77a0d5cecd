//! One service as one cluster offers it: what agents and gateways exchange. These types cannot be wrong;
//! `wire` makes them from messages. Not whether a slice is believed: whoever receives it decides that.

mod wire;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use isthmus_certs::SpiffeId;

use crate::address::{Ranges, Target};
use crate::host::{HostName, HostPattern};
use crate::locality::Locality;
use crate::services::{Balance, ServiceTimeouts};

pub use crate::cluster::{Cluster, NoCluster};
pub use crate::services::Staleness;
pub use wire::{MAX_MESSAGE, WireError, version};

/// Which slice: a host of a cluster. Its text, `CLUSTER/HOST`, is the resource's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The owner.
    pub cluster: Cluster,
    /// The service.
    pub host: HostPattern,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.cluster, self.host)
    }
}

/// A text that is no slice's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a slice is named CLUSTER/HOST")]
pub struct NoKey;

impl FromStr for Key {
    type Err = NoKey;

    fn from_str(name: &str) -> Result<Key, NoKey> {
        let (cluster, host) = name.split_once('/').ok_or(NoKey)?;
        let host = HostPattern::parse(host).map_err(|_| NoKey)?;
        Ok(Key { cluster: cluster.parse().map_err(|_| NoKey)?, host })
    }
}

/// Which of two slices of one key is later. Only the owner's registry makes these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Order {
    /// Grows when the owner's registry begins anew.
    pub incarnation: u64,
    /// Grows with each change.
    pub revision: u64,
}

/// One service of one cluster, or that it is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Which.
    pub key: Key,
    /// How late.
    pub order: Order,
    /// What it is; none once its owner has withdrawn it.
    pub offer: Option<Offer>,
}

impl Slice {
    /// Whether other clusters may name any port of it.
    #[must_use]
    pub fn is_exported(&self) -> bool {
        self.offer.as_ref().is_some_and(|offer| offer.ports.iter().any(|port| port.exported))
    }

    /// Whether what it was offered for is over after nothing was heard for so long.
    #[must_use]
    pub fn has_expired(&self, silence: Duration) -> bool {
        self.offer.as_ref().is_some_and(|offer| offer.staleness.is_over(silence))
    }
}

/// What a cluster offers under a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Where its endpoints stand.
    pub network: String,
    /// Other names.
    pub aliases: Vec<HostPattern>,
    /// At least one; numbers are unique.
    pub ports: Vec<Port>,
    /// How other networks reach it.
    pub gateways: Vec<Gateway>,
    /// What others do once they hear nothing of its owner.
    pub staleness: Staleness,
    /// It may be one service with those of other clusters that say so, too.
    pub merge: bool,
    /// To the owner's gateways: the names of those that open it to other clusters; none is all.
    pub exposed_on: Vec<String>,
    /// To the importing cluster's gateways: where the names of `gateways` may lead.
    pub gateway_ranges: Ranges,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// 1 to 65535.
    pub number: u16,
    /// The bare host, the aliases and `INSTANCE.HOST` mean this one; at most one port of a service.
    pub default_port: bool,
    /// What its endpoints speak.
    pub tls: Tls,
    /// Condition: the client offers one of these protocols. Empty: none.
    pub alpn: Vec<String>,
    /// Condition: the client's address lies in one of these. Empty: none.
    pub sources: Vec<IpNet>,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// Connections at once.
    pub max_connections: Option<u32>,
    /// PROXY v2 to the endpoints.
    pub send_proxy: bool,
    /// Who serves it, as far as the receiver may see them; addresses are unique.
    pub endpoints: Vec<Endpoint>,
    /// How many serve it where, for those who do not see them.
    pub ready: Vec<Ready>,
    /// Its deadlines.
    pub timeouts: ServiceTimeouts,
    /// Other clusters may name it.
    pub exported: bool,
}

impl Offer {
    /// These ports in a network, and nothing more.
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
            exported: false,
        }
    }
}

/// One address that serves a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where.
    pub address: Target,
    /// Where it stands.
    pub locality: Locality,
    /// 0 to 65535; 0 takes no new connections.
    pub weight: u16,
    /// What its registry knows of it.
    pub health: Health,
    /// Its stable name.
    pub instance: Option<HostName>,
    /// `INSTANCE.HOST` is a name in other clusters, too.
    pub instance_exported: bool,
    /// Where it differs from its port.
    pub tls: Option<Tls>,
    /// Who it must prove to be to a gateway that originates TLS towards it.
    pub identity: Option<SpiffeId>,
    /// Connections of other clusters may end here.
    pub exposed: bool,
    /// Other names of this instance, exported with it.
    pub aliases: Vec<HostName>,
}

/// How many serve a port in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Where.
    pub locality: Locality,
    /// How many.
    pub ready: u32,
    /// Those of them that are exported by name.
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

/// Where a cluster's gateway is reached from other networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Where.
    pub address: Target,
    /// Where it stands.
    pub locality: Locality,
}

/// What endpoints speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tls {
    /// TLS, and they demand a client certificate.
    Mutual,
    /// TLS without; their owner said that this is meant.
    Unauthenticated,
    /// None; a gateway ends it.
    Terminated,
}

/// What a registry knows of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// It takes connections.
    Ready,
    /// It does not.
    NotReady,
    /// It keeps what it has and takes no more.
    Draining,
}
