//! The HTTP server for the admin, metrics and health pages of both programs, with limits on clients and time, and a
//! guard against foreign web pages ([`guard`]). The programs define the pages.

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

/// The most bytes of a request line with headers, and the read buffer of a body.
const BUFFER: usize = 32 << 10;
/// Pause after a failed accept: descriptors have run out.
const PAUSE: Duration = Duration::from_millis(200);

/// The limits on clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Concurrent clients; a further client replaces the oldest.
    pub clients: usize,
    /// Timeout of the headers of each request, from accept or from the previous request.
    pub headers: Duration,
    /// Timeout of the body, after the headers.
    pub body: Duration,
    /// Longest connection, whatever it does.
    pub longest: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        let seconds = Duration::from_secs;
        Limits { clients: 64, headers: seconds(5), body: seconds(5), longest: seconds(60) }
    }
}

/// A source of client connections.
pub trait Listener: Send {
    /// The connection of a client.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// The attributes of a client that the listener knows.
    type Client: Clone + Send + Sync + 'static;

    /// Accepts the next client; none for a client that is refused.
    fn accept(&self) -> impl Future<Output = io::Result<Option<(Self::Stream, Self::Client)>>> + Send;
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;
    type Client = ();

    async fn accept(&self) -> io::Result<Option<(Self::Stream, ())>> {
        TcpListener::accept(self).await.map(|(stream, _)| Some((stream, ())))
    }
}

/// Serves until the future is dropped. A failing client affects no other, and silent clients do not delay health
/// checks.
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
                tracing::debug!(%error, "connection of an HTTP client ended with an error");
            }
        };
        clients.push_back(tokio::spawn(serving).abort_handle());
    }
}
