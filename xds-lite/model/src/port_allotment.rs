//! Ports of a listener's range, one for each port of a host: what a client can name where the destination's address
//! tells nothing.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::allotment::Allotment;
use crate::host::HostName;

/// The allotted ports of a range.
pub type AllottedPorts = Allotment<HostPort, u16>;

/// A port of a host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPort {
    /// The host.
    pub host: HostName,
    /// The port of the service.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}
