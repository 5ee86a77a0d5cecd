//! Type URLs of discovery resources.

/// A service slice.
pub const SLICE: &str = "type.googleapis.com/isthmus.v1.ServiceSlice";
/// A trust bundle.
pub const TRUST_BUNDLE: &str = "type.googleapis.com/isthmus.v1.TrustBundle";
/// Envoy's listeners (LDS).
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Envoy's clusters (CDS).
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Envoy's endpoints (EDS).
pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
