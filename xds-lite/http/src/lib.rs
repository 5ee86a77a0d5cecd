//! The HTTP server of both programs' admin, metrics and health pages: how many clients, for how long, and who may ask
//! ([`guard`]). Not what a path answers; that is the program's own.

pub mod guard;
pub mod page;
pub mod shared;
pub mod thread;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use page::Page;

/// Bytes of a request's line and headers, and of what is read ahead of its body.
const BUFFER: usize = 32 << 10;
/// After accept failed for want of descriptors.
const PAUSE: Duration = Duration::from_millis(200);

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

/// Where clients come from.
pub trait Listener: Send {
    /// A client's connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// What the listener knows of a client.
    type Client: Clone + Send + Sync + 'static;

    /// The next client; none for one that may not ask at all.
    fn accept(&self) -> impl Future<Output = io::Result<Option<(Self::Stream, Self::Client)>>> + Send;
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;
    type Client = ();

    async fn accept(&self) -> io::Result<Option<(Self::Stream, ())>> {
        TcpListener::accept(self).await.map(|(stream, _)| Some((stream, ())))
    }
}

/// Serves until it is dropped. A client that fails is its own affair; clients that say nothing do not keep a
/// health check waiting.
pub async fn serve<L, A, F>(listener: L, limits: Limits, answer: A)
where
    L: Listener,
    A: Fn(Request<Incoming>, L::Client) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Page> + Send + 'static,
{
    let mut clients: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(Some(accepted)) => accepted,
            Ok(None) => continue,
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        clients.retain(|client| !client.is_finished());
        if clients.len() >= limits.clients
            && let Some(first) = clients.pop_front()
        {
            first.abort();
        }
        let answer = answer.clone();
        let serving = async move {
            let service = service_fn(move |request| {
                let page = answer(request, client.clone());
                async { Ok::<_, Infallible>(page.await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits.headers)
                .max_buf_size(BUFFER)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = timeout(limits.longest, connection).await {
                tracing::debug!(%error, "HTTP client");
            }
        };
        clients.push_back(tokio::spawn(serving).abort_handle());
    }
}
