//! How it stands with the agent, or the control plane, that this gateway follows: for status and metrics.

use std::time::SystemTime;

use isthmus_ads::client::Refused;

/// The agent, and what came of it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Following {
    /// The one that was tried last.
    pub agent: Option<String>,
    /// It answers.
    pub connected: bool,
    /// Since when that is so.
    #[serde(serialize_with = "super::as_text")]
    pub since: SystemTime,
    /// Why it does not answer.
    pub error: Option<String>,
    /// Slices in the tables; services, if a foreign control plane gave them.
    pub slices: usize,
    /// Slices, or the control plane's resources, that were refused, ever.
    pub refusals: u64,
    /// The last of them, and why.
    pub refusal: Option<String>,
    /// What of the tables is probed while it does not answer.
    pub probed: Option<Probed>,
}

/// Addresses that are asked whether they can be reached, while no agent says so.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Probed {
    /// How many.
    pub addresses: usize,
    /// How many of them are down.
    pub down: usize,
    /// Some of those.
    pub listed: Vec<Unreached>,
}

/// An address that is down.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Unreached {
    /// Which, as its endpoint is given.
    pub address: String,
    /// Since when.
    #[serde(serialize_with = "super::as_text")]
    pub since: SystemTime,
    /// Why it was found so.
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

    /// This one answers, or it does not, and why.
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
