//! Sends one connection now and then to an ejected endpoint first, so that one that works again returns without waiting
//! for the end of its ejection. If it fails, the connection goes on as if it had never been tried.

use crate::pick::{Choice, Search, pick};
use crate::snapshot::{Endpoint, Service};

/// Returns the ejected endpoint that this connection tries first; usually none.
pub(crate) fn trial<'s>(service: &'s Service, choice: &Choice<'_>) -> Option<&'s Endpoint> {
    if !service.state.is_trial_due(choice.now) {
        return None;
    }
    let tried = begin(service, choice);
    service.schedule_trial(choice.now);
    tried
}

fn begin<'s>(service: &'s Service, choice: &Choice<'_>) -> Option<&'s Endpoint> {
    // Without a healthy endpoint of at most its distance, nobody would be there if it fails, or it is not wanted yet.
    let other = pick(service, choice, &mut fastrand::Rng::new())?;
    let (search, now) = (Search::new(service, choice), choice.now);
    // A gateway that is down by the matrix returns by the matrix: one connection before that would be a move there and back.
    let is_due = |endpoint: &&Endpoint| {
        endpoint.state.health.next_trial(now).is_some_and(|due| due <= now)
            && !endpoint.state.is_gateway_down()
    };
    let may_try = |endpoint: &&Endpoint| {
        search.may_use(endpoint) && !choice.off.has(endpoint.address.ip()) && endpoint.is_as_near_as(other)
    };
    let mut due = service.endpoints.iter().filter(is_due).filter(may_try);
    due.find(|endpoint| other.state.healthy(now) && endpoint.state.health.begin_trial(now))
}
