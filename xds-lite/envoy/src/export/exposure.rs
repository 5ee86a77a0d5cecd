//! What of a slice an Envoy may lead other clusters to. One decision, in one place.

use isthmus_model::slice::{Endpoint, Offer, Port, Tls};

/// Whether other clusters are offered a port on all of these gateways.
pub(super) fn is_offered(offer: &Offer, port: &Port, gateways: &[String]) -> bool {
    let is_open = offer.exposed_on.is_empty() || gateways.iter().all(|name| offer.exposed_on.contains(name));
    port.exported && is_open
}

/// Whether it can be led to by who passes TLS through; what speaks none needs a gateway that ends it.
pub(super) fn speaks_tls(port: &Port) -> bool {
    port.tls != Tls::Terminated
}

/// Whether connections of other clusters may end at an endpoint of such a port.
pub(super) fn serves(endpoint: &Endpoint, port: &Port) -> bool {
    endpoint.exposed && endpoint.tls.unwrap_or(port.tls) != Tls::Terminated
}

/// Whether it has a name of its own in other clusters.
pub(super) fn is_named(endpoint: &Endpoint) -> bool {
    endpoint.instance_exported
}
