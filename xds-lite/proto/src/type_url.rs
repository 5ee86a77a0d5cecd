//! The types of resources, as discovery names them.

/// A service as one cluster offers it.
pub const SLICE: &str = "type.googleapis.com/isthmus.v1.ServiceSlice";
/// What a trust domain publishes about itself.
pub const TRUST_BUNDLE: &str = "type.googleapis.com/isthmus.v1.TrustBundle";
/// Envoy's listeners (LDS).
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Envoy's clusters (CDS).
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Envoy's endpoints (EDS).
pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
