//! Bindings: how applications without TLS reach a host within a cluster, by a virtual address or by a listener's port,
//! whose identity a source address has, and whose certificates a gateway may have. They are local to a cluster. Pure; who allots them is elsewhere.

mod callers;
mod granted;
mod wire;

use std::net::IpAddr;

use serde::{Serialize, Serializer};

use crate::host::HostName;
use crate::virtual_address::NameAddresses;

pub use callers::{Caller, Callers, CallersError, MAX_CALLERS, MAX_RANGES};
pub use granted::{Granted, GrantedError, MAX_GRANTED, check_limits};
pub use wire::{CALLERS, MAX_PORTS, WireError, granted_name, is_granted_name, resource_name};

/// What leads to one host, or to one exported instance of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Binding {
    /// The host, or `INSTANCE.HOST`.
    pub host: HostName,
    /// Its virtual addresses.
    #[serde(serialize_with = "list")]
    pub addresses: NameAddresses,
    /// The ports of its service, each once.
    pub ports: Vec<BoundPort>,
}

/// One port of a bound host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct BoundPort {
    /// The port of the service.
    pub port: u16,
    /// The port of a gateway's listener that stands for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener_port: Option<u16>,
}

/// One resource of an agent for its own gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalBinding {
    /// What leads to a host.
    Name(Binding),
    /// Whose identity a source address has.
    Callers(Callers),
    /// Whose certificates a gateway may have.
    Granted(Granted),
}

/// Why an address cannot be a virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} cannot be a virtual address: it is no unicast address of one host")]
pub struct NotVirtual(IpAddr);

impl Binding {
    /// Its virtual addresses, IPv6 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter()
    }
}

impl NameAddresses {
    /// Sets the address of its family; false if there is another one.
    ///
    /// # Errors
    /// The address cannot be a virtual address.
    pub fn insert(&mut self, address: IpAddr) -> Result<bool, NotVirtual> {
        let address = address.to_canonical();
        let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
        if address.is_unspecified() || address.is_multicast() || is_broadcast {
            return Err(NotVirtual(address));
        }
        Ok(match address {
            IpAddr::V6(address) => self.v6.replace(address).is_none(),
            IpAddr::V4(address) => self.v4.replace(address).is_none(),
        })
    }
}

fn list<S: Serializer>(addresses: &NameAddresses, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(addresses.iter())
}
