//! Answers to VMs that register, and the body that names a lease. The body of a registration is one entry of
//! `services:` and is read with the same places and remedies as a registry file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The answer to `POST /register` and `POST /heartbeat`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lease {
    /// The secret of the registration; told once.
    pub lease: Option<String>,
    /// The registration ends after this time without a heartbeat, such as `30s`.
    pub ttl: String,
    /// How often to send a heartbeat, such as `10s`.
    pub heartbeat_every: String,
}

/// The body of `POST /heartbeat` and `POST /deregister`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    /// The secret of the registration.
    pub lease: String,
}

/// Hides the secret, which may end up in a log.
impl std::fmt::Debug for LeaseRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LeaseRequest(…)")
    }
}

/// The answer to `POST /deregister`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Deregistered {
    /// The instance, host and port that are gone.
    pub deregistered: String,
}
