//! Runs the agent of a cluster: watches the registry, follows the agents of other clusters, and serves xDS to the
//! cluster's gateways and to those agents. What it knows has four owners: `own_services`, `peers`, `names` and
//! `state_directory`; `views` has what each client is served. An owner calls the next one in this order under its own
//! locks, never an earlier one; the views come last. The head of each says what its locks guard.

mod acknowledgements;
mod bundles;
#[cfg(test)]
mod busy_tests;
pub mod config;
mod dns_server;
mod error;
mod explain;
mod federation;
mod import_health;
pub mod issuing;
pub mod join_config;
mod local_bindings;
mod metrics;
mod mtls_check;
mod names;
mod own_services;
mod pages;
mod peer;
mod peer_bundle;
mod peer_views;
mod peers;
mod persistence;
mod registry_watch;
mod reports;
mod state_directory;
mod traffic;
mod views;

use std::io;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use isthmus_certs::{Peer, Server, SpiffeId, Trust};
use isthmus_store::{Embedded, Source};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tonic::service::Routes;

use crate::admin;
use isthmus_ads::service::Discovery;
use isthmus_envoy::export::Adapter;
use isthmus_grpc::serve::{Admission, serve_with};
use isthmus_model::binding::Granted;
use isthmus_registry::files::Files;
use isthmus_trust::join::{self, Tokens};

use acknowledgements::Acknowledgements;
use bundles::Bundles;
use config::Settings;
use dns_server::DnsServer;
pub use error::Error;
use federation::Federation;
use issuing::Issuing;
use join_config::context;
use local_bindings::LocalBindings;
use mtls_check::run_mtls_checks;
use names::NameRegistry;
use own_services::OwnServices;
use pages::AdminPages;
use peer::peer_access;
use peers::Peers;
use registry_watch::{keep_polling, poll};
use reports::Reports;
use state_directory::{Restored, StateDirectory};
use views::Views;

/// Longest wait for the first mTLS checks before clients are served: less than a gateway waits for a handshake.
const AT_FIRST: Duration = Duration::from_secs(3);
/// How often expired slices are dropped.
const EXPIRE: Duration = Duration::from_secs(1);

/// An agent that has bound its sockets and does not run yet.
pub struct Agent {
    settings: Arc<Settings>,
    sockets: Sockets,
    tls: Arc<Server>,
    trust: Trust,
    owners: Owners,
    sources: Option<[Arc<dyn Source>; 2]>,
    issuing: Option<Arc<Issuing>>,
    dns: Option<DnsServer>,
    /// Its configuration file, if edits are followed.
    file: Option<PathBuf>,
}

/// Who owns what the agent knows.
#[derive(Clone)]
struct Owners {
    own: Arc<OwnServices>,
    peers: Arc<Peers>,
    directory: Arc<StateDirectory>,
    views: Arc<Views>,
    names: Arc<NameRegistry>,
    /// What gateways report; it calls `own`, and nobody calls it under a lock.
    reports: Arc<Reports>,
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
        let gateways: Result<Vec<_>, _> = settings
            .gateways
            .iter()
            .map(|gateway| SpiffeId::gateway(domain, settings.cluster.as_str(), &gateway.name))
            .collect();
        let gateways = gateways?;
        let own = join::Party { cluster: settings.cluster.clone(), trust_domain: domain.clone() };
        let opened = match settings.state.clone() {
            Some(folder) => {
                let own = own.clone();
                let open = move || {
                    let store = join::store(&folder);
                    (store.clone(), Acknowledgements::open(store, &folder, &own))
                };
                Some(blocking(open).await)
            }
            None => None,
        };
        let (store, acknowledged) = opened.unzip();
        let bundles = Bundles::new(own, acknowledged);
        if let Some(caller) = settings.callers.iter().find(|one| one.identity.trust_domain() != domain) {
            return Err(Error::Caller { identity: caller.identity.clone(), domain: domain.clone() });
        }
        let granted = gateways.iter().zip(&settings.gateways);
        let granted = granted.map(|(id, gateway)| Granted::new(id.clone(), gateway.identities.clone()));
        let bindings = LocalBindings::new(&settings.callers, granted.collect::<Result<_, _>>()?);
        let gateways = gateways.into_iter().collect();
        let views = Views::new(settings.cluster.clone(), gateways, adapter(&settings), (bundles, bindings))
            .with_traffic(settings.traffic.rules.clone());
        for peer in &settings.peers {
            views.add(&peer.domain, &peer.cluster, peer_access(&settings, peer));
        }
        let tokens = store.clone().zip(settings.state.as_deref());
        let tokens = tokens.map(|(store, state)| Tokens::new(Arc::new(store), state));
        let issuing = Issuing::open(&settings, &trust, tokens)?;
        let settings = Arc::new(settings);
        let (known, views) = (Arc::clone(&settings), Arc::new(views));
        let owners = blocking(move || Owners::open(&known, views, store)).await;
        let sources = owners.directory.begin(&owners.own, &owners.peers);
        let join = match &settings.join {
            Some(join) => Some(listen(join.address).await?),
            None => None,
        };
        let sockets =
            Sockets { xds: listen(settings.address).await?, admin: listen(settings.admin).await?, join };
        let dns =
            settings.dns.as_ref().map(|dns| DnsServer::bind(&settings, dns, &owners.names)).transpose()?;
        let tls = Arc::new(Server::new(trust.clone(), Peer::Trusted, &[b"h2"])?);
        Ok(Agent { settings, sockets, tls, trust, owners, sources, issuing, dns, file: None })
    }

    /// Follows edits of the file that the settings are from: `traffic` is live.
    #[must_use]
    pub fn following(self, file: PathBuf) -> Agent {
        Agent { file: Some(file), ..self }
    }

    /// The bound addresses of the listeners `xds`, `admin`, `join` and `dns`.
    ///
    /// # Errors
    /// The kernel cannot tell an address.
    pub fn addresses(&self) -> io::Result<Vec<(&'static str, SocketAddr)>> {
        let Sockets { xds, admin, join } = &self.sockets;
        let all = [("xds", Some(xds)), ("admin", Some(admin)), ("join", join.as_ref())];
        let tcp = all.into_iter().filter_map(|(name, socket)| Some((name, socket?.local_addr())));
        let dns = self.dns.iter().map(|dns| ("dns", dns.sockets().local_addr()));
        tcp.chain(dns).map(|(name, address)| Ok((name, address?))).collect()
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
        let Agent { settings, sockets, tls, trust, owners, sources: _sources, issuing, dns, file } = self;
        let Sockets { xds, admin, join } = sockets;
        let _files = trust.watch(settings.trust.clone()).map_err(Error::Thread)?;
        let budgets = Arc::new(settings.budgets());
        let is_ready = Arc::new(AtomicBool::new(false));
        let pages = Arc::new(AdminPages {
            budgets: Arc::clone(&budgets),
            settings: Arc::clone(&settings),
            owners: owners.clone(),
            is_ready: Arc::clone(&is_ready),
            issuing: issuing.clone(),
            trust: trust.clone(),
            dns: dns.as_ref().map(DnsServer::server),
        });
        owners.views.bundles.publish(&trust.current());
        let mut routes = Routes::new(Discovery::service(Arc::clone(&owners.views)))
            .add_service(isthmus_report::server::Service::new(Arc::clone(&owners.reports)));
        let issuing_service = issuing.as_ref().map(|issuing| {
            let own = Arc::clone(&owners.own);
            let certificates = issuing.certificates(Arc::new(move |id| own.names_of_doors(id)));
            routes = std::mem::take(&mut routes).add_service(Arc::clone(&certificates).service());
            issuing.service(&certificates)
        });
        let members = Arc::clone(&owners.views);
        let knows = Arc::new(move |id: &SpiffeId| members.principal(id));
        let admission = Admission::new(knows).with(budgets, issuing_service);
        let context = join.as_ref().and_then(|_| owners.join_context(&settings, &trust)).transpose()?;
        let serving = async {
            // The whole registry is read before any client is served; health checks and pages are answered meanwhile.
            let files = poll(registry_files(&settings, &owners.own), &owners.own).await;
            is_ready.store(true, Relaxed);
            let federation = Federation::start(Arc::clone(&settings), trust.clone(), owners.clone()).await;
            let names = Arc::clone(&owners.names);
            blocking(move || names.forget_before()).await;
            tokio::select! {
                () = attend(&xds, tls, routes, admission, &owners.own) => Ok(()),
                () = welcome(join, context) => Ok(()),
                () = renew_intermediate(issuing) => Ok(()),
                () = keep_polling(files, &owners.own, &again) => Ok(()),
                () = keep_expiring(&owners.peers) => Ok(()),
                () = owners.peers.keep_publishing() => Ok(()),
                () = owners.views.bundles.keep_telling(&trust) => Ok(()),
                () = owners.views.bindings.keep_publishing(owners.names.subscribe(), owners.views.complete()) => Ok(()),
                () = Arc::clone(&owners.reports).keep_folding(Arc::clone(&owners.own)) => Ok(()),
                () = run_mtls_checks(Arc::clone(&owners.own)) => Ok(()),
                () = import_health::ask(Arc::clone(&owners.peers)) => Ok(()),
                () = traffic::run(file, Arc::clone(&settings), owners.clone()) => Ok(()),
                ended = federation.run() => ended,
            }
        };
        tokio::select! {
            served = admin::serve_on_own_thread(admin, settings.local_socket(), pages, admin::Limits::default()) => {
                served.map_err(Error::Admin)
            }
            () = owners.names.keep_allotting() => Ok(()),
            served = serve_dns(dns) => served,
            ended = serving => ended,
        }
    }
}

impl Owners {
    /// What joining clusters are told; none without a state directory.
    fn join_context(&self, settings: &Settings, trust: &Trust) -> Option<Result<join::Context, Error>> {
        let store = self.directory.trust_store().cloned()?;
        Some(context(settings, trust.clone(), Arc::new(store)))
    }

    /// Restores what was persisted. Reads files.
    fn open(settings: &Arc<Settings>, views: Arc<Views>, trust_store: Option<Embedded>) -> Owners {
        let (directory, restored) = StateDirectory::open(settings, trust_store);
        let Restored { slices, registrations, has_registrations } = restored;
        let directory = Arc::new(directory);
        let names = Arc::new(NameRegistry::open(settings));
        let peers = Peers::new(
            Arc::clone(settings),
            Arc::clone(&views),
            Arc::clone(&directory),
            Arc::clone(&names),
            slices.imports,
        );
        let peers = Arc::new(peers);
        let own = OwnServices::new(
            Arc::clone(settings),
            Arc::clone(&views),
            Arc::clone(&peers),
            Arc::clone(&directory),
            Arc::clone(&names),
            slices.own,
        );
        settings.peers.iter().for_each(|peer| peers.add(peer));
        own.restore_registrations(registrations, Instant::now());
        if has_registrations {
            own.set_registrations_known(Instant::now());
        }
        // Names of before a restart are answered at once.
        names.allot(SystemTime::now());
        let reports = Arc::new(Reports::new(Arc::clone(&views)));
        Owners { own: Arc::new(own), peers, directory, views, names, reports }
    }
}

/// The registry's files; their events are news for the own services.
fn registry_files(settings: &Settings, own: &OwnServices) -> Files {
    let news = Arc::clone(&own.news);
    Files::new(settings.registry.clone()).on_event(move || news.notify_one())
}

/// Serves gateways and peers once the first mTLS checks are done, or after [`AT_FIRST`]. Clients reconnect right after
/// a restart: before the checks they would be told that exported slices are gone.
async fn attend(
    listener: &TcpListener,
    tls: Arc<Server>,
    routes: Routes,
    admission: Admission,
    own: &OwnServices,
) {
    let mut awaits = own.awaits();
    // Without its guard, which would lock the value for as long as the server runs.
    let checked = async { awaits.wait_for(|awaits| !awaits).await.is_ok() };
    let _late = tokio::time::timeout(AT_FIRST, checked).await;
    serve_with(listener, tls, routes, admission).await;
}

/// Answers DNS questions, if there is a server for them.
async fn serve_dns(dns: Option<DnsServer>) -> Result<(), Error> {
    match dns {
        Some(dns) => dns.run().await,
        None => std::future::pending().await,
    }
}

/// Reloads the intermediate when it changes, if there is one.
async fn renew_intermediate(issuing: Option<Arc<Issuing>>) {
    match issuing {
        Some(issuing) => issuing.run().await,
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

/// Drops expired slices. Whole seconds are enough: `stale` has no finer unit.
async fn keep_expiring(peers: &Arc<Peers>) {
    let mut pace = tokio::time::interval(EXPIRE);
    loop {
        pace.tick().await;
        let peers = Arc::clone(peers);
        blocking(move || peers.expire(Instant::now())).await;
    }
}

/// Runs work that takes long, or waits for a disk or a change, on a thread that may; a panic of it is one of the caller.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let span = tracing::Span::current();
    match spawn_blocking(move || span.in_scope(work)).await {
        Ok(done) => done,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime ends, and the caller with it.
            Err(_) => std::future::pending().await,
        },
    }
}
