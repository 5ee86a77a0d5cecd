//! Generated gRPC stubs of reports, client and server. The messages are in `isthmus-proto`.

#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated code"
)]

use isthmus_proto::isthmus::v1::*;

include!("generated/isthmus.v1.rs");
