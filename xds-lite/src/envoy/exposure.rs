//! What of a slice an Envoy may lead other clusters to. One decision, in one place.

use crate::slice::{Endpoint, Port, Tls};

/// A port is led to at all.
pub(super) fn is_exposed(port: &Port) -> bool {
    port.tls != Tls::Terminated
}

/// An endpoint of such a port is led to. What speaks no TLS needs a gateway that ends it.
pub(super) fn serves(endpoint: &Endpoint, port: &Port) -> bool {
    endpoint.tls.unwrap_or(port.tls) != Tls::Terminated
}

/// An endpoint has a name of its own in other clusters.
pub(super) fn is_named(endpoint: &Endpoint) -> bool {
    endpoint.instance_exported
}
