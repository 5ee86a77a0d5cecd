//! Runs the agent of a cluster: watches the registry, follows the agents of other clusters, and serves xDS to the
//! cluster's gateways and to those agents. `state` holds what it knows, `views` what each client is served.

mod acknowledgements;
mod bundles;
pub mod config;
mod explain;
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
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_certs::trust::LoadError;
use isthmus_certs::{ConfigError, Peer, Server, SpiffeId, Trust};
use isthmus_store::Source;
use parking_lot::{Mutex, MutexGuard};
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
use isthmus_trust::join::{self, Tokens};

use acknowledgements::Acknowledgements;
use bundles::Bundles;
use config::{Registration, Settings};
use federation::Federation;
use issuing::Issuing;
use join_config::context;
use mtls_check::run_mtls_checks;
use pages::AdminPages;
use peer::peer_access;
use persistence::Stores;
use registry_watch::{keep_looking, look};
use state::State;
use views::Views;

/// How often the registry is polled.
const PACE: Duration = Duration::from_millis(50);
/// Longest wait for the first mTLS checks before clients are served: less than a gateway waits for a handshake.
const AT_FIRST: Duration = Duration::from_secs(3);
/// How often expired slices are dropped.
const EXPIRE: Duration = Duration::from_secs(1);
/// How often changed registrations are persisted.
const KEEP: Duration = Duration::from_secs(1);

/// An agent that has bound its sockets and does not run yet.
pub struct Agent {
    settings: Arc<Settings>,
    sockets: Sockets,
    tls: Arc<Server>,
    trust: Trust,
    state: Arc<Mutex<State>>,
    sources: Option<[Arc<dyn Source>; 2]>,
    issuing: Option<Arc<Issuing>>,
}

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
    /// The identity or the bundles cannot be loaded.
    #[error("trust: {0}")]
    Trust(#[from] LoadError),
    /// The certificate is not an agent's of this cluster.
    #[error(
        "trust: the certificate is of {found}, but the agent of this cluster is {expected}; issue it with `isthmus-certs issue --spiffe {expected}`"
    )]
    Identity {
        /// The certificate's identity.
        found: SpiffeId,
        /// The identity that it must have.
        expected: String,
    },
    /// A gateway's name is not valid in an identity.
    #[error("gateways: {0}")]
    Gateway(#[from] isthmus_certs::SpiffeIdError),
    /// No TLS configuration can be built from the identity.
    #[error(transparent)]
    Tls(#[from] ConfigError),
    /// An address cannot be bound.
    #[error("cannot listen on {address}: {cause}; is another process there? check with `ss -ltnp`")]
    Bind {
        /// The configured address.
        address: SocketAddr,
        /// The system's error.
        #[source]
        cause: io::Error,
    },
    /// A thread cannot start.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The intermediate cannot be used.
    #[error("issuing: {0}")]
    Issuing(#[from] IntermediateError),
    /// The settings for joining are incomplete or of no use to other clusters.
    #[error("join: {0}")]
    Join(String),
    /// The admin server failed.
    #[error("admin: {0}")]
    Admin(io::Error),
    /// A task of the agent panicked or was cancelled.
    #[error("a task of the agent ended: {0}; this is a bug, please report it")]
    Broken(JoinError),
}

impl Agent {
    /// Checks the identity, opens the state and binds the listeners.
    ///
    /// # Errors
    /// Why the agent cannot serve.
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
        let (store, acknowledged) = match settings.state.clone() {
            Some(folder) => {
                let own = own.clone();
                let opened = spawn_blocking(move || {
                    let store = join::store(&folder);
                    let acknowledged = Acknowledgements::open(store.clone(), &folder, &own);
                    (store, acknowledged)
                });
                let (store, acknowledged) = opened.await.map_err(Error::Broken)?;
                (Some(store), Some(acknowledged))
            }
            None => (None, None),
        };
        let bundles = Bundles::new(own, acknowledged);
        let views = Views::new(settings.cluster.clone(), gateways?, adapter(&settings), bundles);
        for peer in &settings.peers {
            views.add(&peer.domain, &peer.cluster, peer_access(&settings, peer));
        }
        let tokens = store.clone().zip(settings.state.as_deref());
        let tokens = tokens.map(|(store, state)| Tokens::new(Arc::new(store), state));
        let issuing = Issuing::open(&settings, &trust, tokens)?;
        let settings = Arc::new(settings);
        let opened = match settings.state.clone() {
            Some(folder) => {
                let opened = spawn_blocking(move || Stores::open(&folder)).await;
                Some(opened.map_err(Error::Broken)?)
            }
            None => None,
        };
        let state = State::new(Arc::clone(&settings), Arc::new(views), opened, store);
        let join = match &settings.join {
            Some(join) => Some(listen(join.address).await?),
            None => None,
        };
        let sockets =
            Sockets { xds: listen(settings.address).await?, admin: listen(settings.admin).await?, join };
        let tls = Arc::new(Server::new(trust.clone(), Peer::Trusted, &[b"h2"])?);
        let state = Arc::new(Mutex::new(state));
        // The stores read the state under its lock, from threads of their own.
        let stores = locked(&state).stores.take();
        let sources = stores.map(|mut stores| {
            let sources = stores.begin(&state);
            locked(&state).stores = Some(stores);
            sources
        });
        Ok(Agent { settings, sockets, tls, trust, state, sources, issuing })
    }

    /// The bound addresses of the listeners `xds`, `admin` and `join`.
    ///
    /// # Errors
    /// The kernel cannot tell an address.
    pub fn addresses(&self) -> io::Result<Vec<(&'static str, SocketAddr)>> {
        let Sockets { xds, admin, join } = &self.sockets;
        let all = [("xds", Some(xds)), ("admin", Some(admin)), ("join", join.as_ref())];
        all.into_iter().filter_map(|(name, socket)| Some(socket?.local_addr().map(|at| (name, at)))).collect()
    }

    /// Runs the agent until dropped.
    ///
    /// # Errors
    /// A task of the agent ended.
    pub async fn run(self) -> Result<(), Error> {
        self.run_looking(Arc::default()).await
    }

    /// As [`Agent::run`], and reloads the registry whenever `again` is notified, changed or not.
    ///
    /// # Errors
    /// As [`Agent::run`].
    pub async fn run_looking(self, again: Arc<Notify>) -> Result<(), Error> {
        let Agent { settings, sockets, tls, trust, state, sources: _sources, issuing } = self;
        let _files = trust.watch(settings.trust.clone()).map_err(Error::Thread)?;
        let waiting = Arc::new(Notify::new());
        // The whole registry is read before any client is served.
        let files = look(Files::new(settings.registry.clone()), &state, &waiting).await?;
        let places = Places::of_descriptors(raise_descriptor_limit());
        let budgets = Arc::new(Budgets::new(settings.limits.clients, places));
        let pages = Arc::new(AdminPages {
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
        let store = locked(&state).trust_store.clone();
        let store = store.filter(|_| sockets.join.is_some());
        let join = store.map(|store| context(&settings, trust.clone(), Arc::new(store))).transpose()?;
        let federation = Federation::start(settings, trust.clone(), Arc::clone(&state)).await?;
        tokio::select! {
            () = attend(&sockets.xds, tls, routes, admission, &state) => Ok(()),
            served = admin::serve_on_own_thread(sockets.admin, local, pages, admin::Limits::default()) => {
                served.map_err(Error::Admin)
            }
            () = welcome(sockets.join, join) => Ok(()),
            () = renew_intermediate(issuing) => Ok(()),
            ended = keep_looking(files, &state, &waiting, &again) => ended,
            () = keep_expiring(&state) => Ok(()),
            () = keep_registrations(&state) => Ok(()),
            () = views.bundles.keep_telling(&trust) => Ok(()),
            () = run_mtls_checks(Arc::clone(&state), Arc::clone(&waiting)) => Ok(()),
            () = import_health::ask(Arc::clone(&state)) => Ok(()),
            ended = federation.run() => ended,
        }
    }
}

/// Serves gateways and peers once the first mTLS checks are done, or after [`AT_FIRST`]. Clients reconnect right after
/// a restart: before the checks they would be told that exported slices are gone.
async fn attend(
    listener: &TcpListener,
    tls: Arc<Server>,
    routes: Routes,
    admission: Admission,
    state: &Mutex<State>,
) {
    let checked = async {
        while locked(state).mtls_checks.awaits() {
            tokio::time::sleep(PACE).await;
        }
    };
    let _late = tokio::time::timeout(AT_FIRST, checked).await;
    serve_with(listener, tls, routes, admission).await;
}

/// Reloads the intermediate when it changes, if there is one.
async fn renew_intermediate(issuing: Option<Arc<Issuing>>) {
    match issuing {
        Some(issuing) => issuing.follow().await,
        None => std::future::pending().await,
    }
}

/// Serves clusters that join with a token, if there is a join endpoint.
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

/// Persists VM registrations.
async fn keep_registrations(state: &Mutex<State>) {
    let mut pace = tokio::time::interval(KEEP);
    loop {
        pace.tick().await;
        locked(state).persist_registrations();
    }
}

/// Drops expired slices. Each round walks all slices of unreachable peers: no more often than whole seconds need.
async fn keep_expiring(state: &Mutex<State>) {
    let mut pace = tokio::time::interval(EXPIRE);
    loop {
        pace.tick().await;
        locked(state).expire(Instant::now());
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock()
}
