//! One stream of a client, with all the types that it asks for: requests in, responses out. Flow control is
//! per type; here is what types owe each other, for Envoy. A listener waits until the client has taken the
//! clusters that it may lead to. And whenever a cluster is sent, its endpoints are sent after it, unasked:
//! Envoy waits for them and does not ask. Never do endpoints wait for an answer about clusters: that answer
//! may wait for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use isthmus_certs::SpiffeId;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tonic::{Status, Streaming};

use super::service::Directory;
use super::session::{Said, Session};
use super::shared::{Seat, Shared};
use crate::envoy::{CLUSTER, ENDPOINTS, LISTENER};

/// A response has about this many bytes, so that a first state of any size arrives in parts.
const PART: usize = 1 << 20;
/// A stream ends after this, up to half as long again: load spreads over agents that came back.
const AGE: Duration = Duration::from_secs(30 * 60);

/// One stream of a client.
pub(super) struct Stream<D, S: Session> {
    directory: Arc<D>,
    peer: SpiffeId,
    sender: mpsc::Sender<Result<S::Response, Status>>,
    kinds: BTreeMap<Rank, Kind<S>>,
    /// Clusters that were sent before the client asked for any endpoints.
    warming: BTreeSet<String>,
    /// A view has changed.
    moved: Arc<Notify>,
    watches: JoinSet<()>,
}

/// Types in the order in which they are sent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Clusters,
    Endpoints,
    Listeners,
    Other(String),
}

impl Rank {
    fn of(type_url: &str) -> Rank {
        match type_url {
            CLUSTER => Rank::Clusters,
            ENDPOINTS => Rank::Endpoints,
            LISTENER => Rank::Listeners,
            other => Rank::Other(other.to_owned()),
        }
    }
}

impl<D: Directory, S: Session> Stream<D, S> {
    pub(super) fn new(
        directory: Arc<D>,
        peer: SpiffeId,
        sender: mpsc::Sender<Result<S::Response, Status>>,
    ) -> Stream<D, S> {
        Stream {
            directory,
            peer,
            sender,
            kinds: BTreeMap::new(),
            warming: BTreeSet::new(),
            moved: Arc::default(),
            watches: JoinSet::new(),
        }
    }

    /// Serves until the client leaves, or the stream is old.
    pub(super) async fn run(mut self, mut requests: Streaming<S::Request>) {
        let end = Instant::now() + AGE.mul_f64(1.0 + fastrand::f64() / 2.0);
        let moved = Arc::clone(&self.moved);
        loop {
            let heard = tokio::select! {
                request = requests.next() => match request {
                    Some(request) => request.and_then(|request| self.hear(&request)),
                    None => return,
                },
                () = moved.notified() => Ok(()),
                () = tokio::time::sleep_until(end) => Err(Status::unavailable("the stream is old; come again")),
            };
            if let Err(status) = heard {
                // It may be gone already.
                let _ = self.sender.send(Err(status)).await;
                return;
            }
            for message in self.speak() {
                if self.sender.send(Ok(message)).await.is_err() {
                    return;
                }
            }
        }
    }

    fn hear(&mut self, request: &S::Request) -> Result<(), Status> {
        let type_url = S::type_of(request);
        let rank = Rank::of(type_url);
        if !self.kinds.contains_key(&rank) {
            let shared = if S::is_by_name(request) {
                self.directory.named(&self.peer, type_url)?
            } else {
                self.directory.view(&self.peer, type_url)?
            };
            self.watch(&shared);
            self.kinds.insert(rank.clone(), Kind::new(type_url, shared, &self.peer));
        }
        if let Some(kind) = self.kinds.get_mut(&rank) {
            kind.hear(request);
        }
        if rank == Rank::Endpoints {
            self.warm(BTreeSet::new());
        }
        Ok(())
    }

    fn watch(&mut self, shared: &Shared) {
        let (mut changes, moved) = (shared.moved(), Arc::clone(&self.moved));
        self.watches.spawn(async move {
            while changes.changed().await.is_ok() {
                moved.notify_one();
            }
        });
    }

    /// What there is to say, of each type, in order.
    fn speak(&mut self) -> Vec<S::Response> {
        let mut said = Vec::new();
        for rank in self.kinds.keys().cloned().collect::<Vec<_>>() {
            if rank == Rank::Listeners
                && self.kinds.get(&Rank::Clusters).is_some_and(|kind| !kind.is_settled())
            {
                continue;
            }
            let Some(Said { message, renews }) = self.kinds.get_mut(&rank).and_then(Kind::speak) else {
                continue;
            };
            said.push(message);
            if rank == Rank::Clusters {
                self.warm(renews.into_iter().collect());
            }
        }
        said
    }

    /// The endpoints of these clusters follow them.
    fn warm(&mut self, clusters: BTreeSet<String>) {
        self.warming.extend(clusters);
        if let Some(endpoints) = self.kinds.get_mut(&Rank::Endpoints) {
            endpoints.session.again(self.warming.iter().map(String::as_str));
            self.warming.clear();
        }
    }
}

/// One type on a stream.
struct Kind<S> {
    type_url: String,
    shared: Arc<Shared>,
    seat: Seat,
    session: S,
}

impl<S: Session> Kind<S> {
    fn new(type_url: &str, shared: Arc<Shared>, peer: &SpiffeId) -> Kind<S> {
        let seat = shared.follow(&peer.to_string());
        Kind { type_url: type_url.to_owned(), shared, seat, session: S::new(type_url) }
    }

    fn hear(&mut self, request: &S::Request) {
        self.session.request(request, &self.shared.view(), &|name| self.shared.is_gone(name));
        self.seat.note(&self.session);
    }

    fn speak(&mut self) -> Option<Said<S::Response>> {
        let said = self.session.response(&self.type_url, &self.shared.view(), PART);
        self.seat.note(&self.session);
        said
    }

    fn is_settled(&self) -> bool {
        self.session.is_settled(&self.shared.view())
    }
}

#[cfg(test)]
mod tests;
