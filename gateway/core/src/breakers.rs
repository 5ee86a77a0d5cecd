//! Counts what a service's connections have under way: connects, and retries within its budget. What is beyond a limit is
//! refused at once and never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::config::settings::Replay;
use crate::connects::Connects;
use crate::endpoint::{Counted, EndpointState, ServiceState};
use crate::pick::Step;
use crate::reason::Reason;
use crate::snapshot::{Endpoint, Service};

/// Retries at once that every service may have, whatever its traffic.
const LEAST_RETRIES: u32 = 3;

/// A connect or a retry that is under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay {
    service: Arc<ServiceState>,
    count: fn(&Connects) -> &AtomicU32,
}

impl UnderWay {
    fn below(
        service: &Arc<ServiceState>,
        count: fn(&Connects) -> &AtomicU32,
        limit: u32,
    ) -> Option<UnderWay> {
        let one_more = |here| (here < limit).then(|| here + 1);
        let counted = count(&service.connects).fetch_update(Relaxed, Relaxed, one_more);
        counted.ok().map(|_| UnderWay { service: Arc::clone(service), count })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        (self.count)(&self.service.connects).fetch_sub(1, Relaxed);
    }
}

impl ServiceState {
    /// Connects that are under way.
    #[must_use]
    pub fn pending(&self) -> u32 {
        self.connects.pending.load(Relaxed)
    }

    /// Retries that are under way and count against the budget.
    #[must_use]
    pub fn retries(&self) -> u32 {
        self.connects.retries.load(Relaxed)
    }

    /// Begins a retry: of the service's open connections one in five (`ratio`) may be in one, and always three.
    pub(crate) fn begin_retry(self: &Arc<Self>, limits: &Replay) -> Option<UnderWay> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a ratio of 0 to 1 of a number of connections"
        )]
        let share = (f64::from(self.active()) * limits.ratio) as u32;
        UnderWay::below(self, |connects| &connects.retries, share.max(LEAST_RETRIES))
    }
}

/// The places of one connect: at its service until it is connected, at its endpoint until the connection ends.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) pending: UnderWay,
    pub(crate) endpoint: Counted<EndpointState>,
}

impl Places {
    /// Takes the places for a connect.
    ///
    /// # Errors
    /// `limit_pending`, or `limit_endpoint` if other connections have taken the endpoint's last place meanwhile.
    pub(crate) fn reserve(step: Step<'_>) -> Result<Places, Reason> {
        let service = &step.route.service;
        let breakers = &service.rules.traffic.breakers;
        let most = breakers.max_pending.unwrap_or(u32::MAX);
        let pending = UnderWay::below(&service.state, |connects| &connects.pending, most);
        let most = breakers.max_connections_per_endpoint.unwrap_or(u32::MAX);
        Ok(Places {
            pending: pending.ok_or(Reason::LimitPending)?,
            endpoint: Counted::below(&step.endpoint.state, most).ok_or(Reason::LimitEndpoint)?,
        })
    }
}

impl Service {
    /// Whether an endpoint may have one more connection.
    pub(crate) fn has_room(&self, endpoint: &Endpoint) -> bool {
        let most = self.rules.traffic.breakers.max_connections_per_endpoint;
        most.is_none_or(|most| endpoint.state.active() < most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Replay = Replay { ratio: 0.2, burst: 20, source_share: 0.5 };

    fn retries(service: &Arc<ServiceState>) -> Vec<UnderWay> {
        std::iter::from_fn(|| service.begin_retry(&LIMITS)).collect()
    }

    #[test]
    fn retry_budget_is_a_fifth_of_open_connections_and_never_below_3() {
        let service = Arc::new(ServiceState::default());
        for (connections, allowed) in [(0, 3), (1, 3), (15, 3), (20, 4), (100, 20)] {
            let _open: Vec<_> = (0..connections).map(|_| service.admit(None).unwrap()).collect();
            let under_way = retries(&service);
            assert_eq!(under_way.len(), allowed, "{connections} connections");
            drop(under_way);
            assert_eq!(service.retries(), 0);
        }
    }

    #[test]
    fn retry_budget_of_a_service_is_its_own() {
        let [one, other] = [(); 2].map(|()| Arc::new(ServiceState::default()));
        let _all = retries(&one);
        assert_eq!(retries(&other).len(), 3);
    }
}
