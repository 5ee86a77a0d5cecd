//! Owns the services of the own cluster: what registry files and registered VMs define, the results of mTLS checks, and
//! the own slices that follow from them; publishes these to every view.
//!
//! `changing` is the order of changes: who changes slices holds it until they are published, so all views and `peers`
//! see one order, and the store persists what is published. `state` guards the content and is held for a few hosts at a
//! time; `summary` has what pages and metrics read, and is held for a moment. Each may be taken under the one before.
//! Pages take `summary` alone, `explain` also `state`; nobody who serves a page or a stream takes `changing`.

mod access;
mod checks;
mod doors;
mod registrations;
mod reports;
mod summary;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Instant;

use isthmus_health::mtls::{MtlsChecks, Subject};
use isthmus_model::address::Target;
use isthmus_model::host::HostPattern;
use isthmus_model::services::Service;
use isthmus_model::slice::{Gateway, Key, Offer, Slice};
use isthmus_registry::access::Domains;
use isthmus_registry::exports::Export;
use isthmus_registry::files::{Found, Part};
use isthmus_registry::registered::Registered;
use isthmus_registry::registry::{Own, Terms, export_of, offers};
use isthmus_registry::source::{Snapshot, Source, merge, registered_of};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use super::config::Settings;
use super::names::NameRegistry;
use super::peers::Peers;
use super::persistence::{self, incarnation};
use super::reports::NotReady;
use super::state_directory::StateDirectory;
use super::views::Views;
use doors::Doors;

pub(super) use reports::HostReport;
pub(super) use summary::{Listed, Summary};

/// Hosts whose slices are computed under one lock.
const AT_ONCE: usize = 128;

/// The services of the own cluster.
pub(super) struct OwnServices {
    settings: Arc<Settings>,
    views: Arc<Views>,
    peers: Arc<Peers>,
    directory: Arc<StateDirectory>,
    names: Arc<NameRegistry>,
    gateways: Vec<(String, Vec<Gateway>)>,
    changing: Mutex<()>,
    state: Mutex<State>,
    summary: Mutex<Summary>,
    /// Registrations have changed, or registry files.
    pub(super) news: Arc<Notify>,
    /// Endpoints are to be checked, or a check has ended.
    pub(super) to_check: Notify,
    /// Whether an endpoint awaits its first check.
    awaits: watch::Sender<bool>,
}

struct State {
    files: Found,
    registered: Registered,
    /// Hosts offered before a restart that the registry has not confirmed since.
    unconfirmed: BTreeSet<HostPattern>,
    /// The registrations from before a restart have been read.
    has_registrations: bool,
    /// Problems of services that another source already defines, by host.
    left_out: BTreeMap<HostPattern, Vec<String>>,
    /// Why the rules for callers of services cannot be enforced, by host.
    unenforced: BTreeMap<HostPattern, Vec<String>>,
    /// The trust domains whose callers rules may mean by cluster.
    domains: Domains,
    services: BTreeMap<HostPattern, Vec<Service>>,
    /// Those of `services` whose TLS gateways end.
    doors: Doors,
    own: Own,
    mtls_checks: MtlsChecks,
}

impl OwnServices {
    /// Restores the slices of before a restart, and publishes them.
    pub(super) fn new(
        settings: Arc<Settings>,
        views: Arc<Views>,
        peers: Arc<Peers>,
        directory: Arc<StateDirectory>,
        names: Arc<NameRegistry>,
        before: Vec<Slice>,
    ) -> OwnServices {
        let mut domains = Domains::new(settings.cluster.clone(), views.trust_domain().clone());
        for peer in &settings.peers {
            domains.add(peer.cluster.clone(), peer.domain.clone());
        }
        let own = Own::restored(settings.cluster.clone(), incarnation(), before);
        let gateways = settings.gateways.iter().map(|gateway| {
            let at =
                |address: &_| Gateway { address: Clone::clone(address), locality: gateway.locality.clone() };
            (gateway.name.clone(), gateway.addresses.iter().map(at).collect())
        });
        let restored: Vec<_> = own.slices().cloned().collect();
        let exported = restored.iter().filter(|slice| slice.is_exported()).count();
        let state = State {
            files: Found::default(),
            registered: Registered::default(),
            unconfirmed: restored.iter().map(|slice| slice.key.host.clone()).collect(),
            has_registrations: false,
            left_out: BTreeMap::new(),
            unenforced: BTreeMap::new(),
            domains,
            services: BTreeMap::new(),
            doors: Doors::default(),
            own,
            mtls_checks: MtlsChecks::default(),
        };
        let services = OwnServices {
            gateways: gateways.collect(),
            settings,
            views,
            peers,
            directory,
            names,
            changing: Mutex::new(()),
            state: Mutex::new(state),
            summary: Mutex::new(Summary::new(exported)),
            news: Arc::default(),
            to_check: Notify::new(),
            awaits: watch::Sender::new(false),
        };
        // They carry a new incarnation.
        services.publish(&restored);
        services
    }

    /// Counts, and lists of at most this many entries.
    pub(super) fn summary(&self, listed: usize) -> Listed {
        self.summary.lock().list(listed)
    }

    /// Applies a part of the registry's files.
    pub(super) fn apply_part(&self, part: Part, now: Instant) {
        let _order = self.changing.lock();
        let is_last = part.summary.is_some();
        let hosts = {
            let mut state = self.state.lock();
            let mut hosts: BTreeSet<HostPattern> = state.files.remove_part(part).into_iter().collect();
            hosts.extend(state.disproved());
            hosts
        };
        self.update(hosts, now);
        if is_last {
            self.log_problems();
        }
    }

    /// Replaces the services of these hosts with what the sources have now, and publishes changes at once. The cost is
    /// proportional to the change.
    fn update(&self, mut hosts: BTreeSet<HostPattern>, now: Instant) {
        let under: Vec<_> = {
            let state = self.state.lock();
            hosts.iter().flat_map(|host| state.registered.under(host)).cloned().collect()
        };
        hosts.extend(under);
        let hosts: Vec<_> = hosts.into_iter().collect();
        let mut waits = false;
        let (mut gone, mut there) = (Vec::new(), Vec::new());
        for hosts in hosts.chunks(AT_ONCE) {
            let mut state = self.state.lock();
            for host in hosts {
                state.unconfirmed.remove(host);
                state.gather(host);
                let wanted = self.candidates(&state, host);
                waits |= state.mtls_checks.want(host, wanted, now);
                if state.services.contains_key(host) { &mut there } else { &mut gone }.push(host.clone());
            }
            MutexGuard::unlock_fair(state);
        }
        // A name that has moved is free before its new host has it.
        gone.append(&mut there);
        self.offer(&gone);
        if waits {
            self.to_check.notify_one();
        }
        self.tell_whether_awaited();
    }

    /// Computes the slices of these hosts anew, and publishes those that have changed.
    fn offer(&self, hosts: &[HostPattern]) {
        let mut changed = Vec::new();
        for hosts in hosts.chunks(AT_ONCE) {
            let mut state = self.state.lock();
            changed.extend(self.set_offers(&mut state, hosts));
            MutexGuard::unlock_fair(state);
        }
        if changed.is_empty() {
            return;
        }
        tracing::info!(slices = changed.len(), "own slices changed");
        for slice in &changed {
            let (key, revision) = (&slice.key, slice.order.revision);
            let _change =
                tracing::debug_span!("change", cluster = %key.cluster, host = %key.host, revision).entered();
            tracing::debug!(is_exported = slice.is_exported(), "slice published");
        }
        self.publish(&changed);
    }

    fn set_offers(&self, state: &mut State, hosts: &[HostPattern]) -> Vec<Slice> {
        for host in hosts {
            state.check_access(host, &self.settings.access);
        }
        let demands = |host: &HostPattern, address: &_| {
            state.mtls_checks.demands(&Subject { host: host.clone(), address: Clone::clone(address) })
        };
        let terms = Terms {
            cluster: &self.settings.cluster,
            network: &self.settings.network,
            exports: &self.settings.exports,
            rules: &self.settings.access,
            domains: &state.domains,
            gateways: &self.gateways,
            demands: &demands,
        };
        let services = hosts.iter().filter_map(|host| state.services.get(host)).flatten().cloned();
        let mut some = offers(services, &terms);
        state.wait_for_proof(&mut some);
        let all = hosts.iter().map(|host| (host.clone(), some.remove(host))).collect();
        let is_exported = |state: &State, host: &_| state.own.get(host).is_some_and(Slice::is_exported);
        let before = hosts.iter().filter(|host| is_exported(state, host)).count();
        let changed = state.own.set_offers(all);
        let after = hosts.iter().filter(|host| is_exported(state, host)).count();
        let mut summary = self.summary.lock();
        summary.exported = summary.exported - before + after;
        summary.hosts = state.services.len();
        for host in hosts {
            summary.set_held(host, self.why_held(state, host));
        }
        changed
    }

    /// Sets the endpoints that count as not ready for other clusters, and publishes the slices that this changes anew.
    pub(super) fn set_not_ready(&self, not_ready: NotReady) {
        let _order = self.changing.lock();
        let hosts = self.views.peers.set_not_ready(not_ready);
        let changed = self.state.lock().own.renew(&hosts);
        tracing::info!(slices = changed.len(), "health of own endpoints changed for other clusters");
        if !changed.is_empty() {
            self.publish(&changed);
        }
    }

    /// Publishes own slices to every view that may see them, then has them persisted.
    fn publish(&self, slices: &[Slice]) {
        self.publish_to_gateways(slices);
        if let Some(envoys) = &self.views.envoys {
            envoys.change(slices);
        }
        self.views.peers.publish(slices);
        self.tell_peers_apart();
        self.peers.own(slices);
        self.names.set_own(slices);
        self.directory.slices_changed(slices.iter().map(|slice| persistence::own(&slice.key)));
    }

    fn publish_to_gateways(&self, slices: &[Slice]) {
        let rules = self.views.traffic.rules();
        let encode = |slice: &Slice| (slice.key.to_string(), rules.apply(slice).encode());
        let encoded: Vec<_> = slices.iter().map(encode).collect();
        self.views.gateways.change(|view| {
            for (name, bytes) in encoded {
                view.set_priority(&name, bytes);
            }
        });
    }

    /// Publishes the slices of these hosts again to the gateways, which alone are told of policies. Returns their number.
    pub(super) fn publish_traffic(&self, is_meant: impl Fn(&HostPattern) -> bool) -> usize {
        let _order = self.changing.lock();
        let is_meant = |slice: &&Slice| is_meant(&slice.key.host);
        let slices: Vec<_> = self.state.lock().own.slices().filter(is_meant).cloned().collect();
        self.publish_to_gateways(&slices);
        slices.len()
    }

    fn log_problems(&self) {
        let problems: Vec<_> = {
            let state = self.state.lock();
            let sources: [&dyn Source; 2] = [&state.files, &state.registered];
            let of_sources = sources.into_iter().flat_map(Source::problems);
            let of_services = state.left_out.values().chain(state.unenforced.values());
            of_sources.chain(of_services.flatten().cloned()).collect()
        };
        let before = std::mem::replace(&mut self.summary.lock().problems, problems.clone());
        let known: HashSet<&String> = before.iter().collect();
        for problem in problems.iter().filter(|problem| !known.contains(problem)) {
            tracing::error!("{problem}");
        }
    }

    /// Endpoints of a host to be exported that need an mTLS check.
    fn candidates(&self, state: &State, host: &HostPattern) -> Vec<Target> {
        let ports = state.services.get(host).map(Vec::as_slice).unwrap_or_default();
        if self.export_of(host, ports).is_none() {
            return Vec::new();
        }
        let unseen = ports.iter().filter(|port| !port.skips_mtls_check());
        unseen.flat_map(|port| &port.endpoints).map(|endpoint| endpoint.address.clone()).collect()
    }

    /// How a host is exported, if it is.
    fn export_of(&self, host: &HostPattern, ports: &[Service]) -> Option<Export> {
        export_of(&self.settings.exports, &self.settings.cluster, host, ports)
    }

    /// The keys of all own slices.
    pub(super) fn slice_keys(&self) -> Vec<Key> {
        self.state.lock().own.slices().map(|slice| slice.key.clone()).collect()
    }

    /// The own slice of a host as it is published: waits for a change that is being published.
    pub(super) fn published(&self, host: &HostPattern) -> Option<Slice> {
        let _order = self.changing.lock();
        self.offer_of(host)
    }

    /// The own slice of a host.
    pub(super) fn offer_of(&self, host: &HostPattern) -> Option<Slice> {
        self.state.lock().own.get(host).cloned()
    }
}

#[cfg(test)]
impl OwnServices {
    /// Takes the locks of a change.
    pub(super) fn hold(&self) -> impl Sized {
        (self.changing.lock(), self.state.lock())
    }
}

impl State {
    /// Merges what the sources have for a host.
    fn gather(&mut self, host: &HostPattern) {
        let files = Snapshot { services: Source::services_for(&self.files, host), problems: Vec::new() };
        let registered = registered_of(host, &self.registered, &self.files);
        let Snapshot { services, problems } = merge([files, registered]);
        let before = self.services.get(host).map(Vec::as_slice).unwrap_or_default();
        self.doors.replace(host, before, &services);
        if services.is_empty() {
            self.services.remove(host);
        } else {
            self.services.insert(host.clone(), services);
        }
        if problems.is_empty() {
            self.left_out.remove(host);
        } else {
            self.left_out.insert(host.clone(), problems);
        }
    }

    /// Hosts offered before a restart that no source has any more. While the registry's directory is missing, or
    /// registrations cannot be read, they may still exist.
    fn disproved(&mut self) -> BTreeSet<HostPattern> {
        let is_known = self.has_registrations && self.files.summary().is_whole;
        if is_known { std::mem::take(&mut self.unconfirmed) } else { BTreeSet::new() }
    }

    /// Keeps the last offer of an exported host while its new endpoints await their mTLS check: a working service must
    /// not disappear for that moment.
    fn wait_for_proof(&self, offers: &mut BTreeMap<HostPattern, Offer>) {
        for (host, offer) in offers {
            let before = self.own.get(host).and_then(|slice| slice.offer.as_ref());
            let was_exported = before.filter(|before| before.ports.iter().any(|port| port.exported));
            let Some(before) = was_exported else { continue };
            let endpoints = offer.ports.iter().flat_map(|port| &port.endpoints);
            let mut unseen = endpoints.filter(|endpoint| !endpoint.exposed);
            let is_awaited = unseen.any(|endpoint| {
                self.mtls_checks
                    .is_awaited(&Subject { host: host.clone(), address: endpoint.address.clone() })
            });
            if is_awaited {
                let rules = std::mem::replace(offer, before.clone()).ports;
                access::replace(offer, &rules);
            }
        }
    }
}
