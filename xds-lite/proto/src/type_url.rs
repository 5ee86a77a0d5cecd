//! Type URLs of discovery resources.

/// A service slice.
pub const SLICE: &str = "type.googleapis.com/isthmus.v1.ServiceSlice";
/// A trust bundle.
pub const TRUST_BUNDLE: &str = "type.googleapis.com/isthmus.v1.TrustBundle";
/// What leads to a host within a cluster, and who calls there.
pub const LOCAL_BINDING: &str = "type.googleapis.com/isthmus.v1.LocalBinding";
/// Envoy's listeners (LDS).
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Envoy's clusters (CDS).
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Envoy's endpoints (EDS).
pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
