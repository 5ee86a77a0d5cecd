//! gRPC over mTLS, the server's side: who asks is known from its certificate before any request is read, and what it
//! may take is counted before it is taken. On the same port, if the agent issues certificates, who has none yet
//! presents a token. Not what is served.

mod admission;
mod pool;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::http::Extensions;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use isthmus_certs::{Server, SpiffeId, peer_id};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::server::Acceptor;
use tokio_rustls::rustls::{ServerConfig, ServerConnection};
use tokio_rustls::server::TlsStream;
use tonic::service::Routes;
use tower::ServiceExt as _;

use crate::budget::{Account, Principal, Resource};
use crate::revocation_watch::until_disbelieved;
use pool::ConnectionPool;

pub use admission::{Admission, PrincipalOf};
pub use pool::Slot;

/// From accept to the end of the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// From the end of a handshake to the end of the connection, of those who come and go.
const SHORT_CONNECTION: Duration = Duration::from_secs(10);
/// What a guest may send before it is read.
const TOKEN_CLIENT_WINDOW: u32 = 64 << 10;
const TOKEN_CLIENT_HEADERS: u32 = 8 << 10;
/// Accepting again after it failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Who asks, as its certificate has proven: an extension of every request but those of guests, which have an
/// [`Exported`] and a [`Slot`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller(pub SpiffeId);

/// TLS for clients that have no certificate yet and present a token.
pub trait TokenSessions: Send + Sync {
    /// The protocol (ALPN) that such a client asks for.
    fn alpn(&self) -> &'static [u8];

    /// The settings of its session: the server proves who it is, and asks for no certificate.
    ///
    /// # Errors
    /// The server's own certificate cannot be used.
    fn tls(&self) -> io::Result<Arc<ServerConfig>>;

    /// Adds to each request what binds a token's proof to the session.
    ///
    /// # Errors
    /// The handshake is not complete.
    fn bind(&self, session: &ServerConnection) -> io::Result<Extensions>;
}

/// How clients get certificates here.
pub struct IssuingService {
    /// Whether an identity may renew its certificate, and nothing else.
    pub renews: Arc<dyn Fn(&SpiffeId) -> bool + Send + Sync>,
    /// Sessions of clients that present a token.
    pub tokens: Arc<dyn TokenSessions>,
    /// What such a client may call.
    pub routes: Routes,
}

impl std::fmt::Debug for IssuingService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuingService").finish_non_exhaustive()
    }
}

/// Serves connections until it is dropped.
pub async fn serve(listener: &TcpListener, tls: Arc<Server>, routes: Routes, knows: PrincipalOf) {
    serve_with(listener, tls, routes, Admission::new(knows)).await;
}

/// The same with what everybody may take, and where certificates are issued.
pub async fn serve_with(listener: &TcpListener, tls: Arc<Server>, routes: Routes, admission: Admission) {
    let places = admission.budgets.places();
    let (unproven, token_clients) =
        (ConnectionPool::new(places.unproven), ConnectionPool::new(places.guests));
    let server = Arc::new(GrpcServer { tls, routes, admission, token_clients });
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let shaking = tokio::spawn(Arc::clone(&server).accept(stream));
                unproven.enter(shaking.abort_handle(), Slot::default());
            }
            Err(error) => {
                // Descriptors have run out, or the client went before it was accepted.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

struct GrpcServer {
    tls: Arc<Server>,
    routes: Routes,
    admission: Admission,
    token_clients: ConnectionPool,
}

/// Who a handshake has shown.
enum Proven {
    ByCertificate(Box<TlsStream<TcpStream>>, SpiffeId),
    ByToken(Box<TlsStream<TcpStream>>, Extensions),
}

impl GrpcServer {
    async fn accept(self: Arc<Self>, stream: TcpStream) {
        match timeout(HANDSHAKE, self.handshake(stream)).await {
            Ok(Ok(Proven::ByCertificate(stream, id))) => _ = tokio::spawn(self.answer(*stream, id)),
            Ok(Ok(Proven::ByToken(stream, session))) => {
                let slot = Slot::default();
                let visit = tokio::spawn(Arc::clone(&self).receive(*stream, session, slot.clone()));
                self.token_clients.enter(visit.abort_handle(), slot);
            }
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn handshake(&self, stream: TcpStream) -> io::Result<Proven> {
        stream.set_nodelay(true)?;
        let begun = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let asks_for = |alpn: &[u8]| {
            begun.client_hello().alpn().is_some_and(|mut offered| offered.any(|offer| offer == alpn))
        };
        if let Some(issuing) = &self.admission.issuing
            && asks_for(issuing.tokens.alpn())
        {
            let stream = begun.into_stream(issuing.tokens.tls()?).await?;
            let session = issuing.tokens.bind(stream.get_ref().1)?;
            return Ok(Proven::ByToken(Box::new(stream), session));
        }
        let stream = begun.into_stream(self.tls.config()).await?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let id = peer_id(chain).map_err(io::Error::other)?;
        Ok(Proven::ByCertificate(Box::new(stream), id))
    }

    /// Somebody who has proven who it is.
    async fn answer(self: Arc<Self>, stream: TlsStream<TcpStream>, id: SpiffeId) {
        let account = self.admission.account(&id);
        // What is exceeded is logged where it is counted.
        let Ok(_place) = account.take(Resource::Connections, 1) else { return };
        match account.principal() {
            Principal::Stranger(_) => self.admission.refuse(stream, &id).await,
            Principal::Workload(_) => self.attend(stream, id, account, SHORT_CONNECTION).await,
            Principal::Gateway(_) | Principal::Peer(_) => {
                self.attend(stream, id, account, Duration::MAX).await
            }
        }
    }

    /// Somebody who is served.
    async fn attend(&self, stream: TlsStream<TcpStream>, id: SpiffeId, account: Account, visit: Duration) {
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let disbelieved = until_disbelieved(self.tls.standing(chain));
        let http = admission::connection(&account);
        let caller = Caller(id.clone());
        let service = service_fn(|request: Request<Incoming>| {
            admission::answer(self.routes.clone(), request, caller.clone(), account.clone())
        });
        tokio::select! {
            ended = timeout(visit, http.serve_connection(TokioIo::new(stream), service)) => {
                if let Ok(Err(error)) = ended {
                    tracing::debug!(peer = %id, %error, "a connection ended");
                }
            }
            why = disbelieved => tracing::warn!(peer = %id, %why, "cut off: it is not believed any longer"),
        }
    }

    /// Somebody who may present a token.
    async fn receive(self: Arc<Self>, stream: TlsStream<TcpStream>, session: Extensions, slot: Slot) {
        let Some(issuing) = &self.admission.issuing else { return };
        let service = service_fn(|mut request: Request<Incoming>| {
            request.extensions_mut().extend(session.clone());
            request.extensions_mut().insert(slot.clone());
            issuing.routes.clone().oneshot(request)
        });
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .max_concurrent_streams(1)
            .initial_stream_window_size(TOKEN_CLIENT_WINDOW)
            .initial_connection_window_size(TOKEN_CLIENT_WINDOW)
            .max_header_list_size(TOKEN_CLIENT_HEADERS);
        match timeout(SHORT_CONNECTION, http.serve_connection(TokioIo::new(stream), service)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a guest's connection ended"),
            Err(_) => tracing::debug!("a guest took too long"),
        }
    }
}
