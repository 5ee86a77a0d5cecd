//! Owns the names that applications without TLS use: which there are, their virtual addresses and allotted ports, and
//! where these are persisted. Owners of slices say what has changed and go on; names are allotted on another thread, and
//! published as one value.
//!
//! `wanted` and `summary` are held for a moment, also under the locks of slices. `allotments` is held while names are
//! allotted and written to disk, and nobody waits for it but the next turn of the same task.

mod allotments;
mod collisions;
mod shards;
mod table;
#[cfg(test)]
mod tests;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use isthmus_model::allotment::Exhausted;
use isthmus_model::host::HostName;
use isthmus_model::slice::{Key, Slice};
use isthmus_model::virtual_address::NameAddresses;
use isthmus_registry::imports::Verdict;
use isthmus_store::{Embedded, Store, StoreHealth};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::blocking;
use super::config::Settings;
use allotments::{Allotments, Settled};
use collisions::Collisions;
use wanted::Wanted;

pub(super) use table::table;

/// Changes within this time are one.
const PACE: Duration = Duration::from_millis(100);
/// How often names are allotted again while something is missing: a place in a range, or a disk.
const RETRY: Duration = Duration::from_secs(5);
/// Exhausted names and collisions that status has.
const LISTED: usize = 1_000;
/// Those of them that are logged at once.
const LOGGED: usize = 20;

/// The names of a cluster.
#[derive(Debug)]
pub(super) struct NameRegistry {
    is_on: bool,
    /// The file of allotted addresses, if there is a state directory.
    file: Option<Embedded>,
    collisions: Collisions,
    wanted: Mutex<Wanted>,
    allotments: Mutex<Allotments>,
    summary: Mutex<Summary>,
    changed: Notify,
    published: watch::Sender<Arc<Names>>,
}

/// All names, as one value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// Hosts and exported instances (`INSTANCE.HOST`).
    pub(super) names: BTreeMap<HostName, Arc<Name>>,
    /// Hosts of services (`NAME.NAMESPACE.svc.…`) that other clusters offer and that are not used here.
    pub(super) unused: BTreeSet<HostName>,
}

/// One host or exported instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// Other names with the same addresses. Several hosts may claim an alias.
    pub(super) aliases: Vec<HostName>,
    /// None of a family whose range is not configured, or exhausted.
    pub(super) addresses: NameAddresses,
    /// Its ports, in order.
    pub(super) ports: Vec<NamePort>,
    /// It is of the own registry, alone or beside other clusters'.
    pub(super) is_own: bool,
}

/// A port of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NamePort {
    /// The port of the service.
    pub(super) port: u16,
    /// The allotted port of gateways' originating listeners, if there is a range of them.
    pub(super) listener_port: Option<u16>,
}

/// What pages and metrics show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// Hosts and exported instances.
    pub(super) names: usize,
    /// The number of addresses and ports that names lack because a range is exhausted.
    pub(super) exhausted_count: usize,
    /// Some of them: name, range, and why.
    pub(super) exhausted: BTreeMap<(String, String), String>,
    /// Virtual addresses that something else has.
    pub(super) collisions: BTreeSet<String>,
    /// Why allotted addresses and ports are not persisted.
    pub(super) unsaved: Option<String>,
}

impl NameRegistry {
    /// Restores what was allotted before a restart. Reads files.
    pub(super) fn open(settings: &Settings) -> NameRegistry {
        let file = settings.state.as_deref().map(|folder| Embedded::new("names", folder, "names.db"));
        let is_on = settings.names != Default::default();
        let file = file.filter(|_| is_on);
        let store = file.clone().map(|file| Arc::new(file) as Arc<dyn Store>);
        NameRegistry::with_store(settings, file, store)
    }

    fn with_store(
        settings: &Settings,
        file: Option<Embedded>,
        store: Option<Arc<dyn Store>>,
    ) -> NameRegistry {
        NameRegistry {
            is_on: settings.names != Default::default(),
            file,
            collisions: Collisions::of_settings(settings),
            wanted: Mutex::new(Wanted::new(settings.names.addresses)),
            allotments: Mutex::new(Allotments::open(settings.names, store)),
            summary: Mutex::default(),
            changed: Notify::new(),
            published: watch::Sender::default(),
        }
    }

    /// Whether anything is to be allotted.
    pub(super) fn is_on(&self) -> bool {
        self.is_on
    }

    /// The names, now and whenever they change.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Names>> {
        self.published.subscribe()
    }

    /// What pages and metrics show.
    pub(super) fn summary(&self) -> Summary {
        self.summary.lock().clone()
    }

    /// The health of the file of allotted addresses.
    pub(super) fn report(&self) -> Option<StoreHealth> {
        self.file.as_ref().map(Embedded::report)
    }

    /// Own slices have changed.
    pub(super) fn set_own(&self, slices: &[Slice]) {
        self.change(slices, |wanted, slice| wanted.set(slice, true));
    }

    /// There are verdicts on slices of other clusters.
    pub(super) fn set_imports(&self, verdicts: &[(Key, Verdict)]) {
        self.change(verdicts, |wanted, (key, verdict)| match verdict {
            Verdict::Imported(slice) | Verdict::Unreachable(slice, _) => wanted.set(slice, false),
            Verdict::Quarantined(_) => wanted.set_unused(key),
            Verdict::Withdrawn => wanted.remove(key),
        });
    }

    /// Records each of these; `record` says whether it changes any name.
    fn change<T>(&self, all: &[T], record: impl Fn(&mut Wanted, &T) -> bool) {
        if !self.is_on {
            return;
        }
        let mut wanted = self.wanted.lock();
        let mut is_news = false;
        for one in all {
            is_news |= record(&mut wanted, one);
        }
        drop(wanted);
        if is_news {
            self.changed.notify_one();
        }
    }

    /// All slices of before a restart are known: names that none of them has are freed. Waits for the disk.
    pub(super) fn forget_before(&self) {
        self.allotments.lock().forget_before();
        self.changed.notify_one();
    }

    /// Allots what has changed, until dropped.
    pub(super) async fn keep_allotting(self: &Arc<Self>) {
        if !self.is_on {
            return std::future::pending().await;
        }
        loop {
            let is_whole = self.summary.lock().is_whole();
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep(RETRY), if !is_whole => {}
            }
            let names = Arc::clone(self);
            blocking(move || names.allot(SystemTime::now())).await;
            sleep(PACE).await;
        }
    }

    /// Gives every name its addresses and ports, persists them, and publishes them if anything has changed. What cannot be
    /// persisted is published all the same.
    pub(super) fn allot(&self, now: SystemTime) {
        let mut allotments = self.allotments.lock();
        let (names, unused, collisions) = {
            let wanted = self.wanted.lock();
            let collisions = self.collisions.with(wanted.in_range());
            (wanted.names(), wanted.unused(), collisions.take(LISTED).collect())
        };
        let Settled { names, exhausted, unsaved } = allotments.settle(&names, now);
        let summary = Summary {
            names: names.len(),
            exhausted_count: exhausted.len(),
            exhausted: exhausted.iter().take(LISTED).map(reason).collect(),
            collisions,
            unsaved: unsaved.map(|error| error.to_string()),
        };
        let before = std::mem::replace(&mut *self.summary.lock(), summary.clone());
        summary.log(&before);
        let new = Arc::new(Names { names, unused });
        self.published.send_if_modified(|published| {
            let is_news = **published != *new;
            if is_news {
                *published = new;
            }
            is_news
        });
    }
}

impl Summary {
    /// Nothing is missing that time may bring.
    fn is_whole(&self) -> bool {
        self.exhausted.is_empty() && self.unsaved.is_none()
    }

    /// Logs what is new.
    fn log(&self, before: &Summary) {
        let exhausted = self.exhausted.iter().filter(|(subject, _)| !before.exhausted.contains_key(*subject));
        for (_, line) in exhausted.take(LOGGED) {
            tracing::error!("virtual address or port: {line}");
        }
        let collisions = self.collisions.iter().filter(|line| !before.collisions.contains(*line));
        for line in collisions.take(LOGGED) {
            tracing::error!("{line}");
        }
        if let Some(why) = self.unsaved.as_ref().filter(|why| before.unsaved.as_ref() != Some(why)) {
            tracing::error!(%why, "cannot persist allotted addresses; a restart may give names without a record other ones; retrying");
        }
    }
}

fn reason(exhausted: &Exhausted) -> ((String, String), String) {
    let (name, range) = exhausted.subject();
    ((name.to_owned(), range.to_owned()), exhausted.to_string())
}
