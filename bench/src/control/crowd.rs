//! Simulates gateways and peers: each is a real discovery client with its own identity and TLS connection,
//! which stores the resources by name and does not use them.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use isthmus_ads::client::{Client, Refused, Update};
use isthmus_ads::service::{Directory, Discovery};
use isthmus_ads::shared::Shared;
use isthmus_ads::subscribe::{Answers, Contact, Subscription, Tables};
use isthmus_certs::{Client as Tls, IdPattern, Peer, Server, SpiffeId, Trust};
use isthmus_grpc::budget::Principal;
use isthmus_grpc::serve::serve;
use isthmus_model::address::Target;
use isthmus_proto::envoy::config::core::v3::Node;
use isthmus_proto::type_url::SLICE;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::service::Routes;

use super::cluster::Cluster;
use crate::stop::Stop;

const PAUSE: Duration = Duration::from_millis(1);

/// Clients that follow one agent until dropped.
pub(super) struct Crowd {
    runtime: Runtime,
    agent: SocketAddr,
    agents: IdPattern,
    pub(super) members: usize,
    all: Arc<All>,
}

/// State shared by all members.
struct All {
    services: usize,
    /// Number of members with all services.
    full: AtomicUsize,
    awaited: Mutex<Awaited>,
}

/// The resource that changes next, and when each member received it.
#[derive(Default)]
struct Awaited {
    name: String,
    arrived: Vec<Instant>,
}

impl All {
    fn awaited(&self) -> MutexGuard<'_, Awaited> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Crowd {
    /// An empty crowd, whose members expect this many services from the agent of a cluster.
    pub(super) fn new(cluster: &Cluster, services: u32) -> anyhow::Result<Self> {
        Ok(Self {
            runtime: tokio::runtime::Builder::new_multi_thread().enable_all().build()?,
            agent: cluster.xds,
            agents: IdPattern::agents(cluster.domain(), cluster.name())?,
            members: 0,
            all: Arc::new(All {
                services: usize::try_from(services)?,
                full: AtomicUsize::new(0),
                awaited: Mutex::default(),
            }),
        })
    }

    /// Adds a member with this identity.
    pub(super) fn join(&mut self, cluster: &Cluster, leaf: &str) -> anyhow::Result<()> {
        let trust = Trust::load(&cluster.trust(leaf))?;
        let tls = Tls::new(trust, Peer::Matching(vec![self.agents.clone()]), &[b"h2"])?;
        let node = Node { id: leaf.to_owned(), cluster: cluster.name().to_owned(), ..Node::default() };
        let servers = vec![Target::Address(self.agent)];
        let subscription =
            Subscription { servers, within: None, tls: Arc::new(tls), node, answers: Answers::OF_OWN };
        let mut member = Member { names: HashSet::new(), all: Arc::clone(&self.all) };
        self.members += 1;
        self.runtime.spawn(async move {
            subscription.run(vec![Client::new(SLICE, Vec::new())], &mut member).await;
        });
        Ok(())
    }

    /// Serves at a peer agent's address without offering any services.
    pub(super) fn answer_for(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let trust = Trust::load(&cluster.trust("agent"))?;
        let tls = Arc::new(Server::new(trust, Peer::Trusted, &[b"h2"])?);
        let listener = self.runtime.block_on(TcpListener::bind(cluster.xds))?;
        let nothing = Arc::new(Nothing(Arc::new(Shared::new(|_| true))));
        self.runtime.spawn(async move {
            serve(
                &listener,
                tls,
                Routes::new(Discovery::service(nothing)),
                Arc::new(|id| Some(Principal::Gateway(id.clone()))),
            )
            .await;
        });
        Ok(())
    }

    /// Waits until every member has all services.
    pub(super) fn until_full(&self, patience: Duration, stop: &Stop) -> io::Result<()> {
        let full = || self.all.full.load(SeqCst);
        let members = self.members;
        until(|| full() == members, patience, stop, || format!("{} of {members} clients are in sync", full()))
    }

    /// Starts waiting for a change of this resource.
    pub(super) fn expect(&self, resource: &str) {
        *self.all.awaited() = Awaited { name: resource.to_owned(), arrived: Vec::new() };
    }

    /// Waits until every member has the change; returns when the last one received it.
    pub(super) fn until_arrived(&self, patience: Duration, stop: &Stop) -> io::Result<Instant> {
        let arrived = || self.all.awaited().arrived.len();
        let members = self.members;
        until(
            || arrived() >= members,
            patience,
            stop,
            || format!("{} of {members} clients have the change", arrived()),
        )?;
        let last = self.all.awaited().arrived.iter().max().copied();
        last.ok_or_else(|| io::Error::other("there are no clients"))
    }
}

fn until(
    is_so: impl Fn() -> bool,
    patience: Duration,
    stop: &Stop,
    so_far: impl Fn() -> String,
) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    while !is_so() {
        stop.check()?;
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("after {patience:?}, {}", so_far())));
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// A simulated client.
struct Member {
    names: HashSet<String>,
    all: Arc<All>,
}

impl Tables for Member {
    async fn apply(&mut self, update: &Update) -> Vec<Refused> {
        let now = Instant::now();
        let before = self.names.len();
        self.names.extend(update.resources.iter().map(|resource| resource.name.clone()));
        if before < self.all.services && self.names.len() >= self.all.services {
            self.all.full.fetch_add(1, SeqCst);
        }
        let mut awaited = self.all.awaited();
        if update.resources.iter().any(|resource| resource.name == awaited.name) {
            awaited.arrived.push(now);
        }
        Vec::new()
    }

    fn contact(&mut self, _: Contact<'_>) {}
}

/// The empty offer of a simulated peer.
struct Nothing(Arc<Shared>);

impl Directory for Nothing {
    fn view(&self, _: &SpiffeId, _: &str) -> Result<Arc<Shared>, Status> {
        Ok(Arc::clone(&self.0))
    }
}
