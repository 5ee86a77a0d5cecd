//! Shares a view between streams, and tracks the progress of each.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::watch;

use super::session::Session;
use super::view::{Position, View};

/// A view and the streams that follow it.
pub struct Shared {
    view: RwLock<View>,
    moved: watch::Sender<Position>,
    is_gone: Box<dyn Fn(&str) -> bool + Send + Sync>,
    /// How often `is_gone` has changed its answers.
    rechecks: AtomicU64,
    followers: Mutex<Followers>,
    when_settled: OnceLock<Box<dyn Fn() + Send + Sync>>,
    when_accepted: OnceLock<Accepted>,
}

/// Called with the client that has accepted a view, and the view.
type Accepted = Box<dyn Fn(&str, &View) + Send + Sync>;

#[derive(Default)]
struct Followers {
    next: u64,
    all: BTreeMap<u64, Follower>,
}

/// One stream that follows a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follower {
    /// The client's identity.
    pub peer: String,
    /// Its position in the view.
    pub position: Position,
    /// It has accepted or refused everything in the view.
    pub settled: bool,
    /// The number of NACKs.
    pub refusals: u64,
    /// The message of the last NACK, unless it has ACKed since.
    pub refusal: Option<String>,
}

impl Shared {
    /// An empty view. `is_gone` tells whether a name that a client claims to know and the view does not have is gone,
    /// or only not known yet.
    pub fn new(is_gone: impl Fn(&str) -> bool + Send + Sync + 'static) -> Shared {
        Shared {
            view: RwLock::default(),
            moved: watch::Sender::new(0),
            is_gone: Box::new(is_gone),
            rechecks: AtomicU64::new(0),
            followers: Mutex::default(),
            when_settled: OnceLock::new(),
            when_accepted: OnceLock::new(),
        }
    }

    /// The current view.
    pub fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the view, and wakes its streams.
    pub fn change(&self, change: impl FnOnce(&mut View)) {
        let oldest = self.followers().all.values().map(|follower| follower.position).min();
        let last = {
            let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
            change(&mut view);
            let last = view.last();
            view.forget(oldest.unwrap_or(last).min(last));
            last
        };
        self.moved.send_replace(last);
    }

    /// Notified of each change.
    pub fn moved(&self) -> watch::Receiver<Position> {
        self.moved.subscribe()
    }

    pub(super) fn is_gone(&self, name: &str) -> bool {
        (self.is_gone)(name)
    }

    /// Tells the streams that names which were not known yet may be gone now.
    pub fn recheck(&self) {
        self.rechecks.fetch_add(1, Relaxed);
        self.moved.send_modify(|_| {});
    }

    pub(super) fn rechecks(&self) -> u64 {
        self.rechecks.load(Relaxed)
    }

    /// All streams that follow it.
    pub fn all(&self) -> Vec<Follower> {
        self.followers().all.values().cloned().collect()
    }

    fn followers(&self) -> MutexGuard<'_, Followers> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every stream has accepted or refused everything in the view.
    pub fn is_settled(&self) -> bool {
        let last = self.view().last();
        self.followers().all.values().all(|follower| follower.settled && follower.position == last)
    }

    /// Sets a callback for when a stream has moved or ended and all are settled. Only the first callback is kept.
    pub fn when_settled(&self, call: impl Fn() + Send + Sync + 'static) {
        _ = self.when_settled.set(Box::new(call));
    }

    /// Sets a callback for when a stream has accepted everything in the view: called once for each stream and state of
    /// the view, which is locked meanwhile. Only the first callback is kept.
    pub fn when_accepted(&self, call: impl Fn(&str, &View) + Send + Sync + 'static) {
        _ = self.when_accepted.set(Box::new(call));
    }

    fn tell_if_settled(&self) {
        if let Some(call) = self.when_settled.get()
            && self.is_settled()
        {
            call();
        }
    }

    /// Adds a stream, until the handle is dropped.
    pub fn add_follower(self: &Arc<Self>, peer: &str) -> FollowerHandle {
        let mut followers = self.followers();
        let number = followers.next;
        followers.next += 1;
        let follower =
            Follower { peer: peer.to_owned(), position: 0, settled: false, refusals: 0, refusal: None };
        followers.all.insert(number, follower);
        FollowerHandle { shared: Arc::clone(self), number, peer: peer.to_owned(), told: None }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("followers", &self.all()).finish_non_exhaustive()
    }
}

/// A stream's entry in the view; dropping it removes the stream.
#[derive(Debug)]
pub struct FollowerHandle {
    shared: Arc<Shared>,
    number: u64,
    peer: String,
    /// The last state of the view for which `when_accepted` was called.
    told: Option<Position>,
}

impl FollowerHandle {
    /// Records the progress of the stream.
    pub fn note(&mut self, stream: &impl Session) {
        let (refusals, refusal) = stream.nacks();
        let settled = self.tell_if_accepted(stream, refusal.is_none());
        if let Some(follower) = self.shared.followers().all.get_mut(&self.number) {
            follower.position = stream.position();
            follower.settled = settled;
            follower.refusals = refusals;
            follower.refusal = refusal.map(|nack| nack.why.clone());
        }
        self.shared.tell_if_settled();
    }

    /// Calls `when_accepted` where it is due. Returns whether the stream is settled.
    fn tell_if_accepted(&mut self, stream: &impl Session, is_content: bool) -> bool {
        let view = self.shared.view();
        let settled = stream.is_settled(&view);
        if settled
            && is_content
            && self.told != Some(view.last())
            && let Some(call) = self.shared.when_accepted.get()
        {
            self.told = Some(view.last());
            call(&self.peer, &view);
        }
        settled
    }
}

impl Drop for FollowerHandle {
    fn drop(&mut self) {
        self.shared.followers().all.remove(&self.number);
        self.shared.tell_if_settled();
    }
}
