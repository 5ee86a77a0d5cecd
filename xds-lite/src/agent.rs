//! The agent of a cluster: it follows the registry, and serves what comes of it to the cluster's gateways.
//! Not yet here: other clusters' agents, stock Envoys, tokens.

pub mod config;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use isthmus_certs::trust::LoadError;
use isthmus_certs::{ConfigError, Peer, Server, SpiffeId, Trust};
use tokio::net::TcpListener;
use tonic::Status;
use tonic::service::Routes;

use crate::ads::service::{Directory, Discovery};
use crate::ads::shared::Shared;
use crate::registry::files::Files;
use crate::registry::{Own, offers};
use crate::serve::serve;

use config::Settings;

/// The type of a slice, as discovery names it.
pub const SLICE: &str = "type.googleapis.com/isthmus.v1.ServiceSlice";
/// How often the registry is looked at.
const PACE: Duration = Duration::from_millis(50);

/// An agent that is bound, and not running yet.
#[derive(Debug)]
pub struct Agent {
    settings: Settings,
    listener: TcpListener,
    tls: Arc<Server>,
    trust: Trust,
    members: Arc<Members>,
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
}

/// Who is served what.
#[derive(Debug)]
struct Members {
    gateways: BTreeSet<SpiffeId>,
    slices: Arc<Shared>,
}

impl Directory for Members {
    fn view(&self, peer: &SpiffeId, type_url: &str) -> Result<Arc<Shared>, Status> {
        if !self.gateways.contains(peer) {
            return Err(Status::permission_denied(format!(
                "{peer} is none of this cluster's gateways; list it under `gateways:` of its agent"
            )));
        }
        match type_url {
            SLICE => Ok(Arc::clone(&self.slices)),
            _ => Err(Status::unimplemented("only service slices are served here")),
        }
    }
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
            .map(|name| SpiffeId::gateway(domain, settings.cluster.as_str(), name))
            .collect();
        // What this registry does not have is gone: it is read as a whole before anybody is served.
        let members = Arc::new(Members { gateways: gateways?, slices: Arc::new(Shared::new(|_| true)) });
        let tls = Arc::new(Server::new(trust.clone(), Peer::Domain(domain.clone()), &[b"h2"])?);
        let address = settings.address;
        let listener = TcpListener::bind(address).await.map_err(|cause| Error::Bind { address, cause })?;
        Ok(Agent { settings, listener, tls, trust, members })
    }

    /// Where it serves, with the port that was bound.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Follows the registry and serves, until it is dropped.
    ///
    /// # Errors
    /// The system gave no thread.
    pub async fn run(self) -> Result<(), Error> {
        let _files = self.trust.watch(self.settings.trust.clone()).map_err(Error::Thread)?;
        let mut registry = Registry::new(&self.settings, Arc::clone(&self.members.slices));
        registry.look();
        let follow = async {
            let mut pace = tokio::time::interval(PACE);
            loop {
                pace.tick().await;
                registry.look();
            }
        };
        let routes = Routes::new(Discovery::service(Arc::clone(&self.members)));
        tokio::select! {
            () = serve(self.listener, self.tls, routes) => {}
            () = follow => {}
        }
        Ok(())
    }
}

/// The registry and the view that follows it.
struct Registry {
    files: Files,
    own: Own,
    network: String,
    slices: Arc<Shared>,
    problems: Vec<String>,
}

impl Registry {
    fn new(settings: &Settings, slices: Arc<Shared>) -> Registry {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let incarnation = u64::try_from(now.as_millis()).unwrap_or(u64::MAX).max(1);
        Registry {
            files: Files::new(settings.registry.clone()),
            own: Own::new(settings.cluster.clone(), incarnation),
            network: settings.network.clone(),
            slices,
            problems: Vec::new(),
        }
    }

    fn look(&mut self) {
        if !self.files.look() {
            return;
        }
        let (services, problems) = self.files.services();
        for problem in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            tracing::error!("{problem}");
        }
        self.problems = problems;
        let changed = self.own.offer(offers(services, &self.network));
        if changed.is_empty() {
            return;
        }
        tracing::info!(slices = changed.len(), "the registry has changed");
        self.slices.change(|view| {
            for slice in &changed {
                view.set(&slice.key.to_string(), slice.encode());
            }
        });
    }
}
