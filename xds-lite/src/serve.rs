//! gRPC over mTLS, the server's side: who asks is known from its certificate before any request is read. On the
//! same port, if the agent issues certificates, who has none yet presents a token. Not what is served.

mod room;

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
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::server::Acceptor;
use tokio_rustls::server::TlsStream;
use tonic::service::Routes;
use tower::ServiceExt as _;

use crate::join::first::{ALPN as FIRST, Desk, Exported};
use room::Room;

/// From accept to the end of the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections that have not proven who they are, at once; each takes some 20 KiB.
const UNPROVEN: usize = 256;
/// Connections that have, at once, of those who are served here.
const KNOWN: usize = 4_096;
/// The same of those who come for a certificate and go.
const BRIEF: usize = 256;
/// The same of all others: they are told why they are not, and take no place of those who are.
const STRANGERS: usize = 64;
/// Connections without a certificate, at once: each has one request, of a token.
const GUESTS: usize = 64;
/// From the end of a handshake to the end of the connection, of those who come and go.
const VISIT: Duration = Duration::from_secs(10);
/// What a guest may send before it is read.
const GUEST_WINDOW: u32 = 64 << 10;
const GUEST_HEADERS: u32 = 8 << 10;
/// Accepting again after it failed.
const PAUSE: Duration = Duration::from_millis(100);
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer has one stream a kind of discovery, and short calls.
const STREAMS: u32 = 32;

/// Who asks, as its certificate has proven: an extension of every request but those of guests, which have an
/// [`Exported`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker(pub SpiffeId);

/// Who is served here.
pub type Knows = Arc<dyn Fn(&SpiffeId) -> bool + Send + Sync>;

/// Those who come for a certificate.
pub struct Visitors {
    /// Who renews one here, and may do nothing else.
    pub renews: Knows,
    /// Where tokens are presented.
    pub desk: Arc<Desk>,
    /// What is there for who presents one.
    pub routes: Routes,
}

impl std::fmt::Debug for Visitors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Visitors").field("desk", &self.desk).finish_non_exhaustive()
    }
}

/// Serves connections until it is dropped.
pub async fn serve(listener: &TcpListener, tls: Arc<Server>, routes: Routes, knows: Knows) {
    serve_with(listener, tls, routes, knows, None).await;
}

/// The same, where certificates are issued.
pub async fn serve_with(
    listener: &TcpListener,
    tls: Arc<Server>,
    routes: Routes,
    knows: Knows,
    visitors: Option<Visitors>,
) {
    let unproven = Room::new(UNPROVEN);
    let places = [KNOWN, BRIEF, STRANGERS].map(Semaphore::new);
    let house = Arc::new(House { tls, routes, knows, visitors, places, guests: Room::new(GUESTS) });
    loop {
        match listener.accept().await {
            Ok((stream, _)) => unproven.enter(tokio::spawn(Arc::clone(&house).shake(stream)).abort_handle()),
            Err(error) => {
                // Descriptors have run out, or the client went before it was accepted.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

struct House {
    tls: Arc<Server>,
    routes: Routes,
    knows: Knows,
    visitors: Option<Visitors>,
    /// For those who are served, who come and go, and who are strangers.
    places: [Semaphore; 3],
    guests: Room,
}

/// Who a handshake has shown.
enum Shown {
    Known(Box<TlsStream<TcpStream>>, SpiffeId),
    Guest(Box<TlsStream<TcpStream>>, Exported),
}

impl House {
    async fn shake(self: Arc<Self>, stream: TcpStream) {
        match timeout(HANDSHAKE, self.shown(stream)).await {
            Ok(Ok(Shown::Known(stream, id))) => _ = tokio::spawn(self.answer(*stream, id)),
            Ok(Ok(Shown::Guest(stream, session))) => {
                let visit = tokio::spawn(Arc::clone(&self).receive(*stream, session));
                self.guests.enter(visit.abort_handle());
            }
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn shown(&self, stream: TcpStream) -> io::Result<Shown> {
        stream.set_nodelay(true)?;
        let begun = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let is_guest = begun.client_hello().alpn().is_some_and(|mut offered| offered.any(|one| one == FIRST));
        if let Some(visitors) = self.visitors.as_ref().filter(|_| is_guest) {
            let stream = begun.into_stream(visitors.desk.tls().map_err(io::Error::other)?).await?;
            let session = Exported::of(stream.get_ref().1).map_err(io::Error::other)?;
            return Ok(Shown::Guest(Box::new(stream), session));
        }
        let stream = begun.into_stream(self.tls.config()).await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let id = peer_id(chain).map_err(io::Error::other)?;
        Ok(Shown::Known(Box::new(stream), id))
    }

    /// Somebody who has proven who it is.
    async fn answer(self: Arc<Self>, stream: TlsStream<TcpStream>, id: SpiffeId) {
        let [known, brief, strangers] = &self.places;
        let renews = |visitors: &Visitors| (visitors.renews)(&id);
        let (pool, visit) = match () {
            () if (self.knows)(&id) => (known, None),
            () if self.visitors.as_ref().is_some_and(renews) => (brief, Some(VISIT)),
            () => (strangers, None),
        };
        let Ok(_permit) = pool.try_acquire() else {
            return tracing::warn!(peer = %id, "refused: too many connections");
        };
        let asker = Asker(id.clone());
        let service = service_fn(|mut request: Request<Incoming>| {
            request.extensions_mut().insert(asker.clone());
            self.routes.clone().oneshot(request)
        });
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .max_concurrent_streams(STREAMS);
        let connection = http.serve_connection(TokioIo::new(stream), service);
        let ended = match visit {
            None => connection.await,
            Some(visit) => timeout(visit, connection).await.unwrap_or(Ok(())),
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %id, %error, "a connection ended");
        }
    }

    /// Somebody who may present a token.
    async fn receive(self: Arc<Self>, stream: TlsStream<TcpStream>, session: Exported) {
        let Some(visitors) = &self.visitors else { return };
        let service = service_fn(|mut request: Request<Incoming>| {
            request.extensions_mut().insert(session.clone());
            visitors.routes.clone().oneshot(request)
        });
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .max_concurrent_streams(1)
            .initial_stream_window_size(GUEST_WINDOW)
            .initial_connection_window_size(GUEST_WINDOW)
            .max_header_list_size(GUEST_HEADERS);
        match timeout(VISIT, http.serve_connection(TokioIo::new(stream), service)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a guest's connection ended"),
            Err(_) => tracing::debug!("a guest took too long"),
        }
    }
}
