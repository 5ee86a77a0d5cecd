//! The agent of a cluster: it follows the registry and the agents of other clusters, and serves what comes of it
//! to the cluster's gateways and to those agents. What it knows is in `state`, who is served what in `views`.

pub mod config;
mod follow;
mod probe;
mod state;
mod views;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isthmus_certs::trust::LoadError;
use isthmus_certs::{ConfigError, Peer, Server, SpiffeId, Trust};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use tonic::service::Routes;

use crate::ads::service::Discovery;
use crate::serve::serve;

use config::Settings;
use follow::follow;
use probe::probe;
use state::{State, abroad_to};
use views::Views;

/// The type of a slice, as discovery names it.
pub const SLICE: &str = "type.googleapis.com/isthmus.v1.ServiceSlice";
/// How often the registry is looked at.
const PACE: Duration = Duration::from_millis(50);

/// An agent that is bound, and not running yet.
pub struct Agent {
    settings: Arc<Settings>,
    listener: TcpListener,
    tls: Arc<Server>,
    trust: Trust,
    state: Arc<Mutex<State>>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its identity or its trust cannot be used.
    #[error("trust: {0}")]
    Trust(#[from] LoadError),
    /// Its identity is not an agent's of this cluster.
    #[error(
        "trust: the certificate is of {found}, but the agent of this cluster is {expected}; issue it with `isthmus-certs issue --spiffe {expected}`"
    )]
    Identity {
        /// Whose it is.
        found: SpiffeId,
        /// Whose it must be.
        expected: String,
    },
    /// A gateway's name makes no identity.
    #[error("gateways: {0}")]
    Gateway(#[from] isthmus_certs::SpiffeIdError),
    /// TLS cannot be made of it.
    #[error(transparent)]
    Tls(#[from] ConfigError),
    /// Its address is taken.
    #[error("cannot listen on {address}: {cause}; is another process there? `ss -ltnp` tells")]
    Bind {
        /// As configured.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The system gave no thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// What is kept for a restart cannot be read or written.
    #[error("state: {0}; the directory must be the agent's own")]
    Kept(io::Error),
    /// A part of it broke.
    #[error("a part of the agent ended: {0}")]
    Broken(JoinError),
}

impl Agent {
    /// Checks the identity, and binds.
    ///
    /// # Errors
    /// Whatever keeps it from serving.
    pub async fn bind(settings: Settings) -> Result<Agent, Error> {
        let trust = Trust::load(&settings.trust)?;
        let id = trust.current().identity.id().clone();
        let domain = id.trust_domain();
        let agents = SpiffeId::agent(domain, settings.cluster.as_str(), "any")?;
        let expected = agents.to_string().replace("/any", "/NAME");
        let own = agents.path().trim_end_matches("any");
        if !id.path().strip_prefix(own).is_some_and(|name| !name.is_empty() && !name.contains('/')) {
            return Err(Error::Identity { found: id.clone(), expected });
        }
        let gateways: Result<_, _> = settings
            .gateways
            .iter()
            .map(|gateway| SpiffeId::gateway(domain, settings.cluster.as_str(), &gateway.name))
            .collect();
        let views = Views::new(gateways?);
        for peer in &settings.peers {
            views.add(&peer.domain, &peer.cluster, abroad_to(&settings, peer));
        }
        let settings = Arc::new(settings);
        let state = State::new(Arc::clone(&settings), Arc::new(views)).map_err(Error::Kept)?;
        let tls = Arc::new(Server::new(trust.clone(), Peer::Trusted, &[b"h2"])?);
        let address = settings.address;
        let listener = TcpListener::bind(address).await.map_err(|cause| Error::Bind { address, cause })?;
        Ok(Agent { settings, listener, tls, trust, state: Arc::new(Mutex::new(state)) })
    }

    /// Where it serves, with the port that was bound.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Follows the registry and the peers, and serves, until it is dropped.
    ///
    /// # Errors
    /// The system gave no thread.
    pub async fn run(self) -> Result<(), Error> {
        let _files = self.trust.watch(self.settings.trust.clone()).map_err(Error::Thread)?;
        let waiting = Arc::new(Notify::new());
        // The registry is read as a whole before anybody is served.
        self.look(&waiting);
        let mut tasks = JoinSet::new();
        for peer in self.settings.peers.clone() {
            let (own, trust) = (self.settings.cluster.clone(), self.trust.clone());
            tasks.spawn(follow(own, peer, trust, Arc::clone(&self.state)));
        }
        let probes = probe(Arc::clone(&self.state), Arc::clone(&waiting));
        let views = Arc::clone(&self.state().views);
        let routes = Routes::new(Discovery::service(views));
        let Agent { settings: _, listener, tls, trust: _, state: _ } = &self;
        tokio::select! {
            () = serve(listener, Arc::clone(tls), routes) => {}
            () = self.keep_looking(&waiting) => {}
            () = probes => {}
            Some(ended) = tasks.join_next() => ended.map_err(Error::Broken)??,
        }
        Ok(())
    }

    async fn keep_looking(&self, waiting: &Notify) {
        let mut pace = tokio::time::interval(PACE);
        loop {
            pace.tick().await;
            self.look(waiting);
            self.state().expire(Instant::now());
        }
    }

    fn look(&self, waiting: &Notify) {
        if self.state().look(Instant::now()) {
            waiting.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
