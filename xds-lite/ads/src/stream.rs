//! Serves all types of one stream: requests in, responses out. Flow control is per type; this module orders the types
//! among each other, for Envoy. Listeners wait until the client has accepted the clusters that they may use. Whenever
//! a cluster is sent, its endpoints are sent after it, unrequested: Envoy waits for them and does not ask. Endpoints
//! never wait for the answer about clusters: that answer may wait for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use isthmus_certs::SpiffeId;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::{Stream as Flow, StreamExt as _};
use tonic::Status;

use super::service::Directory;
use super::session::{NameUsage, Outgoing, Session};
use super::shared::{FollowerHandle, Shared};
use isthmus_grpc::budget::{Account, Exceeded, Resource, Share};
use isthmus_proto::type_url::{CLUSTER, ENDPOINTS, LISTENER};

/// The size of a response, about: a first state of any size arrives in parts, and a priority change waits for a small
/// one only.
const PART: usize = 128 << 10;
/// The maximum age of a stream, extended at random by up to half: load spreads over agents that have restarted.
const AGE: Duration = Duration::from_secs(30 * 60);
/// Longest time for the client to read and to answer a response. Until then the view remembers removals for this
/// stream.
const ANSWER: Duration = Duration::from_secs(120);

/// One stream of a client.
pub struct Stream<D, S: Session> {
    directory: Arc<D>,
    peer: SpiffeId,
    account: Account,
    sender: mpsc::Sender<Result<S::Response, Status>>,
    kinds: BTreeMap<Rank, Kind<S>>,
    /// Clusters that were sent before the client subscribed to any endpoints.
    warming: BTreeSet<String>,
    /// Notified when a view has changed.
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
    fn for_type(type_url: &str) -> Rank {
        match type_url {
            CLUSTER => Rank::Clusters,
            ENDPOINTS => Rank::Endpoints,
            LISTENER => Rank::Listeners,
            other => Rank::Other(other.to_owned()),
        }
    }
}

impl<D, S: Session> std::fmt::Debug for Stream<D, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl<D: Directory, S: Session> Stream<D, S> {
    /// A stream before its first request. Responses go to `sender`.
    pub fn new(
        directory: Arc<D>,
        peer: SpiffeId,
        account: Account,
        sender: mpsc::Sender<Result<S::Response, Status>>,
    ) -> Stream<D, S> {
        Stream {
            directory,
            peer,
            account,
            sender,
            kinds: BTreeMap::new(),
            warming: BTreeSet::new(),
            moved: Arc::default(),
            watches: JoinSet::new(),
        }
    }

    /// Serves until the client closes the stream, does not answer in time, or the stream reaches its maximum age.
    pub async fn run(mut self, mut requests: impl Flow<Item = Result<S::Request, Status>> + Unpin) {
        let end = Instant::now() + AGE.mul_f64(1.0 + fastrand::f64() / 2.0);
        let moved = Arc::clone(&self.moved);
        loop {
            let overdue = self.kinds.values().filter_map(|kind| kind.asked).min().map(|asked| asked + ANSWER);
            let outcome = tokio::select! {
                request = requests.next() => match request {
                    Some(request) => request.and_then(|request| self.hear(&request)),
                    None => return,
                },
                () = moved.notified() => self.check_views(),
                () = tokio::time::sleep_until(overdue.unwrap_or(end).min(end)) => Err(match overdue {
                    Some(overdue) if overdue < end => Status::deadline_exceeded(NO_ANSWER),
                    _ => Status::unavailable("the stream reached its maximum age; reconnect"),
                }),
            };
            if let Err(status) = outcome {
                if status.code() == tonic::Code::DeadlineExceeded {
                    tracing::warn!(peer = %self.peer, "stream ended: {NO_ANSWER}");
                }
                // The client may be gone already.
                let _ = self.sender.send_timeout(Err(status), ANSWER).await;
                return;
            }
            for message in self.speak() {
                if self.sender.send_timeout(Ok(message), ANSWER).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Handles a request.
    ///
    /// # Errors
    /// The status that ends the stream.
    pub fn hear(&mut self, request: &S::Request) -> Result<(), Status> {
        let type_url = S::type_of(request);
        let rank = Rank::for_type(type_url);
        if !self.kinds.contains_key(&rank) {
            let shared = if S::is_by_name(request) {
                self.directory.named(&self.peer, type_url)?
            } else {
                self.directory.view(&self.peer, type_url)?
            };
            let kind = Kind::new(type_url, shared, &self.peer, &self.account)?;
            self.watch(&kind.shared);
            self.kinds.insert(rank.clone(), kind);
            // Before the watch, it may have moved for the last time.
            self.check_views()?;
        }
        let others = self.kinds.iter().filter(|(other, _)| **other != rank);
        let others: u64 = others.map(|(_, kind)| kind.names.amount()).sum();
        if let Some(kind) = self.kinds.get_mut(&rank) {
            kind.hear(request, (self.account.limits().names / 2).saturating_sub(others))?;
        }
        if rank == Rank::Endpoints {
            self.warm(BTreeSet::new());
        }
        Ok(())
    }

    /// Checks that the client would be given the views that it follows.
    ///
    /// # Errors
    /// The status that ends the stream.
    fn check_views(&self) -> Result<(), Status> {
        let is_current = |kind: &Kind<S>| self.directory.is_current(&self.peer, &kind.type_url, &kind.shared);
        if self.kinds.values().all(is_current) {
            Ok(())
        } else {
            Err(Status::unavailable("this client is served other resources from now on; reconnect"))
        }
    }

    fn watch(&mut self, shared: &Shared) {
        let (mut changes, moved) = (shared.moved(), Arc::clone(&self.moved));
        self.watches.spawn(async move {
            while changes.changed().await.is_ok() {
                moved.notify_one();
            }
        });
    }

    /// The responses that are due, in the order of types.
    pub fn speak(&mut self) -> Vec<S::Response> {
        let mut responses = Vec::new();
        for rank in self.kinds.keys().cloned().collect::<Vec<_>>() {
            if rank == Rank::Listeners
                && self.kinds.get(&Rank::Clusters).is_some_and(|kind| !kind.is_settled())
            {
                continue;
            }
            let Some(Outgoing { message, renews }) = self.kinds.get_mut(&rank).and_then(Kind::speak) else {
                continue;
            };
            responses.push(message);
            if rank == Rank::Clusters {
                self.warm(renews.into_iter().collect());
            }
        }
        responses
    }

    /// Owes the endpoints of these clusters.
    fn warm(&mut self, clusters: BTreeSet<String>) {
        self.warming.extend(clusters);
        if let Some(endpoints) = self.kinds.get_mut(&Rank::Endpoints) {
            endpoints.session.resend(self.warming.iter().map(String::as_str));
            self.warming.clear();
        }
    }
}

const NO_ANSWER: &str = "a response was not answered for two minutes";

/// One type on a stream.
struct Kind<S> {
    type_url: String,
    shared: Arc<Shared>,
    follower: FollowerHandle,
    session: S,
    /// Budget shares of the client's names.
    names: Share,
    name_bytes: Share,
    /// Since when a response is unanswered.
    asked: Option<Instant>,
    /// The last recheck of the view that this stream has followed.
    rechecked: u64,
}

impl<S: Session> Kind<S> {
    fn new(
        type_url: &str,
        shared: Arc<Shared>,
        peer: &SpiffeId,
        account: &Account,
    ) -> Result<Kind<S>, Exceeded> {
        Ok(Kind {
            type_url: type_url.to_owned(),
            follower: shared.add_follower(&peer.to_string()),
            rechecked: shared.rechecks(),
            shared,
            session: S::new(type_url),
            names: account.reserve(Resource::Names, 0)?,
            name_bytes: account.reserve(Resource::NameBytes, 0)?,
            asked: None,
        })
    }

    /// Handles a request, which may subscribe to `most` names.
    fn hear(&mut self, request: &S::Request, most: u64) -> Result<(), Status> {
        let kept = self.session.kept_with(request, &self.shared.view());
        if kept.names > most {
            return Err(Status::resource_exhausted(format!(
                "one stream may subscribe to {most} names of {}, not to {}; use several, or raise `limits` in agent.yaml",
                self.type_url, kept.names
            )));
        }
        self.count(kept)?;
        self.session.request(request, &self.shared.view(), &|name| self.shared.is_gone(name));
        self.count(self.session.name_usage())?;
        if !self.session.is_in_flight() {
            self.asked = None;
        }
        self.follower.note(&self.session);
        Ok(())
    }

    fn count(&mut self, kept: NameUsage) -> Result<(), Exceeded> {
        self.names.set(kept.names)?;
        self.name_bytes.set(kept.bytes)
    }

    fn speak(&mut self) -> Option<Outgoing<S::Response>> {
        let rechecks = self.shared.rechecks();
        if std::mem::replace(&mut self.rechecked, rechecks) != rechecks {
            self.session.recheck(&self.shared.view(), &|name| self.shared.is_gone(name));
        }
        let response = self.session.response(&self.type_url, &self.shared.view(), PART);
        if response.is_some() {
            self.asked = Some(Instant::now());
        }
        self.follower.note(&self.session);
        response
    }

    fn is_settled(&self) -> bool {
        self.session.is_settled(&self.shared.view())
    }
}
