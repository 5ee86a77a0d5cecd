//! Decides which ports and endpoints of a slice an Envoy exposes to other clusters, in one place.

use isthmus_model::slice::{Endpoint, Offer, Port, Tls};

/// Whether a port is exported on all of these gateways.
pub(super) fn is_offered(offer: &Offer, port: &Port, gateways: &[String]) -> bool {
    let is_open = offer.exposed_on.is_empty() || gateways.iter().all(|name| offer.exposed_on.contains(name));
    port.exported && is_open
}

/// Why an Envoy cannot serve a port, if so.
pub(super) fn unserved(port: &Port) -> Option<&'static str> {
    if port.tls == Tls::Terminated {
        Some("its endpoints do not speak TLS, and stock Envoys only pass TLS through")
    } else if port.access.restricts() {
        Some("it has rules for callers, which stock Envoys are not given")
    } else {
        None
    }
}

/// Whether an endpoint of a port serves connections of other clusters.
pub(super) fn serves(endpoint: &Endpoint, port: &Port) -> bool {
    endpoint.exposed && endpoint.tls.unwrap_or(port.tls) != Tls::Terminated
}

/// Whether an instance has its own name in other clusters.
pub(super) fn is_named(endpoint: &Endpoint) -> bool {
    endpoint.instance_exported
}
