//! Protobuf messages of Isthmus, Envoy and Istio, their type URLs, and the size of a message once decoded
//! (`measure`). Clients and servers are in `isthmus-ads` and `isthmus-trust`.

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
