//! Generated from `proto/`, which says what each field means. `tests/proto.rs` makes it anew and compares.

#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "nobody wrote this"
)]

pub mod isthmus {
    pub mod v1 {
        include!("proto/isthmus.v1.rs");
    }
}

pub mod envoy {
    pub mod config {
        pub mod core {
            pub mod v3 {
                include!("proto/envoy.config.core.v3.rs");
            }
        }
    }

    pub mod service {
        pub mod discovery {
            pub mod v3 {
                include!("proto/envoy.service.discovery.v3.rs");
            }
        }
    }
}

pub mod google {
    pub mod rpc {
        include!("proto/google.rpc.rs");
    }
}

pub mod istio {
    pub mod v1 {
        pub mod auth {
            include!("proto/istio.v1.auth.rs");
        }
    }
}
