//! The health of a service's endpoints as far as it depends on the others: how many may be ejected, who is tried again,
//! how each is probed.

use isthmus_model::services::Probe;

use super::{Endpoint, Service};
use crate::config::settings::Ejection;
use crate::endpoint::Cause;
use crate::socket::Millis;

impl Service {
    /// Records a refused or timed-out connect; true if that ejects the endpoint.
    pub(crate) fn failed(&self, endpoint: &Endpoint, now: Millis, rule: &Ejection) -> bool {
        let may_eject = || self.may_eject(endpoint, now, rule);
        let is_ejected = endpoint.state.health.failed(now, rule, self.rules.health.slow_start, may_eject);
        if is_ejected {
            self.schedule_trial(now);
        }
        is_ejected
    }

    /// Ejects an endpoint that does not answer the gateway's own hellos; false if it is ejected already or may not be.
    pub(crate) fn eject(&self, endpoint: &Endpoint, now: Millis, rule: &Ejection) -> bool {
        self.may_eject(endpoint, now, rule)
            && endpoint.state.health.eject(now, rule, self.rules.health.slow_start, Cause::Hellos)
    }

    /// Whether another endpoint may be ejected: any where another priority has a healthy one, otherwise one always, and
    /// more up to the rule's share.
    fn may_eject(&self, endpoint: &Endpoint, now: Millis, rule: &Ejection) -> bool {
        let is_healthy = |one: &&Endpoint| one.weight > 0 && one.state.healthy(now);
        let mut healthy = self.endpoints.iter().filter(is_healthy);
        if healthy.any(|one| one.priority != endpoint.priority) {
            return true;
        }
        let ejected = self.endpoints.iter().filter(|one| one.state.health.is_ejected(now)).count();
        ejected < (self.endpoints.len() * usize::from(rule.max_percent) / 100).max(1)
    }

    /// Looks for the next trial of an ejected endpoint.
    pub(crate) fn schedule_trial(&self, now: Millis) {
        let due = self.endpoints.iter().filter_map(|endpoint| endpoint.state.health.next_trial(now)).min();
        self.state.set_next_trial(due);
    }

    /// Returns how an endpoint is probed; none if it is not. The gateway of another cluster is always asked by a hello:
    /// the ports and paths of `health` are those of endpoints.
    pub(crate) fn probe(&self, endpoint: &Endpoint) -> Option<&Probe> {
        let probe = self.rules.health.probe.as_ref().filter(|_| self.rules.health.probes())?;
        let probe = if endpoint.cluster().is_some() { &Probe::Tls } else { probe };
        let has_name = self.own_name().is_some() && !self.ends_tls();
        (endpoint.weight > 0 && (*probe != Probe::Tls || has_name)).then_some(probe)
    }
}

impl Endpoint {
    /// Whether it is not of a farther priority than another one.
    pub(crate) fn is_as_near_as(&self, other: &Endpoint) -> bool {
        self.priority <= other.priority
    }
}
