//! The results of mTLS checks: what they change in the own slices, and why a host is not exported.

use std::collections::BTreeSet;
use std::time::Instant;

use isthmus_health::mtls::{MtlsCheck, Subject};
use isthmus_model::host::HostPattern;
use isthmus_model::slice::Slice;
use tokio::sync::watch;

use super::{OwnServices, State};
use crate::agent::mtls_check::REMEDY;

/// Endpoints of a host that the reason names.
const NAMED: usize = 10;

impl OwnServices {
    /// The endpoints to check now, and when the next one is due.
    pub(in crate::agent) fn due_checks(&self, now: Instant) -> (Vec<Subject>, Option<Instant>) {
        let mut state = self.state.lock();
        (state.mtls_checks.next(now), state.mtls_checks.next_due())
    }

    /// The protocols (ALPN) of the services that have an endpoint: clients offer one of them. None, if a service of it
    /// takes clients without.
    pub(in crate::agent) fn protocols_of(&self, subject: &Subject) -> Vec<String> {
        let state = self.state.lock();
        let ports = state.services.get(&subject.host).map(Vec::as_slice).unwrap_or_default();
        let mut protocols = BTreeSet::new();
        for port in ports.iter().filter(|port| port.has_endpoint(&subject.address)) {
            if port.alpn.is_empty() {
                return Vec::new();
            }
            protocols.extend(port.alpn.iter().cloned());
        }
        protocols.into_iter().collect()
    }

    /// Applies the result of an mTLS check.
    pub(in crate::agent) fn record_check(&self, subject: Subject, result: MtlsCheck, now: Instant) {
        let order = self.changing.lock();
        let (is_news, known) = {
            let mut state = self.state.lock();
            (state.mtls_checks.seen(&subject, result, now), state.mtls_checks.result(&subject))
        };
        if is_news {
            let flaw = match known {
                MtlsCheck::NotRequired(seen) => Some(("it accepts clients without a certificate", seen)),
                MtlsCheck::Unreachable(seen) => Some(("its mTLS check has failed", seen)),
                MtlsCheck::Awaited | MtlsCheck::Required => None,
            };
            if let Some((why, seen)) = flaw {
                let (service, endpoint, remedy) = (&subject.host, &subject.address, REMEDY);
                tracing::warn!(%service, %endpoint, seen, remedy, "not_mtls: endpoint is not exported: {why}");
            }
            self.offer(&[subject.host]);
        }
        drop(order);
        self.tell_whether_awaited();
        self.to_check.notify_one();
    }

    /// Whether an endpoint awaits its first check.
    pub(in crate::agent) fn awaits(&self) -> watch::Receiver<bool> {
        self.awaits.subscribe()
    }

    pub(super) fn tell_whether_awaited(&self) {
        let awaits = self.state.lock().mtls_checks.awaits();
        self.awaits.send_if_modified(|told| std::mem::replace(told, awaits) != awaits);
    }

    /// Why a host that an export rule selects is not exported; none: it is, or no rule selects it.
    pub(super) fn why_held(&self, state: &State, host: &HostPattern) -> Option<String> {
        if state.own.get(host).is_some_and(Slice::is_exported) {
            return None;
        }
        let ports = state.services.get(host)?;
        self.export_of(host, ports)?;
        if let Some(problems) = state.unenforced.get(host) {
            return Some(problems.join("; "));
        }
        let addresses =
            ports.iter().flat_map(|port| &port.endpoints).map(|endpoint| endpoint.address.clone());
        let seen = addresses.take(NAMED).map(|address| {
            let subject = Subject { host: host.clone(), address };
            let address = &subject.address;
            match state.mtls_checks.result(&subject) {
                MtlsCheck::NotRequired(seen) => format!("endpoint {address} {seen}"),
                MtlsCheck::Unreachable(why) => format!("endpoint {address} could not be checked: {why}"),
                MtlsCheck::Awaited | MtlsCheck::Required => format!("endpoint {address} is not checked yet"),
            }
        });
        let seen: Vec<_> = seen.collect();
        Some(format!(
            "not_mtls: no endpoint is known to require a client certificate: {}; {REMEDY}",
            seen.join("; ")
        ))
    }
}
