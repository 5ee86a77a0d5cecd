//! `/explain` of a gateway: what would happen to a ClientHello.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DownEndpoint, Endpoint};
use crate::admin::Decided;
use crate::services::Balance;

/// What would happen to a ClientHello. A service that would refuse it has both a match and a refusal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The question, with defaults filled in.
    pub asked: Asked,
    /// The outcome on each listener, unless one was named in the question.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listeners: Option<Vec<Outcome>>,
    /// The service, if one matches.
    #[serde(flatten)]
    pub matched: Option<Matched>,
    /// What TLS the gateway itself speaks.
    #[serde(flatten)]
    pub ends: Ends,
    /// The refusal, if it would be refused.
    #[serde(flatten)]
    pub refusal: Option<Refusal>,
}

/// The mode of a listener that takes plaintext.
pub const ORIGINATE: &str = "originate";
/// The TLS of a service that ends at the gateway.
pub const TERMINATE: &str = "terminate";

/// What TLS the gateway itself speaks; nothing where TLS is passed through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ends {
    /// `originate`, if the listener takes plaintext.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// The addresses, `IP:PORT`, at which an application reaches the service on this listener; empty unless bindings say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reached_at: Vec<String>,
    /// The identity that a client has by its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// The identities that the endpoint may have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expects: Option<Vec<String>>,
    /// What the rules say about this caller; absent without rules, and where only the handshake would tell who calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<String>,
    /// The same in its parts, or why the caller would be refused without rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decided>,
    /// `terminate`, if TLS ends at the gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
}

/// The question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Asked {
    /// The name in the ClientHello.
    pub sni: Option<String>,
    /// The client's address.
    #[serde(default)]
    pub from: String,
    /// The client's identity, if the question names one.
    #[serde(rename = "as", default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The protocols that the client offers.
    #[serde(default)]
    pub alpn: Vec<String>,
    /// The listener.
    pub listener: Option<String>,
}

/// The outcome on one listener: a service or a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Outcome {
    /// The listener.
    pub listener: String,
    /// The service, `HOST:PORT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The reason of the refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// A service that matches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Matched {
    /// The service, `HOST:PORT`.
    pub service: String,
    /// The instance that the name selects; none: any.
    pub instance: Option<String>,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// The policy of its traffic: what differs from the defaults, as files write it; `default`: nothing.
    #[serde(default)]
    pub traffic: String,
    /// The parts of its split.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub split: Vec<SplitPart>,
    /// Its priorities, the nearest first.
    #[serde(default)]
    pub priorities: Vec<Priority>,
    /// The endpoints in the order in which they would be tried.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
    /// Endpoints left out because they failed their probes while the agent is unreachable.
    #[serde(default)]
    pub down: Vec<DownEndpoint>,
}

/// A part of a split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SplitPart {
    /// Its endpoints, as written: `cluster: NAME` or `labels: { … }`.
    pub to: String,
    /// Its share of the sum of all weights.
    pub weight: u16,
    /// Whether it was taken out because too many of its connections failed.
    #[serde(default)]
    pub aborted: bool,
}

/// The endpoints of one priority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Priority {
    /// The part of the split that they belong to; none: there is no split, or no part has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// Their priority: 0 is the nearest.
    pub priority: u8,
    /// Their number.
    #[serde(default)]
    pub endpoints: u64,
    /// The share of healthy ones in per cent, over-provisioned.
    #[serde(default)]
    pub health: u8,
    /// The share of connections in per cent, within the part.
    #[serde(default)]
    pub share: u8,
    /// Whether first attempts go to unhealthy ones, too.
    #[serde(default)]
    pub panic: bool,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refusal {
    /// The reason, as in the access log.
    pub refused: String,
    /// What the reason means.
    #[serde(default)]
    pub meaning: String,
    /// The number of the TLS alert that the client receives; none: the connection is closed or reset.
    pub alert: Option<u8>,
}
