//! Holds the state of the connection to the agent or control plane, for status and metrics.

use std::time::SystemTime;

use isthmus_ads::client::Refused;

/// The state of the connection to the agent or control plane.
#[derive(Clone, Debug)]
pub struct Following {
    /// The address tried last.
    pub agent: Option<String>,
    /// Whether it is connected.
    pub connected: bool,
    /// When `connected` last changed.
    pub since: SystemTime,
    /// Why it is not connected.
    pub error: Option<String>,
    /// Slices in the tables; with a control plane, services.
    pub slices: usize,
    /// Slices, or control plane resources, refused since the start.
    pub refusals: u64,
    /// The last refusal.
    pub refusal: Option<String>,
    /// Addresses probed while it is not connected.
    pub probed: Option<Probed>,
}

/// The addresses probed while the agent is unreachable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probed {
    /// Number of addresses probed.
    pub addresses: usize,
    /// Number of addresses that are down.
    pub down: usize,
    /// The first of the addresses that are down.
    pub listed: Vec<Unreached>,
}

/// An address that is down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreached {
    /// The address as written in its endpoint.
    pub address: String,
    /// When it went down.
    pub since: SystemTime,
    /// The error of the last probe.
    pub why: String,
}

impl Following {
    pub(crate) fn nobody() -> Following {
        Following {
            agent: None,
            connected: false,
            since: SystemTime::now(),
            error: None,
            slices: 0,
            refusals: 0,
            refusal: None,
            probed: None,
        }
    }

    /// Records a connection, or its loss with the reason.
    pub(crate) fn contact(&mut self, agent: &str, lost: Option<&str>) {
        if self.connected == lost.is_some() || self.agent.is_none() {
            self.since = SystemTime::now();
        }
        self.agent = Some(agent.to_owned());
        self.connected = lost.is_none();
        self.error = lost.map(str::to_owned);
        if self.connected {
            self.probed = None;
        }
    }

    pub(crate) fn refused(&mut self, refused: &[Refused]) {
        self.refusals += refused.len() as u64;
        if let Some(last) = refused.last() {
            self.refusal = Some(format!("{:?}: {}", last.name, last.why));
        }
    }
}
