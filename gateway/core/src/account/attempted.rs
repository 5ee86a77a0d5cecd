//! Records the attempts of a connection to reach an endpoint.

use std::sync::atomic::Ordering::Relaxed;

use super::Account;
use crate::breakers::{Places, UnderWay};
use crate::endpoint::{Counted, EndpointState};
use crate::health::Why;
use crate::live::Target;
use crate::metrics::add;
use crate::pick::{Step, record};
use crate::reason::Reason;
use crate::socket::{self, Millis};

impl Account {
    /// Begins an attempt. The connect is under way until the result is dropped.
    ///
    /// # Errors
    /// `limit_pending` or `limit_endpoint`.
    pub(crate) fn attempt(&mut self, step: Step<'_>) -> Result<UnderWay, Reason> {
        let Places { pending, endpoint } = Places::reserve(step)?;
        self.count_attempt();
        self.moves_to(step, endpoint);
        Ok(pending)
    }

    /// Counts one more endpoint that is tried.
    pub(crate) fn count_attempt(&mut self) {
        self.attempts += 1;
    }

    /// Records the endpoint that the connection is to be served by.
    pub(crate) fn moves_to(&mut self, step: Step<'_>, place: Counted<EndpointState>) {
        self.permits.endpoint = Some(place);
        self.lead_to(step, None);
    }

    fn lead_to(&self, step: Step<'_>, connected: Option<Millis>) {
        self.conn.leads_to(Target {
            service: step.route.service.clone(),
            endpoint: step.endpoint.address,
            connected,
        });
    }

    /// Records that an endpoint has the client's first `sent` bytes.
    pub(crate) fn connected(&mut self, step: Step<'_>, sent: usize) {
        let service = &step.route.service;
        if step.endpoint.state.health.connected(socket::now()) {
            self.worker.process.health.regained(service, step.endpoint);
        }
        record(service, step.endpoint, false, &self.worker.process.metrics);
        self.connect = Some(self.accepted.elapsed().saturating_sub(self.hello.unwrap_or_default()));
        self.conn.bytes_in.store(sent as u64, Relaxed);
        self.lead_to(step, Some(self.worker.live.coarse_now()));
        if self.counters.is_none() {
            service.state.earn_replay(&step.tables.live.upstream.replay);
            let counters = self.worker.process.metrics.services.for_service(service);
            add(&counters.connections, 1);
            self.counters = Some(counters);
        }
    }

    /// Records the end of the wait for an answer; the relay forwards these bytes first, if there are any.
    pub(crate) fn answered(&mut self, bytes: usize) {
        if bytes > 0 {
            let before = self.hello.unwrap_or_default() + self.connect.unwrap_or_default();
            self.first_byte = Some(self.accepted.elapsed().saturating_sub(before));
            self.conn.bytes_out.store(bytes as u64, Relaxed);
        }
    }

    /// Records a failed connect. A refusal or a timeout counts against the endpoint; a shortage on this machine does
    /// not.
    pub(crate) fn unreached(&self, reason: Reason, step: Step<'_>) {
        self.worker.counters.failed(reason);
        let service = &step.route.service;
        if !matches!(reason, Reason::LocalResources | Reason::Loop) {
            record(service, step.endpoint, true, &self.worker.process.metrics);
        }
        if !matches!(reason, Reason::ConnectRefused | Reason::ConnectTimeout) {
            return;
        }
        let rule = &step.tables.live.upstream.ejection;
        if service.failed(step.endpoint, socket::now(), rule) {
            add(&self.worker.counters.ejections, 1);
            self.worker.process.health.lost(service, step.endpoint, Why::Connects(reason));
        }
    }

    /// Whether the service's budget allows another replay of this client's hello.
    pub(crate) fn may_replay(&self, step: Step<'_>) -> bool {
        let limits = &step.tables.live.upstream.replay;
        step.route.service.state.may_replay(self.conn.client().ip(), socket::now(), limits)
    }

    /// Records a replay of the client's hello.
    pub(crate) fn replays(&self) {
        self.worker.counters.failed(Reason::UpstreamRejected);
        add(&self.worker.counters.replays, 1);
    }

    /// Records that the endpoint's rejection is forwarded to the client.
    pub(crate) fn turned_down(&mut self, bytes: usize) {
        self.worker.counters.failed(Reason::UpstreamRejected);
        self.rejected = true;
        self.answered(bytes);
    }
}
