//! Holds the agent's state (registry, mTLS checks, own slices, imports) and derives the views from it. Every event
//! changes state and views under one lock.

mod persisted;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use isthmus_ads::client;
use isthmus_ads::shared::Follower;
use isthmus_health::mtls::{MtlsCheck, MtlsChecks, Subject};
use isthmus_model::address::Target;
use isthmus_model::host::HostPattern;
use isthmus_model::services::Service;
use isthmus_model::slice::{Cluster, Gateway, Key, Slice};
use isthmus_registry::files::Found;
use isthmus_registry::imports::{DecodedSlice, Imports, Stored, Verdict};
use isthmus_registry::registered::Registered;
use isthmus_registry::registry::{Own, Terms, offers, project_for_peer};
use isthmus_store::Embedded;
use isthmus_trust::bundles;

use super::config::{Peer, Settings};
use super::peer::{Contact, consent};
use super::persistence::{self, Opened, Stores, incarnation};
use super::views::Views;

/// A peer's first state arrives in parts; it counts as complete this long after the last one.
const WHOLE: Duration = Duration::from_secs(1);

/// Rejected slices of a peer that are logged in ten seconds; status has the last one and their number.
const LOGGED: u32 = 64;

/// A peer's resource, decoded; none if its name is not granted.
pub(super) type DecodeResult<'a> = Result<Option<DecodedSlice<'a>>, String>;

/// The agent's state, shared under one lock.
pub(super) struct State {
    pub(super) settings: Arc<Settings>,
    pub(super) views: Arc<Views>,
    pub(super) files: Found,
    pub(super) registered: Registered,
    /// Hosts offered before a restart that the registry has not confirmed since.
    pub(super) unconfirmed: BTreeSet<HostPattern>,
    /// The registrations from before a restart have been read.
    pub(super) has_registrations: bool,
    /// Problems of services that another source already defines, by host.
    pub(super) left_out: BTreeMap<HostPattern, Vec<String>>,
    pub(super) problems: Vec<String>,
    pub(super) services: BTreeMap<HostPattern, Vec<Service>>,
    gateways: Vec<(String, Vec<Gateway>)>,
    own: Own,
    pub(super) mtls_checks: MtlsChecks,
    pub(super) imports: Imports,
    pub(super) peers: BTreeMap<Cluster, Contact>,
    /// Clusters whose first state is arriving, and when the last part arrived.
    hearing: HashMap<Cluster, Instant>,
    /// Persisted slices of clusters that are not peers, or not yet, by their names.
    pub(super) unclaimed: BTreeMap<Cluster, BTreeMap<String, Vec<u8>>>,
    pub(super) stores: Option<Stores>,
    /// Tokens, joined clusters and acknowledgements.
    pub(super) trust_store: Option<Embedded>,
    /// Records of joined clusters that are lost or invalid.
    pub(super) state_problems: Vec<String>,
}

impl State {
    /// Restores what was persisted.
    pub(super) fn new(
        settings: Arc<Settings>,
        views: Arc<Views>,
        opened: Option<Opened>,
        trust_store: Option<Embedded>,
    ) -> State {
        let (stores, slices, registrations, has_registrations) = match opened {
            Some(Opened { stores, slices, registrations, has_registrations }) => {
                (Some(stores), slices, registrations, has_registrations)
            }
            None => (None, persistence::Slices::default(), Vec::new(), true),
        };
        let own = Own::restored(settings.cluster.clone(), incarnation(), slices.own);
        let gateways = settings.gateways.iter().map(|gateway| {
            let at =
                |address: &_| Gateway { address: Clone::clone(address), locality: gateway.locality.clone() };
            (gateway.name.clone(), gateway.addresses.iter().map(at).collect())
        });
        let mut state = State {
            files: Found::default(),
            registered: Registered::default(),
            unconfirmed: own.slices().map(|slice| slice.key.host.clone()).collect(),
            has_registrations: false,
            left_out: BTreeMap::new(),
            problems: Vec::new(),
            services: BTreeMap::new(),
            gateways: gateways.collect(),
            own,
            mtls_checks: MtlsChecks::default(),
            imports: Imports::default(),
            peers: BTreeMap::new(),
            hearing: HashMap::new(),
            unclaimed: slices.imports,
            stores,
            trust_store,
            state_problems: Vec::new(),
            views,
            settings: Arc::clone(&settings),
        };
        let before: Vec<_> = state.own.slices().cloned().collect();
        // They carry a new incarnation.
        before.iter().for_each(|slice| state.persist(persistence::own(&slice.key)));
        state.publish(&before);
        settings.peers.iter().for_each(|peer| state.add_peer(peer));
        state.restore_registrations(registrations, Instant::now());
        if has_registrations {
            state.has_registrations();
        }
        state
    }

    /// Adds a peer; its persisted slices stay in use until it is connected.
    pub(super) fn add_peer(&mut self, peer: &Peer) {
        self.imports.add(consent(&self.settings, peer));
        self.peers.insert(peer.cluster.clone(), Contact::none(peer));
        self.imports.set_unreachable_since(&peer.cluster, Some(Instant::now()));
        let before = self.unclaimed.remove(&peer.cluster).unwrap_or_default();
        self.restore_imports([(peer.cluster.clone(), before)].into());
    }

    /// Names and versions of a peer's slices, which it need not send again.
    pub(super) fn known(&self, of: &Cluster) -> Vec<(String, String)> {
        self.imports.versions(of).collect()
    }

    /// The own cluster's slices.
    pub(super) fn own(&self) -> impl Iterator<Item = &Slice> {
        self.own.slices()
    }

    /// The own cluster's slice of a host.
    pub(super) fn offer_of(&self, host: &HostPattern) -> Option<&Slice> {
        self.own.get(host)
    }

    /// The streams of each view.
    pub(super) fn followers(&self) -> BTreeMap<&'static str, Vec<Follower>> {
        let peers = self.views.peers.values().flat_map(|shared| shared.all()).collect();
        BTreeMap::from([("gateways", self.views.gateways.all()), ("peers", peers)])
    }

    fn terms<'a>(&'a self, demands: &'a dyn Fn(&HostPattern, &Target) -> bool) -> Terms<'a> {
        Terms {
            cluster: &self.settings.cluster,
            network: &self.settings.network,
            exports: &self.settings.exports,
            gateways: &self.gateways,
            demands,
        }
    }

    /// Applies results of mTLS checks.
    pub(super) fn seen(&mut self, seen: Vec<(Subject, MtlsCheck)>, now: Instant) {
        let mut changed = BTreeSet::new();
        for (subject, result) in seen {
            if !self.mtls_checks.seen(&subject, result, now) {
                continue;
            }
            let flaw = match self.mtls_checks.of(&subject) {
                MtlsCheck::NotRequired(seen) => Some(("it accepts clients without a certificate", seen)),
                MtlsCheck::Unreachable(seen) => Some(("its mTLS check has failed", seen)),
                MtlsCheck::Awaited | MtlsCheck::Required => None,
            };
            if let Some((why, seen)) = flaw {
                let (service, endpoint, remedy) =
                    (&subject.host, &subject.address, super::mtls_check::REMEDY);
                tracing::warn!(%service, %endpoint, seen, remedy, "not_mtls: endpoint is not exported: {why}");
            }
            changed.insert(subject.host);
        }
        self.update_own_slices(changed);
    }

    /// Updates this cluster's slices of these hosts from the registry.
    pub(super) fn update_own_slices(&mut self, hosts: BTreeSet<HostPattern>) {
        let demands = |host: &HostPattern, address: &_| {
            self.mtls_checks.demands(&Subject { host: host.clone(), address: Clone::clone(address) })
        };
        let services = hosts.iter().filter_map(|host| self.services.get(host)).flatten().cloned();
        let mut some = offers(services, &self.terms(&demands));
        self.wait_for_proof(&mut some);
        let all = hosts.into_iter().map(|host| (some.remove(&host), host)).map(|(offer, host)| (host, offer));
        let changed = self.own.set_offers(all.collect());
        if changed.is_empty() {
            return;
        }
        tracing::info!(slices = changed.len(), "own slices changed");
        for slice in &changed {
            let (key, revision) = (&slice.key, slice.order.revision);
            let _change =
                tracing::debug_span!("change", cluster = %key.cluster, host = %key.host, revision).entered();
            tracing::debug!(is_exported = slice.is_exported(), "slice published");
            self.persist(persistence::own(key));
        }
        self.publish(&changed);
    }

    /// Publishes own slices to every view that may see them.
    fn publish(&mut self, slices: &[Slice]) {
        self.views.gateways.change(|view| {
            for slice in slices {
                view.set_priority(&slice.key.to_string(), slice.encode());
            }
        });
        if let Some(envoys) = &self.views.envoys {
            envoys.change(slices);
        }
        for (to, shared) in &self.views.peers {
            shared.change(|view| slices.iter().for_each(|slice| show(view, &project_for_peer(slice, *to))));
        }
        slices.iter().for_each(|slice| self.imports.own(slice));
        self.pass_on();
    }

    /// Keeps the last offer of an exported host while its new endpoints await their mTLS check: a working service must
    /// not disappear for that moment.
    fn wait_for_proof(&self, offers: &mut BTreeMap<HostPattern, isthmus_model::slice::Offer>) {
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
                offer.clone_from(before);
            }
        }
    }

    /// Applies an update of a peer's agent, its slices decoded; returns the slices that are rejected.
    pub(super) fn take(
        &mut self,
        from: &Cluster,
        decoded: Vec<(&str, DecodeResult<'_>)>,
        removed: &[String],
    ) -> Vec<client::Refused> {
        let mut refused = Vec::new();
        for (name, decoded) in decoded {
            let stored =
                decoded.transpose().map(|slice| slice.and_then(|slice| self.imports.insert(from, slice)));
            match stored {
                None | Some(Ok(Stored::Nothing)) => {}
                Some(Ok(Stored::Slice { forgets })) => {
                    self.persist(persistence::import(from, name));
                    if let Some(gone) = forgets {
                        self.persist(persistence::import(from, &gone.to_string()));
                    }
                }
                Some(Err(why)) => {
                    if self.peers.get(from).is_none_or(|contact| contact.log_limiter.allows(LOGGED)) {
                        tracing::warn!(peer = %from, slice = ?name, %why, "slice refused");
                    }
                    refused.push(client::Refused { name: name.to_owned(), why });
                }
            }
        }
        for name in removed {
            // A withdrawn name that was never held is not persisted, however many a peer withdraws.
            if name.parse::<Key>().is_ok_and(|key| self.imports.leave(from, &key.host)) {
                self.persist(persistence::import(from, name));
            }
        }
        if let (Some(contact), Some(last)) = (self.peers.get_mut(from), refused.last()) {
            contact.refusals += refused.len() as u64;
            contact.refusal = Some(format!("{:?}: {}", last.name, last.why));
        }
        self.hearing.insert(from.clone(), Instant::now());
        self.pass_on();
        refused
    }

    /// Records a peer's bundle update, or why it was rejected.
    pub(super) fn record_bundle_update(&mut self, of: &Cluster, said: Result<bundles::BundleUpdate, String>) {
        let Some(word) = self.peers.get_mut(of).map(|contact| &mut contact.bundle) else { return };
        match said {
            Ok(kept) => (word.taken, word.refusal, word.advice) = (Some(kept.sequence), None, kept.advice),
            Err(why) => {
                // A retry with the same outcome counts once.
                word.refusals += u64::from(word.refusal.as_ref() != Some(&why));
                word.refusal = Some(why);
            }
        }
    }

    /// Records that contact with a peer was made, or lost, and why.
    pub(super) fn contact(&mut self, with: &Cluster, lost: Option<String>) {
        let now = lost.is_some().then(Instant::now);
        self.imports.set_unreachable_since(with, now);
        if let Some(contact) = self.peers.get_mut(with) {
            if contact.connected == lost.is_some() {
                contact.since = SystemTime::now();
            }
            contact.connected = lost.is_none();
            contact.error = lost;
        }
        self.pass_on();
    }

    /// Drops expired slices, and completes first states that have arrived.
    pub(super) fn expire(&mut self, now: Instant) {
        let is_over = |since: &Instant| now.saturating_duration_since(*since) >= WHOLE;
        let whole: Vec<_> = self.hearing.extract_if(|_, since| is_over(since)).collect();
        for (cluster, _) in whole {
            self.views.heard(&cluster);
            self.clear_unclaimed(&cluster);
        }
        self.imports.expire(now);
        self.pass_on();
    }

    /// Publishes changed imports to the gateways.
    pub(super) fn pass_on(&mut self) {
        let changes = self.imports.changes();
        if changes.is_empty() {
            return;
        }
        self.views.gateways.change(|view| {
            for (key, verdict) in changes {
                match verdict {
                    Verdict::Imported(slice) => _ = view.set(&key.to_string(), slice.encode()),
                    Verdict::Quarantined(why) => {
                        if view.remove(&key.to_string()) {
                            tracing::info!(slice = %key, %why, "no longer imported");
                        }
                    }
                }
            }
        });
    }
}

/// Sends a tombstone only for a name that the view has had.
fn show(view: &mut isthmus_ads::view::View, slice: &Slice) {
    let name = slice.key.to_string();
    if slice.offer.is_some() || view.get(&name).is_some() {
        view.set(&name, slice.encode());
    }
}
