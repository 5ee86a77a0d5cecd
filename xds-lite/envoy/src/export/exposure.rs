//! Decides which ports and endpoints of a slice an Envoy exposes to other clusters, in one place.

use isthmus_model::slice::{Endpoint, Offer, Port, Tls};

/// Whether a port is exported on all of these gateways.
pub(super) fn is_offered(offer: &Offer, port: &Port, gateways: &[String]) -> bool {
    let is_open = offer.exposed_on.is_empty() || gateways.iter().all(|name| offer.exposed_on.contains(name));
    port.exported && is_open
}

/// Whether passthrough can serve a port; one without TLS needs a gateway that terminates it.
pub(super) fn speaks_tls(port: &Port) -> bool {
    port.tls != Tls::Terminated
}

/// Whether an endpoint of a port serves connections of other clusters.
pub(super) fn serves(endpoint: &Endpoint, port: &Port) -> bool {
    endpoint.exposed && endpoint.tls.unwrap_or(port.tls) != Tls::Terminated
}

/// Whether an instance has its own name in other clusters.
pub(super) fn is_named(endpoint: &Endpoint) -> bool {
    endpoint.instance_exported
}
