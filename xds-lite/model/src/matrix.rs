//! The gateway matrix as reports and pages show it: how a gateway reaches each gateway address of other clusters.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a gateway reaches one gateway address of another cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(rename = "MatrixRow")]
pub struct Row {
    /// The other cluster.
    pub cluster: String,
    /// Its gateway as the cluster offers it, `IP:PORT` or `NAME:PORT`.
    pub gateway: String,
    /// The address, `IP:PORT`.
    pub address: String,
    /// Whether it answers.
    pub state: State,
    /// When the state last changed, in seconds since 1970.
    pub since: u64,
    /// Smoothed round trip in microseconds; none before the first answer.
    pub rtt_micros: Option<u64>,
    /// Mean deviation of the round trip in microseconds; none before the first answer.
    pub jitter_micros: Option<u64>,
    /// Per cent of the last 32 probes without an answer.
    pub loss_percent: u8,
    /// Class of distance: connections prefer lower ones; 0 is the nearest, or not measured yet.
    pub class: u8,
    /// The last failure, unless the state is `up`.
    pub why: Option<String>,
}

impl Row {
    /// The row in one line: round trip, jitter, loss, state.
    #[must_use]
    pub fn summary(&self) -> String {
        let state = self.state.word();
        let millis = |micros: u64| format!("{}.{}", micros / 1_000, micros % 1_000 / 100);
        match (self.rtt_micros, self.jitter_micros) {
            (Some(rtt), Some(jitter)) => {
                format!("{} ms ±{} {}% {state}", millis(rtt), millis(jitter), self.loss_percent)
            }
            _ => state.to_owned(),
        }
    }
}

/// Whether a gateway address answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "MatrixState")]
pub enum State {
    /// No probe has completed.
    #[default]
    Unknown,
    /// It answers.
    Up,
    /// It does not answer, and new connections avoid it.
    Down,
    /// It does not answer, like every other one, and stays in use: this gateway seems to be cut off.
    Kept,
}

impl State {
    /// All states.
    pub const ALL: [State; 4] = [State::Unknown, State::Up, State::Down, State::Kept];

    /// The word for logs, tables and labels.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            State::Unknown => "unknown",
            State::Up => "up",
            State::Down => "down",
            State::Kept => "kept",
        }
    }
}
