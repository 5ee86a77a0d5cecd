//! What `explain` asks of the own services.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use isthmus_health::mtls::{MtlsCheck, Subject};
use isthmus_model::address::Target;
use isthmus_model::host::HostPattern;
use isthmus_model::services::Service;
use isthmus_registry::exports::Export;
use parking_lot::MutexGuard;

use super::OwnServices;

/// Hosts searched for a name under one lock.
const SEARCHED: usize = 512;

/// What is known of one host of the registry.
pub(in crate::agent) struct HostReport {
    pub(in crate::agent) ports: Vec<Service>,
    /// How it is exported, if a rule selects it.
    pub(in crate::agent) export: Option<Export>,
    /// Why it is not exported; none: it is.
    pub(in crate::agent) why_not: Option<String>,
    /// The results of mTLS checks.
    pub(in crate::agent) checks: BTreeMap<Target, MtlsCheck>,
}

impl OwnServices {
    /// Whether the registry has a host.
    pub(in crate::agent) fn contains(&self, host: &HostPattern) -> bool {
        self.state.lock().services.contains_key(host)
    }

    /// What is known of a host of the registry.
    pub(in crate::agent) fn report_of(&self, host: &HostPattern) -> Option<HostReport> {
        let state = self.state.lock();
        let ports = state.services.get(host)?.clone();
        let addresses = ports.iter().flat_map(|port| &port.endpoints).map(|endpoint| &endpoint.address);
        let check = |address: &Target| {
            let subject = Subject { host: host.clone(), address: address.clone() };
            (address.clone(), state.mtls_checks.result(&subject))
        };
        let export = self.export_of(host, &ports);
        let why_not = match &export {
            None => Some("no export rule selects it".to_owned()),
            Some(_) => self.why_held(&state, host),
        };
        Some(HostReport { checks: addresses.map(check).collect(), export, why_not, ports })
    }

    /// What `find` returns for each host of the registry. Other work on the services goes on meanwhile.
    pub(in crate::agent) fn search<T>(&self, find: impl Fn(&HostPattern, &[Service]) -> Option<T>) -> Vec<T> {
        let mut found = Vec::new();
        let mut last: Option<HostPattern> = None;
        loop {
            let state = self.state.lock();
            let rest = (last.as_ref().map_or(Unbounded, Excluded), Unbounded);
            let mut next = None;
            for (host, ports) in state.services.range::<HostPattern, _>(rest).take(SEARCHED) {
                found.extend(find(host, ports));
                next = Some(host.clone());
            }
            MutexGuard::unlock_fair(state);
            let Some(next) = next else { return found };
            last = Some(next);
        }
    }
}
