//! gRPC over mTLS, the server's side: who asks is known from its certificate before any request is read.
//! Not what is served.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use isthmus_certs::{Server, SpiffeId, peer_id};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::service::Routes;
use tower::ServiceExt as _;

/// From accept to the end of the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections that have not proven who they are, at once; each takes some 20 KiB.
const UNPROVEN: usize = 256;
/// Connections that have, at once, of those who are served here.
const KNOWN: usize = 4_096;
/// The same of all others: they are told why they are not, and take no place of those who are.
const STRANGERS: usize = 64;
/// Accepting again after it failed.
const PAUSE: Duration = Duration::from_millis(100);
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer has one stream a kind of discovery, and short calls.
const STREAMS: u32 = 32;

/// Who asks, as its certificate has proven: an extension of every request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker(pub SpiffeId);

/// Who is served here.
pub type Knows = Arc<dyn Fn(&SpiffeId) -> bool + Send + Sync>;

/// Serves connections until it is dropped.
pub async fn serve(listener: &TcpListener, tls: Arc<Server>, routes: Routes, knows: Knows) {
    let mut unproven: VecDeque<AbortHandle> = VecDeque::new();
    let places =
        Arc::new(Places { known: Semaphore::new(KNOWN), strangers: Semaphore::new(STRANGERS), knows });
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Descriptors have run out, or the client went before it was accepted.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        unproven.retain(|one| !one.is_finished());
        // Who waits to be let in does not keep others out: the one that came first goes.
        if unproven.len() >= UNPROVEN
            && let Some(first) = unproven.pop_front()
        {
            first.abort();
        }
        let (tls, routes, places) = (Arc::clone(&tls), routes.clone(), Arc::clone(&places));
        let proving = tokio::spawn(async move {
            match timeout(HANDSHAKE, shake(stream, &tls)).await {
                Ok(Ok((stream, id))) => _ = tokio::spawn(answer(stream, id, routes, places)),
                Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                Err(_) => tracing::debug!("a TLS handshake took too long"),
            }
        });
        unproven.push_back(proving.abort_handle());
    }
}

/// Places for those who have proven who they are.
struct Places {
    known: Semaphore,
    strangers: Semaphore,
    knows: Knows,
}

async fn shake(stream: TcpStream, tls: &Server) -> io::Result<(TlsStream<TcpStream>, SpiffeId)> {
    stream.set_nodelay(true)?;
    let stream = TlsAcceptor::from(tls.config()).accept(stream).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let id = peer_id(chain).map_err(io::Error::other)?;
    Ok((stream, id))
}

async fn answer(stream: TlsStream<TcpStream>, id: SpiffeId, routes: Routes, places: Arc<Places>) {
    let pool = if (places.knows)(&id) { &places.known } else { &places.strangers };
    let Ok(_permit) = pool.try_acquire() else {
        return tracing::warn!(peer = %id, "refused: too many connections");
    };
    let asker = Asker(id.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(asker.clone());
        routes.clone().oneshot(request)
    });
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(peer = %id, %error, "a connection ended");
    }
}
