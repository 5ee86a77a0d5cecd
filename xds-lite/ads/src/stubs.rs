//! Generated gRPC stubs of discovery, client and server. The messages are in `isthmus-proto`.

#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]

use isthmus_proto::envoy::service::discovery::v3::*;

include!("generated/envoy.service.discovery.v3.rs");
