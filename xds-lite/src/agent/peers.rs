//! Owns what other clusters' agents have sent: their slices and what becomes of them beside the own ones, their persisted
//! slices of before a restart, and the contact with each; publishes imports to the gateways' view.
//!
//! `state` guards the content and is held for a few slices at a time, decoded before; imports are published under it, so
//! that the view has their verdicts in order. `summary` has what pages and metrics read, and is held for a moment, also
//! under `state`. Pages take `summary` alone, `explain` also `state`.

mod restored;
mod summary;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use isthmus_ads::client::{Refused, Resource};
use isthmus_health::schedule::Answer;
use isthmus_model::address::Target;
use isthmus_model::host::HostPattern;
use isthmus_model::slice::{Cluster, Key, Slice};
use isthmus_registry::imports::{DecodedSlice, ImportStatus, Imports, Stale, Stored, Verdict};
use isthmus_trust::bundles::BundleUpdate;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::blocking;
use super::config::{Peer, Settings};
use super::names::NameRegistry;
use super::peer::{Contact, consent};
use super::persistence;
use super::state_directory::StateDirectory;
use super::views::Views;

pub(super) use summary::{Listed, Summary};

/// A peer's first state arrives in parts; it counts as complete this long after the last one.
const WHOLE: Duration = Duration::from_secs(1);
/// Rejected slices of a peer that are logged in ten seconds; status has the last one and their number.
const LOGGED: u32 = 64;
/// Slices handled under one lock.
const AT_ONCE: usize = 32;
/// Bytes of slices handled under one lock.
const BYTES_AT_ONCE: usize = 128 << 10;

/// A peer's resource, decoded; none if its name is not granted.
type DecodeResult<'a> = Result<Option<DecodedSlice<'a>>, String>;

/// The other clusters.
pub(super) struct Peers {
    settings: Arc<Settings>,
    views: Arc<Views>,
    directory: Arc<StateDirectory>,
    names: Arc<NameRegistry>,
    state: Mutex<State>,
    summary: Mutex<Summary>,
    /// A stream or a probe has changed verdicts, which are published on another thread.
    to_publish: Notify,
}

struct State {
    imports: Imports,
    /// Clusters whose first state is arriving, and when the last part arrived.
    hearing: HashMap<Cluster, Instant>,
    /// Persisted slices of clusters that are not peers, or not yet, by their names.
    unclaimed: BTreeMap<Cluster, BTreeMap<String, Vec<u8>>>,
}

impl Peers {
    /// No peer yet. `unclaimed` are the slices of before a restart.
    pub(super) fn new(
        settings: Arc<Settings>,
        views: Arc<Views>,
        directory: Arc<StateDirectory>,
        names: Arc<NameRegistry>,
        unclaimed: BTreeMap<Cluster, BTreeMap<String, Vec<u8>>>,
    ) -> Peers {
        let state = State { imports: Imports::default(), hearing: HashMap::new(), unclaimed };
        let (state, summary) = (Mutex::new(state), Mutex::default());
        Peers { settings, views, directory, names, state, summary, to_publish: Notify::new() }
    }

    /// Adds a peer; its persisted slices stay in use until it is connected.
    pub(super) fn add(&self, peer: &Peer) {
        self.summary.lock().contacts.insert(peer.cluster.clone(), Contact::none(peer));
        let before = {
            let mut state = self.state.lock();
            state.imports.add(consent(&self.settings, peer));
            state.imports.set_unreachable_since(&peer.cluster, Some(Instant::now()));
            state.unclaimed.remove(&peer.cluster).unwrap_or_default()
        };
        self.restore(&peer.cluster, before);
    }

    /// Counts, and lists of at most this many entries.
    pub(super) fn summary(&self, listed: usize) -> Listed {
        self.summary.lock().list(listed)
    }

    /// Names and versions of a peer's slices, which it need not send again.
    pub(super) fn versions(&self, of: &Cluster) -> HashMap<String, String> {
        self.state.lock().imports.versions(of).collect()
    }

    /// Notes the own cluster's slices, whose names no other cluster may take.
    pub(super) fn own(&self, slices: &[Slice]) {
        for slices in slices.chunks(AT_ONCE) {
            self.change(|state| slices.iter().for_each(|slice| state.imports.own(slice)));
        }
        self.pass_on();
    }

    /// Applies an update of a peer's agent; returns the slices that are rejected. Other changes wait for one piece of
    /// a large one at most.
    pub(super) fn apply(&self, from: &Cluster, resources: &[Resource], removed: &[String]) -> Vec<Refused> {
        let mut refused = Vec::new();
        for resources in pieces(resources) {
            let admitted: Vec<_> = self.change(|state| {
                let admit = |resource: &Resource| state.imports.admit(from, &resource.name, &resource.bytes);
                resources.iter().map(admit).collect()
            });
            // Slices are decoded without the lock.
            let decoded = resources.iter().zip(admitted).map(|(resource, admitted)| {
                let Resource { name, bytes, .. } = resource;
                let decode =
                    |is_admitted: bool| is_admitted.then(|| DecodedSlice::decode(name, bytes)).transpose();
                (name.as_str(), admitted.and_then(decode))
            });
            self.insert(from, decoded.collect(), &mut refused);
        }
        for removed in removed.chunks(AT_ONCE) {
            self.remove(from, removed);
        }
        let usage = self.change(|state| {
            // An update without a slice counts as well.
            state.hearing.insert(from.clone(), Instant::now());
            state.imports.usage(from)
        });
        self.summary.lock().record(from, usage, &refused);
        refused
    }

    fn insert(&self, from: &Cluster, decoded: Vec<(&str, DecodeResult<'_>)>, refused: &mut Vec<Refused>) {
        let mut changed = Vec::new();
        let mut rejected = Vec::new();
        self.change(|state| {
            state.hearing.insert(from.clone(), Instant::now());
            for (name, decoded) in decoded {
                let insert = |slice| state.imports.insert(from, slice);
                match decoded.transpose().map(|slice| slice.and_then(insert)) {
                    None | Some(Ok(Stored::Nothing)) => {}
                    Some(Ok(Stored::Slice { forgets })) => {
                        changed.push(persistence::import(from, name));
                        changed.extend(forgets.map(|gone| persistence::import(from, &gone.to_string())));
                    }
                    Some(Err(why)) => rejected.push(Refused { name: name.to_owned(), why }),
                }
            }
        });
        self.pass_on();
        self.directory.slices_changed(changed);
        let limiter = self.summary.lock().contacts.get(from).map(|contact| Arc::clone(&contact.log_limiter));
        for Refused { name, why } in &rejected {
            if limiter.as_ref().is_none_or(|limiter| limiter.allows(LOGGED)) {
                tracing::warn!(peer = %from, slice = ?name, %why, "slice refused");
            }
        }
        refused.append(&mut rejected);
    }

    fn remove(&self, from: &Cluster, removed: &[String]) {
        // A withdrawn name that was never held is not persisted, however many a peer withdraws.
        let was_held = |state: &mut State, name: &str| {
            name.parse::<Key>().is_ok_and(|key| state.imports.forget(from, &key.host))
        };
        let gone: Vec<_> = self.change(|state| {
            state.hearing.insert(from.clone(), Instant::now());
            removed.iter().filter(|name| was_held(state, name)).collect()
        });
        self.pass_on();
        self.directory.slices_changed(gone.into_iter().map(|name| persistence::import(from, name)));
    }

    /// Records a peer's bundle update, or why it was rejected.
    pub(super) fn record_bundle_update(&self, of: &Cluster, said: Result<BundleUpdate, String>) {
        let mut summary = self.summary.lock();
        let Some(word) = summary.contacts.get_mut(of).map(|contact| &mut contact.bundle) else { return };
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
    pub(super) fn contact(&self, with: &Cluster, lost: Option<String>) {
        let now = lost.is_some().then(Instant::now);
        if let Some(contact) = self.summary.lock().contacts.get_mut(with) {
            if contact.connected == lost.is_some() {
                contact.since = SystemTime::now();
            }
            contact.connected = lost.is_none();
            contact.error = lost;
        }
        self.change(|state| state.imports.set_unreachable_since(with, now));
        self.to_publish.notify_one();
    }

    /// Publishes what streams and probes have changed, until dropped.
    pub(super) async fn keep_publishing(self: &Arc<Self>) {
        loop {
            self.to_publish.notified().await;
            let peers = Arc::clone(self);
            blocking(move || peers.pass_on()).await;
        }
    }

    /// Drops expired slices, and completes first states that have arrived. The cost is in proportion to those.
    pub(super) fn expire(&self, now: Instant) {
        let is_over = |since: &Instant| now.saturating_duration_since(*since) >= WHOLE;
        let whole: Vec<_> = self.change(|state| {
            state.imports.expire(now);
            let whole = state.hearing.extract_if(|_, since| is_over(since)).map(|(cluster, _)| cluster);
            let whole: Vec<_> = whole.collect();
            whole.into_iter().map(|cluster| (state.unclaimed.remove(&cluster), cluster)).collect()
        });
        self.pass_on();
        for (not_sent, cluster) in whole {
            self.views.contacted(&cluster);
            // Persisted slices that the peer did not send.
            let names = not_sent.unwrap_or_default().into_keys();
            self.directory.slices_changed(names.map(|name| persistence::import(&cluster, &name)));
        }
    }

    /// Applies the answers of probes; returns at most `most` addresses to probe now (`stale: probe`).
    pub(super) fn advance_probes(
        &self,
        answers: Vec<(Target, Answer)>,
        most: usize,
        now: Instant,
    ) -> Vec<Target> {
        let is_news = !answers.is_empty();
        let due = self.change(|state| state.imports.poll_probes(answers, most, now));
        if is_news || !due.is_empty() {
            self.to_publish.notify_one();
        }
        due
    }

    /// Whether an address that a name resolved to may be one of a cluster that has the name.
    pub(super) fn may_stand_at(&self, name: &Target, ip: IpAddr) -> bool {
        self.state.lock().imports.may_stand_at(name, ip)
    }

    /// Publishes the slices of these hosts again: their policy has changed. Returns their number.
    pub(super) fn publish_traffic(&self, is_meant: impl Fn(&HostPattern) -> bool) -> usize {
        let count = self.change(|state| state.imports.judge_hosts_again(is_meant));
        self.pass_on();
        count
    }

    /// What is offered under one host, and what became of it.
    pub(super) fn imports_of(&self, host: &HostPattern) -> Vec<(ImportStatus, Option<Stale>)> {
        let state = self.state.lock();
        let (now, clock) = (Instant::now(), SystemTime::now());
        let stale = |import: &ImportStatus| state.imports.stale(&import.cluster, host, now, clock);
        let shown = state.imports.shown_of(host).into_iter();
        shown.map(|import| (stale(&import), import)).map(|(stale, import)| (import, stale)).collect()
    }

    /// The hosts of other clusters that have a name: as their own, as an alias, or as an instance's alias.
    pub(super) fn hosts_of(&self, name: &HostPattern) -> Vec<HostPattern> {
        self.state.lock().imports.hosts_of(name).cloned().collect()
    }

    /// Changes the state under its lock, and hands the lock to the next waiter: after a plain unlock this thread would
    /// lock it again before a waiter wakes.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let done = change(&mut state);
        MutexGuard::unlock_fair(state);
        done
    }

    /// Publishes changed imports to the gateways.
    fn pass_on(&self) {
        while self.change(|state| self.pass_on_some(state)) {}
    }

    /// Publishes some of them. Returns whether there may be more.
    fn pass_on_some(&self, state: &mut State) -> bool {
        if state.imports.have_probes_changed() {
            self.summary.lock().set_probes(state.imports.probes());
        }
        let changes = state.imports.changes(AT_ONCE);
        if changes.is_empty() {
            return false;
        }
        let rules = self.views.traffic.rules();
        let encode = |(key, verdict): &(Key, Verdict)| match verdict {
            Verdict::Imported(slice) | Verdict::Unreachable(slice, _) => {
                (key.to_string(), Ok(rules.apply(slice).encode()))
            }
            Verdict::Quarantined(why) => (key.to_string(), Err(why.clone())),
            Verdict::Withdrawn => (key.to_string(), Err("is withdrawn".to_owned())),
        };
        let encoded: Vec<_> = changes.iter().map(encode).collect();
        self.views.gateways.change(|view| {
            for (name, encoded) in encoded {
                match encoded {
                    Ok(bytes) => _ = view.set(&name, bytes),
                    Err(why) => {
                        if view.remove(&name) {
                            tracing::info!(slice = name, %why, "no longer imported");
                        }
                    }
                }
            }
        });
        self.names.set_imports(&changes);
        self.summary.lock().judged(changes);
        true
    }
}

#[cfg(test)]
impl Peers {
    /// Takes the lock of a change.
    pub(super) fn hold(&self) -> impl Sized {
        self.state.lock()
    }
}

/// Splits slices into pieces of at most [`AT_ONCE`] slices and [`BYTES_AT_ONCE`] bytes; a larger slice is a piece by
/// itself.
fn pieces(mut resources: &[Resource]) -> impl Iterator<Item = &[Resource]> {
    std::iter::from_fn(move || {
        let sizes = resources.iter().take(AT_ONCE).scan(0, |sum, resource| {
            *sum += resource.bytes.len();
            Some(*sum)
        });
        let count = sizes.take_while(|sum| *sum <= BYTES_AT_ONCE).count().max(1);
        let (piece, rest) = resources.split_at_checked(count)?;
        resources = rest;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn update_pieces_are_limited_by_slices_and_bytes() {
        let resources = |sizes: &[usize]| -> Vec<Resource> {
            let resource = |size: &usize| Resource {
                name: String::new(),
                version: String::new(),
                bytes: vec![0; *size].into(),
            };
            sizes.iter().map(resource).collect()
        };
        let counts = |sizes: &[usize]| pieces(&resources(sizes)).map(<[_]>::len).collect::<Vec<_>>();
        assert_eq!(counts(&[]), [0; 0]);
        assert_eq!(counts(&[1; 70]), [32, 32, 6]);
        assert_eq!(counts(&[BYTES_AT_ONCE / 2; 5]), [2, 2, 1]);
        assert_eq!(counts(&[1, BYTES_AT_ONCE * 4, BYTES_AT_ONCE * 4, 1]), [1, 1, 1, 1]);
    }
}
