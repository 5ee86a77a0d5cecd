//! Which endpoint of a service gets the connection. Pure: time and randomness come in as arguments.
//! One group of endpoints, all equally near: priority and locality will choose the group before this.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use isthmus_xds::HostName;

use crate::config::settings::Balance;
use crate::snapshot::{Endpoint, Service};
use crate::socket::Millis;

/// What a choice depends on, besides the service.
#[derive(Debug)]
pub struct Choice<'a> {
    /// Only this instance.
    pub instance: Option<&'a HostName>,
    /// Addresses that were tried for this connection already.
    pub tried: &'a [SocketAddr],
    /// The client's address.
    pub source: IpAddr,
    /// Whose turn it is in round robin.
    pub turn: usize,
    /// The moment.
    pub now: Millis,
}

/// Picks a healthy endpoint that was not tried yet; if all of those are ejected, one of the ejected: an
/// endpoint that may be dead is better than none. `None` when nothing is left.
pub fn pick<'s>(
    service: &'s Service,
    choice: &Choice<'_>,
    random: &mut fastrand::Rng,
) -> Option<&'s Endpoint> {
    let may_serve = |endpoint: &Endpoint| {
        endpoint.weight > 0
            && choice.instance.is_none_or(|name| endpoint.instance.as_ref() == Some(name))
            && !choice.tried.contains(&endpoint.address)
    };
    let healthy = |endpoint: &Endpoint| may_serve(endpoint) && endpoint.state.healthy(choice.now);
    by_policy(service, choice, random, &healthy).or_else(|| by_policy(service, choice, random, &may_serve))
}

/// The endpoints in the order in which one connection would try them, `attempts` at most.
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

fn by_policy<'s>(
    service: &'s Service,
    choice: &Choice<'_>,
    random: &mut fastrand::Rng,
    usable: &dyn Fn(&Endpoint) -> bool,
) -> Option<&'s Endpoint> {
    match service.settings.balance {
        Balance::RoundRobin => from_turn(service, choice.turn, usable),
        Balance::Random => at_random(service, random, usable),
        Balance::LeastConnections => {
            let first = at_random(service, random, usable)?;
            let second =
                at_random(service, random, &|endpoint| endpoint.address != first.address && usable(endpoint));
            Some(second.filter(|second| load(second) < load(first)).unwrap_or(first))
        }
        Balance::SourceHash => {
            let score = |endpoint: &Endpoint| rendezvous(choice.source, endpoint);
            service
                .endpoints
                .iter()
                .filter(|endpoint| usable(endpoint))
                .max_by(|a, b| score(a).total_cmp(&score(b)))
        }
    }
}

/// The first usable endpoint from this turn of the schedule on.
fn from_turn<'s>(
    service: &'s Service,
    turn: usize,
    usable: &dyn Fn(&Endpoint) -> bool,
) -> Option<&'s Endpoint> {
    let turns = service.schedule.as_ref().map_or(service.endpoints.len(), |schedule| schedule.len());
    (0..turns)
        .find_map(|step| at_turn(service, (turn % turns + step) % turns).filter(|endpoint| usable(endpoint)))
}

fn at_turn(service: &Service, turn: usize) -> Option<&Endpoint> {
    let index = match &service.schedule {
        Some(schedule) => *schedule.get(turn)? as usize,
        None => turn,
    };
    service.endpoints.get(index)
}

/// Draws before a scan settles it: with most endpoints usable, two are enough on average.
const DRAWS: usize = 8;

fn at_random<'s>(
    service: &'s Service,
    random: &mut fastrand::Rng,
    usable: &dyn Fn(&Endpoint) -> bool,
) -> Option<&'s Endpoint> {
    let turns = service.schedule.as_ref().map_or(service.endpoints.len(), |schedule| schedule.len());
    if turns == 0 {
        return None;
    }
    (0..DRAWS)
        .find_map(|_| at_turn(service, random.usize(..turns)).filter(|endpoint| usable(endpoint)))
        .or_else(|| from_turn(service, random.usize(..turns), usable))
}

fn load(endpoint: &Endpoint) -> f64 {
    (f64::from(endpoint.state.active()) + 1.0) / f64::from(endpoint.weight)
}

/// Weighted rendezvous hashing: each endpoint draws a number from the source's address, the highest wins.
/// When an endpoint comes or goes, only the sources that it wins or had won move.
fn rendezvous(source: IpAddr, endpoint: &Endpoint) -> f64 {
    let mut hasher = DefaultHasher::new(); // the same keys in every process and after a restart
    (source, endpoint.address).hash(&mut hasher);
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    let uniform = ((hasher.finish() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    f64::from(endpoint.weight) / -uniform.ln()
}
