//! Keeps the record of one connection and writes it exactly once, on drop: a cancelled or panicking task still leaves
//! its log line, its counters and one reason.

mod attempted;
mod audited;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::endpoint::ServiceCounters;
use crate::hello::{Alpn, Hello};
use crate::identities::Identities;
use crate::limits::Permits;
use crate::live::Conn;
use crate::log::{Line, rfc3339};
use crate::metrics::add;
use crate::reason::Reason;
use crate::snapshot::{Endpoint, Service};
use crate::socket;
use crate::worker::Worker;

/// One connection's record, from accept to its end.
#[derive(Debug)]
pub struct Account {
    /// The connection's shared state.
    pub conn: Arc<Conn>,
    worker: Arc<Worker>,
    key: usize,
    reason: Reason,
    pub(crate) alpn: Alpn,
    attempts: u32,
    /// The endpoint's rejection was forwarded to the client.
    pub(crate) rejected: bool,
    accepted: Instant,
    hello: Option<Duration>,
    connect: Option<Duration>,
    first_byte: Option<Duration>,
    service: Option<Arc<Service>>,
    counters: Option<Arc<ServiceCounters>>,
    permits: Permits,
    pub(crate) identities: Identities,
}

impl Account {
    pub(crate) fn open(worker: &Arc<Worker>, listener: usize, peer: SocketAddr) -> Account {
        let conn = Arc::new(Conn::new(worker.process.next_id(), listener, peer));
        if let Some(counters) = worker.counters.listeners.get(listener) {
            add(&counters.accepted, 1);
        }
        Account {
            key: worker.live.insert(&conn),
            conn,
            worker: Arc::clone(worker),
            reason: Reason::Internal,
            alpn: Alpn::default(),
            attempts: 0,
            rejected: false,
            accepted: Instant::now(),
            hello: None,
            connect: None,
            first_byte: None,
            service: None,
            counters: None,
            permits: Permits::default(),
            identities: Identities::default(),
        }
    }

    /// Checks the limits of listener and process, at accept.
    pub(crate) fn admit(&mut self) -> Result<(), Reason> {
        let process = &self.worker.process;
        let tables = process.tables.load();
        self.permits.process = Some(process.limits.admit(self.conn.listener, &tables.live)?);
        Ok(())
    }

    /// Checks the limit of the source, once it is known.
    pub(crate) fn admit_source(&mut self, source: Option<SocketAddr>) -> Result<(), Reason> {
        if let Some(source) = source {
            let _first = self.conn.source.set(socket::canonical(source));
        }
        let process = &self.worker.process;
        let limit = process.tables.load().live.limits.per_source;
        self.permits.source = process.limits.admit_source(self.conn.client().ip(), limit)?;
        Ok(())
    }

    /// Checks the limit of the service, after route.
    pub(crate) fn admit_service(&mut self, service: &Arc<Service>) -> Result<(), Reason> {
        self.service = Some(Arc::clone(service));
        if self.permits.service.is_none() {
            let permit = service.state.admit(service.rules.max_connections);
            self.permits.service = Some(permit.ok_or(Reason::LimitService)?);
        }
        Ok(())
    }

    pub(crate) fn record_hello(&mut self, hello: &Hello) {
        self.hello = Some(self.accepted.elapsed());
        self.alpn = hello.alpn.clone();
        if let Some(sni) = &hello.sni {
            let _first = self.conn.sni.set(sni.clone());
        }
    }

    /// Records why the connection ended.
    pub(crate) fn close(mut self, reason: Reason) {
        self.reason = reason;
        self.audit_end();
    }

    fn count(&self) {
        let (bytes_in, bytes_out) = (self.conn.bytes_in.load(Relaxed), self.conn.bytes_out.load(Relaxed));
        let counters = &self.worker.counters;
        if let Some(listener) = counters.listeners.get(self.conn.listener) {
            listener.ended.get(self.reason as usize).into_iter().for_each(|count| add(count, 1));
            add(&listener.bytes_in, bytes_in);
            add(&listener.bytes_out, bytes_out);
        }
        if let Some(service) = &self.counters {
            add(&service.bytes_in, bytes_in);
            add(&service.bytes_out, bytes_out);
        }
        for (histogram, duration) in [
            (&counters.hello, self.hello),
            (&counters.connect, self.connect),
            (&counters.first_byte, self.first_byte),
            (&counters.duration, Some(self.accepted.elapsed())),
        ] {
            duration.into_iter().for_each(|duration| histogram.record(duration));
        }
    }

    fn write(&self) {
        let process = &self.worker.process;
        let rules = &process.fixed.access_log;
        let shown = [(Reason::NoData, rules.no_data), (Reason::GatewayProbe, rules.probes)];
        if !rules.enabled || shown.contains(&(self.reason, false)) {
            return;
        }
        let endpoint = self.conn.target().map(|target| target.endpoint);
        let mut known = self.service.iter().flat_map(|service| &service.endpoints);
        let reached = known.find(|candidate| Some(candidate.address) == endpoint);
        let line = Line {
            time: rfc3339(self.conn.since),
            listener: process.fixed.binds.get(self.conn.listener).map_or("", |bind| &bind.name),
            peer: self.conn.client(),
            sni: self.conn.asked_for(),
            alpn: &self.alpn,
            identities: &self.identities,
            service: self.service.as_ref().map(|service| service.name()),
            endpoint,
            cluster: reached.and_then(Endpoint::cluster).unwrap_or(&process.fixed.node.cluster),
            locality: reached.map(|endpoint| endpoint.traits.locality.to_string()),
            attempts: self.attempts,
            bytes_in: self.conn.bytes_in.load(Relaxed),
            bytes_out: self.conn.bytes_out.load(Relaxed),
            hello_ms: self.hello,
            connect_ms: self.connect,
            first_byte_ms: self.first_byte,
            duration_ms: Some(self.accepted.elapsed()),
            reason: self.reason,
            hint: self.reason.hint(),
        };
        process.logs.access.write(self.worker.index, &line);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.worker.live.remove(self.key);
        self.count();
        self.write();
    }
}
