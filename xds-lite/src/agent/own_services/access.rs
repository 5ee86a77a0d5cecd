//! The rules for callers of own services: whether they can be enforced, whom they mean when a cluster joins, and which
//! peers are told of them.

use isthmus_certs::TrustDomain;
use isthmus_model::host::HostPattern;
use isthmus_model::slice::{Cluster, Offer, Port, Slice};
use isthmus_registry::access::WiderRules;
use isthmus_registry::registry::unenforced;

use super::{OwnServices, State};

impl OwnServices {
    /// Workspaces may mean callers of this cluster from now on, and it is sent the rules that concern it.
    pub(in crate::agent) fn add_peer(&self, cluster: &Cluster, domain: &TrustDomain) {
        let _order = self.changing.lock();
        let is_news = self.state.lock().domains.add(cluster.clone(), domain.clone());
        if is_news && !self.settings.access.workspaces.is_empty() {
            let hosts: Vec<_> = self.state.lock().services.keys().cloned().collect();
            self.offer(&hosts);
            self.log_problems();
        }
        self.tell_peers_apart();
    }

    /// Makes a view of its own for each peer's trust domain that rules name and that has none.
    pub(super) fn tell_peers_apart(&self) {
        let missing = self.views.peers.missing();
        if missing.is_empty() {
            return;
        }
        let all: Vec<Slice> = self.state.lock().own.slices().cloned().collect();
        self.views.peers.divide(missing, &all);
    }
}

impl State {
    /// Notes why the rules for callers of a host cannot be enforced, if so.
    pub(super) fn check_access(&mut self, host: &HostPattern, rules: &WiderRules) {
        let ports = self.services.get(host).map(Vec::as_slice).unwrap_or_default();
        let problem = |(port, error)| {
            format!("{host}:{port}: nobody may connect, because its rules cannot be enforced: {error}")
        };
        let problems: Vec<_> = unenforced(ports, rules, &self.domains).map(problem).collect();
        if problems.is_empty() {
            self.unenforced.remove(host);
        } else {
            self.unenforced.insert(host.clone(), problems);
        }
    }
}

/// Gives ports of a former offer the rules and the policy of the present one: they wait for nothing.
pub(super) fn replace(former: &mut Offer, present: &[Port]) {
    for port in &mut former.ports {
        let same = |now: &&Port| now.number == port.number && now.tls == port.tls;
        if let Some(now) = present.iter().find(same) {
            port.access = now.access.clone();
            port.traffic = now.traffic.clone();
        }
    }
}
