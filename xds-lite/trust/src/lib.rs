//! Trust between clusters, and certificates of workloads: `join` and its tokens, the trust `bundles` that
//! joined clusters exchange, `issuing` over Istio's certificate API, and `enrolment`, its client.

pub mod bundles;
pub mod enrolment;
pub mod issuing;
pub mod join;
pub mod stubs;
