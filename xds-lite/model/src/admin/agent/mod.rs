//! The pages and bodies of an agent's admin API. Times are seconds since 1970 unless a field says otherwise.

mod explain;
mod matrix;
mod names;
mod peers;
mod registration;
mod status;

use serde_json::Value;

use super::schema::Builder;

pub use explain::{
    Explanation, Import, MtlsResult, OfferedPort, OwnOffer, PolicyOf, PortAccess, RegisteredEndpoint,
    RegisteredHost, RegisteredPort, Stale,
};
pub use matrix::{GatewayReport, Matrix, UnhealthyEndpoint};
pub use names::{DnsStatus, Names, Upstream};
pub use peers::{Acknowledged, BundleUpdates, Client, Down, Offers, Peer, Probed};
pub use registration::{Deregistered, Lease, LeaseRequest};
pub use status::{Exports, ImportedSlice, Issuing, NotExported, Registry, Slices, State, Status, Trust};

/// The paths that take GET and HEAD.
pub const GET: [&str; 7] =
    ["/status", "/explain", "/matrix", "/schema", "/healthz/live", "/healthz/ready", "/metrics"];
/// The paths that take POST.
pub const POST: [&str; 3] = ["/register", "/heartbeat", "/deregister"];

/// The JSON Schema of the API, each path a property.
#[must_use]
pub fn schema() -> Value {
    Builder::new()
        .page::<Status>("/status")
        .page::<Explanation>("/explain")
        .page::<Matrix>("/matrix")
        .page::<Lease>("/register")
        .page::<Lease>("/heartbeat")
        .page::<Deregistered>("/deregister")
        .body::<LeaseRequest>()
        .document("isthmus-agent")
}
