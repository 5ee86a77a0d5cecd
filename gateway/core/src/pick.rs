//! Picks the endpoint of a service for a connection: of the part of a split whose turn it is, in the priority whose turn
//! it is by health, by the balancing policy. Pure: time and randomness are arguments.

mod deal;
mod draw;
mod guard;
mod search;

use std::net::{IpAddr, SocketAddr};

use isthmus_certs::SpiffeId;
use isthmus_model::HostName;

use crate::config::settings::Side;
use crate::family::Off;
use crate::route::Route;
use crate::snapshot::{Endpoint, Service, Snapshot};
use crate::socket::Millis;

pub(crate) use guard::record;
pub(crate) use search::Search;

/// What a choice depends on, besides the service.
#[derive(Debug)]
pub struct Choice<'a> {
    /// Restricts the choice to this instance.
    pub instance: Option<&'a HostName>,
    /// The side of the listener.
    pub side: Side,
    /// Addresses already tried for this connection.
    pub tried: &'a [SocketAddr],
    /// The client's address.
    pub source: IpAddr,
    /// The client's identity, where it is known.
    pub identity: Option<&'a SpiffeId>,
    /// Turn in round robin: taken once for each connection, and never by `explain`.
    pub turn: usize,
    /// Address families without a route on this machine.
    pub off: Off,
    /// The current time.
    pub now: Millis,
}

/// A choice: a route, an endpoint of its service, and the tables that both come from.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The route.
    pub route: &'a Route,
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// The tables.
    pub tables: &'a Snapshot,
}

/// Picks an endpoint that was not tried yet. Healthy ones come first: those of the part and the priority whose turn it
/// is, then those of other priorities, then those of other parts; of them those that are not demoted. Then an unhealthy
/// one, then one of an address family that is off, because a possibly dead endpoint is better than none, unless panic is
/// off. In panic the first attempt goes to any endpoint of its priority. `None` if none is left.
pub fn pick<'s>(
    service: &'s Service,
    choice: &Choice<'_>,
    random: &mut fastrand::Rng,
) -> Option<&'s Endpoint> {
    let search = Search::new(service, choice);
    if service.is_even() {
        let usual = search.draw(service.nearest(), choice.turn, |endpoint| search.is_whole(endpoint));
        if let Some(endpoint) = usual.endpoint(random) {
            return Some(endpoint);
        }
    }
    search.anywhere(random)
}

/// Returns the endpoints in the order in which one connection would try them, at most `attempts`.
pub fn order<'s>(
    service: &'s Service,
    choice: &Choice<'_>,
    attempts: usize,
    random: &mut fastrand::Rng,
) -> Vec<&'s Endpoint> {
    let mut order: Vec<&Endpoint> = Vec::new();
    let mut tried = choice.tried.to_vec();
    while order.len() < attempts {
        let Some(next) = pick(service, &Choice { tried: &tried, ..*choice }, random) else { break };
        tried.push(next.address);
        order.push(next);
    }
    order
}

#[cfg(test)]
mod tests;
