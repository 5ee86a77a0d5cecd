//! Serves the agent's admin port: HTTP for operators, scrapers and VMs that register. [`Pages`] is what it needs of
//! the agent; `answer` has the paths, `isthmus_http` the guard and the limits.

mod answer;
mod socket;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use hyper::StatusCode;
use tokio::net::TcpListener;

use isthmus_certs::SpiffeId;
use isthmus_http as http;
use isthmus_model::admin::agent::{Deregistered, Explanation, Lease, Matrix, Status};
use isthmus_registry::registered::Refused;
use isthmus_registry::registered::registrar::Registrar;

pub use isthmus_http::Limits;

/// What is asked of a host.
#[derive(Clone, Debug)]
pub struct ExplainQuestion {
    /// The host, or another name of it.
    pub host: String,
    /// A caller of it, if the question names one.
    pub caller: Option<Asker>,
}

/// A caller in a question.
#[derive(Clone, Debug)]
pub struct Asker {
    /// Its identity; none: one that no gateway sees.
    pub identity: Option<SpiffeId>,
    /// Its address.
    pub source: IpAddr,
}

/// The pages of the admin port. Called on threads that may wait for a lock, except [`Pages::ready`].
pub trait Pages: Send + Sync + 'static {
    /// The status of the agent.
    fn status(&self) -> Status;

    /// What the agent knows of a host, exports of it and imports of it, and why not more; and what its rules say about a
    /// caller.
    ///
    /// # Errors
    /// The host name is not valid.
    fn explain(&self, question: &ExplainQuestion) -> Result<Explanation, String>;

    /// What the cluster's gateways report.
    fn matrix(&self) -> Matrix;

    /// The registrar that holds a token.
    fn holder(&self, token: &str) -> Option<Registrar>;

    /// Registers a VM: the body is a registration. `by` has been authenticated.
    ///
    /// # Errors
    /// Why the registration is refused.
    fn register(&self, body: &[u8], by: &Registrar) -> Result<Lease, Refusal>;

    /// Renews a VM's registration: the body names its lease.
    ///
    /// # Errors
    /// Why the heartbeat is refused.
    fn heartbeat(&self, body: &[u8]) -> Result<Lease, Refusal>;

    /// Ends a VM's registration: the body names its lease.
    ///
    /// # Errors
    /// Why the registration does not end.
    fn deregister(&self, body: &[u8]) -> Result<Deregistered, Refusal>;

    /// Whether the agent has read its registry and serves. Called on the thread that answers health checks: it must
    /// not wait for anything, a lock included.
    fn ready(&self) -> bool;

    /// All metrics, in Prometheus' text format.
    fn metrics(&self) -> String;
}

/// Why a VM's request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 4xx or 5xx.
    pub status: StatusCode,
    /// The problem and its remedy.
    pub why: String,
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Refusal {
        let status = match refused {
            Refused::Wrong(_) => StatusCode::BAD_REQUEST,
            Refused::Unknown => StatusCode::NOT_FOUND,
            Refused::Taken { .. } | Refused::Anothers(_) | Refused::Conflict(_) => StatusCode::CONFLICT,
            Refused::FullShare(..) => StatusCode::TOO_MANY_REQUESTS,
            Refused::Full(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Refusal { status, why: refused.to_string() }
    }
}

/// Serves the admin port until dropped.
///
/// # Errors
/// The listener has no address.
pub async fn serve(listener: TcpListener, pages: Arc<dyn Pages>, limits: Limits) -> io::Result<()> {
    let own = listener.local_addr()?;
    let service = Arc::new(answer::AdminService::new(pages, limits.body));
    let answer = move |request, ()| {
        let service = Arc::clone(&service);
        async move { service.answer(request, answer::Caller::At(own)).await }
    };
    http::serve(listener, limits, answer).await;
    Ok(())
}

/// The Unix socket through which local users read the pages and register VMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// The socket's path.
    pub path: PathBuf,
    /// User IDs that may use it, besides root and the agent's own.
    pub users: BTreeSet<u32>,
}

/// Serves the same pages on a Unix socket until dropped. Retries while the socket cannot be bound.
pub async fn serve_local(local: Local, pages: Arc<dyn Pages>, limits: Limits) {
    let listener = socket::bound(local).await;
    let service = Arc::new(answer::AdminService::new(pages, limits.body));
    let answer = move |request, user| {
        let service = Arc::clone(&service);
        async move { service.answer(request, answer::Caller::User(user)).await }
    };
    http::serve(listener, limits, answer).await;
}

/// Serves both on a thread of their own, so that health checks are answered whatever the agent is busy with.
///
/// # Errors
/// The thread cannot start, or the listener has no address.
pub async fn serve_on_own_thread(
    listener: TcpListener,
    local: Option<Local>,
    pages: Arc<dyn Pages>,
    limits: Limits,
) -> io::Result<()> {
    let listener = listener.into_std()?;
    http::thread::run("admin", move || async move {
        if let Some(local) = local {
            tokio::spawn(serve_local(local, Arc::clone(&pages), limits));
        }
        serve(TcpListener::from_std(listener)?, pages, limits).await
    })
    .await
}
