//! The pages of a gateway's admin API.

mod config;
mod explain;
mod matrix;
mod status;
mod tables;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::schema::Builder;

pub use config::{Config, ListenerConfig, Section};
pub use explain::{
    Asked, Ends, Explanation, Matched, ORIGINATE, Outcome, Priority, Refusal, SplitPart, TERMINATE,
};
pub use matrix::Matrix;
pub use status::{
    AbortedPart, AgentContact, AwaitedTrust, Bindings, Certificate, Connections, Domain, EndpointHealth,
    Issued, LastRefusedEdit, Listener, LoadedTrust, Node, NotOpen, Pipes, Probed, Reloads, Renewal, Resolved,
    Status, Tables, Trust, UnhealthyEndpoint, Worker,
};
pub use tables::{Connection, DefaultService, DownEndpoint, Endpoint, Paged, Route, Routes, Service};

/// The paths that take GET and HEAD.
pub const GET: [&str; 8] =
    ["/status", "/config", "/routes", "/services", "/connections", "/explain", "/matrix", "/schema"];
/// The paths that take POST.
pub const POST: [&str; 1] = ["/drain"];

/// The answer to `POST /drain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Draining {
    /// Always true: the gateway drains.
    pub draining: bool,
}

/// The JSON Schema of the API, each path a property.
#[must_use]
pub fn schema() -> Value {
    Builder::new()
        .page::<Status>("/status")
        .page::<Config>("/config")
        .page::<Routes>("/routes")
        .page::<Paged<Service>>("/services")
        .page::<Paged<Connection>>("/connections")
        .page::<Explanation>("/explain")
        .page::<Matrix>("/matrix")
        .page::<Draining>("/drain")
        .document("isthmus-gateway")
}
