//! The agent's admin port: HTTP for people, scrapers and VMs that announce themselves. Here is what it asks of the
//! agent, and how many clients it has at once; which path answers what is in `answer`, who may ask in `who`.

mod answer;
mod who;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::registry::registered::Refused;

/// Bytes of a request's line and headers, and of what is read ahead of its body.
const BUFFER: usize = 32 << 10;
/// After accept failed for want of descriptors.
const PAUSE: Duration = Duration::from_millis(200);

/// What the admin port shows, and what it passes on. Called on the runtime: quick, and never waiting for others.
pub trait Pages: Send + Sync + 'static {
    /// What the agent is and does.
    fn status(&self) -> Value;

    /// What would be told about a host, and why.
    ///
    /// # Errors
    /// What is wrong with the question.
    fn explain(&self, host: &str) -> Result<Value, String>;

    /// A VM announces itself: the body is a registration.
    ///
    /// # Errors
    /// Why it is not taken.
    fn register(&self, body: &[u8]) -> Result<Value, Refusal>;

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

    /// Whether the agent serves what its registry has.
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
            Refused::Taken { .. } | Refused::Conflict(_) => StatusCode::CONFLICT,
            Refused::Full => StatusCode::SERVICE_UNAVAILABLE,
        };
        Refusal { status, why: refused.to_string() }
    }
}

/// What clients may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Clients at once; where more come, the one that came first goes.
    pub clients: usize,
    /// From accept to whole headers, and again for each request of a kept connection.
    pub headers: Duration,
    /// From headers to a whole body.
    pub body: Duration,
    /// One connection, whatever it does.
    pub longest: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        let seconds = Duration::from_secs;
        Limits { clients: 64, headers: seconds(5), body: seconds(5), longest: seconds(60) }
    }
}

/// Serves until it is dropped. A client that fails is its own affair; clients that say nothing do not keep a
/// health check waiting.
///
/// # Errors
/// The listener has no address.
pub async fn serve(listener: TcpListener, pages: Arc<dyn Pages>, limits: Limits) -> io::Result<()> {
    let own = listener.local_addr()?;
    let desk = Arc::new(answer::Desk { pages, own, body: limits.body });
    let mut clients: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        clients.retain(|client| !client.is_finished());
        if clients.len() >= limits.clients
            && let Some(first) = clients.pop_front()
        {
            first.abort();
        }
        clients.push_back(tokio::spawn(one(client, Arc::clone(&desk), limits)).abort_handle());
    }
}

async fn one(client: TcpStream, desk: Arc<answer::Desk>, limits: Limits) {
    let service = service_fn(move |request| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, Infallible>(desk.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.headers)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(client), service);
    if let Ok(Err(error)) = timeout(limits.longest, connection).await {
        tracing::debug!(%error, "admin client");
    }
}
