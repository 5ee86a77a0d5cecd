//! The agent's admin port: HTTP for people, scrapers and VMs that announce themselves. Here is what it asks of the
//! agent; which path answers what is in `answer`, who may ask and how many at once in `http`.

mod answer;
mod socket;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use hyper::StatusCode;
use serde_json::Value;
use tokio::net::TcpListener;

use isthmus_http as http;
use isthmus_registry::registered::Refused;
use isthmus_registry::registered::registrar::Registrar;

pub use isthmus_http::Limits;

/// What the admin port shows, and what it passes on. Called on threads where waiting for a lock delays nobody else,
/// but for [`Pages::ready`].
pub trait Pages: Send + Sync + 'static {
    /// What the agent is and does.
    fn status(&self) -> Value;

    /// What would be told about a host, and why.
    ///
    /// # Errors
    /// What is wrong with the question.
    fn explain(&self, host: &str) -> Result<Value, String>;

    /// Whose token this is.
    fn holder(&self, token: &str) -> Option<Registrar>;

    /// A VM announces itself: the body is a registration. Who sent it has proven who it is.
    ///
    /// # Errors
    /// Why it is not taken.
    fn register(&self, body: &[u8], by: &Registrar) -> Result<Value, Refusal>;

    /// A VM is still there: the body names its lease.
    ///
    /// # Errors
    /// Why it is not heard.
    fn heartbeat(&self, body: &[u8]) -> Result<Value, Refusal>;

    /// A VM goes: the body names its lease.
    ///
    /// # Errors
    /// Why it does not end.
    fn deregister(&self, body: &[u8]) -> Result<Value, Refusal>;

    /// Whether the agent serves what its registry has. Called on the thread that answers health checks: it must not
    /// wait for anything, a lock included.
    fn ready(&self) -> bool;

    /// All metrics, in Prometheus' text format.
    fn metrics(&self) -> String;
}

/// Why a word of a VM is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 4xx or 5xx.
    pub status: StatusCode,
    /// What is wrong, and what would be right.
    pub why: String,
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Refusal {
        let status = match refused {
            Refused::Wrong(_) => StatusCode::BAD_REQUEST,
            Refused::Unknown => StatusCode::NOT_FOUND,
            Refused::Taken { .. } | Refused::Anothers(_) | Refused::Conflict(_) => StatusCode::CONFLICT,
            Refused::FullShare(_) => StatusCode::TOO_MANY_REQUESTS,
            Refused::Full => StatusCode::SERVICE_UNAVAILABLE,
        };
        Refusal { status, why: refused.to_string() }
    }
}

/// Serves until it is dropped.
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

/// A Unix socket by which processes of some users ask and register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Where it is put.
    pub path: PathBuf,
    /// Who may use it, besides root and the own user.
    pub users: BTreeSet<u32>,
}

/// Serves the same pages by a Unix socket, until it is dropped. One that cannot be put there is tried again.
pub async fn serve_local(local: Local, pages: Arc<dyn Pages>, limits: Limits) {
    let listener = socket::bound(local).await;
    let service = Arc::new(answer::AdminService::new(pages, limits.body));
    let answer = move |request, user| {
        let service = Arc::clone(&service);
        async move { service.answer(request, answer::Caller::User(user)).await }
    };
    http::serve(listener, limits, answer).await;
}

/// Both on a thread of their own, so that health checks are answered whatever the agent is busy with.
///
/// # Errors
/// The system gives no thread, or the listener has no address.
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
