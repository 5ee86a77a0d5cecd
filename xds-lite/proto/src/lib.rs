//! Protobuf messages of Isthmus, Envoy and Istio, the names of their types, and what a message will take once it is decoded
//! (`measure`). No clients and no servers: those are in `isthmus-ads` and `isthmus-trust`.

#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated"
)]
mod generated;
pub mod measure;
pub mod type_url;

pub use generated::{envoy, google, isthmus, istio, xds};
