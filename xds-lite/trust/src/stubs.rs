//! Client and server of Istio's certificate API: generated, as the messages in `isthmus-proto` are.

#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]

use isthmus_proto::istio::v1::auth::*;

include!("generated/istio.v1.auth.rs");
