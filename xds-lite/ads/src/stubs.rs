//! Client and server of discovery: generated, as the messages in `isthmus-proto` are.

#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "nobody wrote this"
)]

use isthmus_proto::envoy::service::discovery::v3::*;

include!("generated/envoy.service.discovery.v3.rs");
