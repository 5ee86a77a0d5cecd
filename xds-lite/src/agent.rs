//! The agent of a cluster: it follows the registry and the agents of other clusters, and serves what comes of it
//! to the cluster's gateways and to those agents. What it knows is in `state`, who is served what in `views`.

mod bundles;
pub mod config;
mod federation;
mod import_health;
pub mod issuing;
pub mod join_config;
mod metrics;
mod mtls_check;
mod pages;
mod peer;
mod peer_bundle;
mod persistence;
mod registry_watch;
mod state;
mod views;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isthmus_certs::trust::LoadError;
use isthmus_certs::{ConfigError, Peer, Server, SpiffeId, Trust};
use isthmus_store::Source;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::{JoinError, spawn_blocking};
use tonic::service::Routes;

use crate::admin;
use isthmus_ads::service::Discovery;
use isthmus_envoy::export::Adapter;
use isthmus_grpc::budget::{Budgets, Places, raise_descriptor_limit};
use isthmus_grpc::serve::{Admission, serve_with};
use isthmus_registry::files::Files;
use isthmus_trust::issuing::IntermediateError;
use isthmus_trust::join;

use bundles::Bundles;
use config::{Registration, Settings};
use federation::federate;
use issuing::Issuing;
use join_config::context;
use mtls_check::probe;
use pages::AdminPages;
use peer::peer_access;
use persistence::Stores;
use registry_watch::{keep_looking, look};
use state::State;
use views::Views;

/// How often the registry is looked at.
const PACE: Duration = Duration::from_millis(50);
/// Whoever comes is served after this long at the latest, whatever is known of the endpoints by then: some way
/// under what a gateway waits for a handshake.
const AT_FIRST: Duration = Duration::from_secs(3);
/// How often it is looked for what has expired.
const EXPIRE: Duration = Duration::from_secs(1);
/// How often who announced itself is kept for a restart.
const KEEP: Duration = Duration::from_secs(1);

/// An agent that is bound, and not running yet.
pub struct Agent {
    settings: Arc<Settings>,
    sockets: Sockets,
    tls: Arc<Server>,
    trust: Trust,
    state: Arc<Mutex<State>>,
    sources: Option<[Arc<dyn Source>; 2]>,
    issuing: Option<Arc<Issuing>>,
}

/// What it listens on.
struct Sockets {
    xds: TcpListener,
    admin: TcpListener,
    join: Option<TcpListener>,
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
    /// What signs certificates cannot be used.
    #[error("issuing: {0}")]
    Issuing(#[from] IntermediateError),
    /// What is said to who joins is of no use.
    #[error("join: {0}")]
    Join(String),
    /// The admin port ended.
    #[error("admin: {0}")]
    Admin(io::Error),
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
        if join::Party::of_agent(&id).is_none_or(|party| party.cluster != settings.cluster) {
            let expected = SpiffeId::agent(domain, settings.cluster.as_str(), "NAME")?.to_string();
            return Err(Error::Identity { found: id.clone(), expected });
        }
        let gateways: Result<_, _> = settings
            .gateways
            .iter()
            .map(|gateway| SpiffeId::gateway(domain, settings.cluster.as_str(), &gateway.name))
            .collect();
        let own = join::Party { cluster: settings.cluster.clone(), trust_domain: domain.clone() };
        let bundles = Bundles::new(own, settings.state.as_deref());
        let views = Views::new(gateways?, adapter(&settings), bundles);
        for peer in &settings.peers {
            views.add(&peer.domain, &peer.cluster, peer_access(&settings, peer));
        }
        let issuing = Issuing::open(&settings, &trust)?;
        let settings = Arc::new(settings);
        let opened = match settings.state.clone() {
            Some(folder) => {
                let opened = spawn_blocking(move || Stores::open(&folder)).await;
                Some(opened.map_err(Error::Broken)?)
            }
            None => None,
        };
        let state = State::new(Arc::clone(&settings), Arc::new(views), opened);
        let join = match &settings.join {
            Some(join) => Some(listen(join.address).await?),
            None => None,
        };
        let sockets =
            Sockets { xds: listen(settings.address).await?, admin: listen(settings.admin).await?, join };
        let tls = Arc::new(Server::new(trust.clone(), Peer::Trusted, &[b"h2"])?);
        let state = Arc::new(Mutex::new(state));
        // They ask for the state under its lock, from threads of their own.
        let stores = locked(&state).stores.take();
        let sources = stores.map(|mut stores| {
            let sources = stores.begin(&state);
            locked(&state).stores = Some(stores);
            sources
        });
        Ok(Agent { settings, sockets, tls, trust, state, sources, issuing })
    }

    /// What it listens on, with the ports that were bound: `xds`, `admin`, `join`.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn addresses(&self) -> io::Result<Vec<(&'static str, SocketAddr)>> {
        let Sockets { xds, admin, join } = &self.sockets;
        let all = [("xds", Some(xds)), ("admin", Some(admin)), ("join", join.as_ref())];
        all.into_iter().filter_map(|(name, socket)| Some(socket?.local_addr().map(|at| (name, at)))).collect()
    }

    /// Follows the registry and the peers, and serves, until it is dropped.
    ///
    /// # Errors
    /// A part of it could not go on.
    pub async fn run(self) -> Result<(), Error> {
        self.run_looking(Arc::default()).await
    }

    /// The same; whoever notifies `again` has it look at its registry, whether or not something says that it has changed.
    ///
    /// # Errors
    /// As [`Agent::run`].
    pub async fn run_looking(self, again: Arc<Notify>) -> Result<(), Error> {
        let Agent { settings, sockets, tls, trust, state, sources: _sources, issuing } = self;
        let _files = trust.watch(settings.trust.clone()).map_err(Error::Thread)?;
        let waiting = Arc::new(Notify::new());
        // The registry is read as a whole before anybody is served.
        let files = look(Files::new(settings.registry.clone()), &state, &waiting).await?;
        let places = Places::of_descriptors(raise_descriptor_limit());
        let budgets = Arc::new(Budgets::new(settings.limits.clients, places));
        let told = Arc::new(AdminPages {
            budgets: Arc::clone(&budgets),
            settings: Arc::clone(&settings),
            state: Arc::clone(&state),
            issuing: issuing.clone(),
            trust: trust.clone(),
        });
        let Registration { socket, users, .. } = settings.registration.clone();
        let local = socket.map(|path| admin::Local { path, users });
        let views = Arc::clone(&locked(&state).views);
        views.bundles.publish(&trust.current());
        let mut routes = Routes::new(Discovery::service(Arc::clone(&views)));
        let issuing_service = issuing.as_ref().map(|issuing| {
            let certificates = issuing.certificates();
            routes = std::mem::take(&mut routes).add_service(Arc::clone(&certificates).service());
            issuing.service(&certificates)
        });
        let members = Arc::clone(&views);
        let knows = Arc::new(move |id: &SpiffeId| members.principal(id));
        let admission = Admission::new(knows).with(budgets, issuing_service);
        let context = sockets.join.as_ref().map(|_| context(&settings, trust.clone())).transpose()?;
        tokio::select! {
            () = attend(&sockets.xds, tls, routes, admission, &state) => Ok(()),
            served = admin::serve_on_own_thread(sockets.admin, local, told, admin::Limits::default()) => {
                served.map_err(Error::Admin)
            }
            () = welcome(sockets.join, context) => Ok(()),
            () = renew_intermediate(issuing) => Ok(()),
            ended = keep_looking(files, &state, &waiting, &again) => ended,
            () = keep_expiring(&state) => Ok(()),
            () = keep_registrations(&state) => Ok(()),
            () = views.bundles.keep_telling(&trust) => Ok(()),
            () = probe(Arc::clone(&state), Arc::clone(&waiting)) => Ok(()),
            () = import_health::ask(Arc::clone(&state)) => Ok(()),
            ended = federate(settings, trust.clone(), Arc::clone(&state)) => ended,
        }
    }
}

/// Serves gateways and peers. They come back as soon as a restart is over: before the endpoints were looked at
/// they would be told that what is exported is gone.
async fn attend(
    listener: &TcpListener,
    tls: Arc<Server>,
    routes: Routes,
    admission: Admission,
    state: &Mutex<State>,
) {
    let looked_at = async {
        while locked(state).mtls_checks.awaits() {
            tokio::time::sleep(PACE).await;
        }
    };
    let _late = tokio::time::timeout(AT_FIRST, looked_at).await;
    serve_with(listener, tls, routes, admission).await;
}

/// Follows what signs certificates, if anything does.
async fn renew_intermediate(issuing: Option<Arc<Issuing>>) {
    match issuing {
        Some(issuing) => issuing.follow().await,
        None => std::future::pending().await,
    }
}

/// Serves those who join by a token, if there is a place for it.
async fn welcome(socket: Option<TcpListener>, context: Option<join::Context>) {
    match (socket, context) {
        (Some(socket), Some(context)) => join::serve(socket, Arc::new(context)).await,
        _ => std::future::pending().await,
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|cause| Error::Bind { address, cause })
}

fn adapter(settings: &Settings) -> Option<Adapter> {
    let envoys =
        || settings.gateways.iter().filter_map(|gateway| Some((gateway.name.clone(), gateway.envoy?)));
    let (_, address) = envoys().next()?;
    let names = envoys().map(|(name, _)| name).collect();
    Some(Adapter::new(settings.cluster.clone(), names, address))
}

/// Persists who announces itself for a restart.
async fn keep_registrations(state: &Mutex<State>) {
    let mut pace = tokio::time::interval(KEEP);
    loop {
        pace.tick().await;
        locked(state).persist_registrations();
    }
}

/// Each look walks over all that lost peers offer: often enough for times of whole seconds, and no more.
async fn keep_expiring(state: &Mutex<State>) {
    let mut pace = tokio::time::interval(EXPIRE);
    loop {
        pace.tick().await;
        locked(state).expire(Instant::now());
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
