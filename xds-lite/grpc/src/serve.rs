//! Serves gRPC over mTLS: the caller is known from its certificate before any request is read, and its use is counted
//! before it costs anything. If the agent issues certificates, clients without one present a token on the same port.

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
use crate::revocation_watch::until_distrusted;
use pool::ConnectionPool;

pub use admission::{Admission, PrincipalOf};
pub use pool::Slot;

/// From accept to the end of the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Longest connection, after the handshake, of workloads and token clients.
const SHORT_CONNECTION: Duration = Duration::from_secs(10);
/// Flow-control window of a token client.
const TOKEN_CLIENT_WINDOW: u32 = 64 << 10;
const TOKEN_CLIENT_HEADERS: u32 = 8 << 10;
/// Pause after a failed accept.
const PAUSE: Duration = Duration::from_millis(100);

/// The identity of the caller, as proven by its certificate: an extension of every request, except those of token
/// clients, which have the extensions of [`TokenSessions::bind`] and a [`Slot`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller(pub SpiffeId);

/// TLS sessions of clients that have no certificate yet and present a token.
pub trait TokenSessions: Send + Sync {
    /// The protocol (ALPN) of such a client.
    fn alpn(&self) -> &'static [u8];

    /// The TLS configuration: the server proves its identity and does not ask for a certificate.
    ///
    /// # Errors
    /// The server's own certificate cannot be used.
    fn tls(&self) -> io::Result<Arc<ServerConfig>>;

    /// The extensions for each request that bind the proof of a token to the session.
    ///
    /// # Errors
    /// The handshake is not complete.
    fn bind(&self, session: &ServerConnection) -> io::Result<Extensions>;
}

/// How clients get certificates from this agent.
pub struct IssuingService {
    /// Whether an identity may renew its certificate (and do nothing else).
    pub renews: Arc<dyn Fn(&SpiffeId) -> bool + Send + Sync>,
    /// TLS sessions of clients that present a token.
    pub tokens: Arc<dyn TokenSessions>,
    /// The methods that such a client may call.
    pub routes: Routes,
}

impl std::fmt::Debug for IssuingService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuingService").finish_non_exhaustive()
    }
}

/// Serves connections until the future is dropped.
pub async fn serve(listener: &TcpListener, tls: Arc<Server>, routes: Routes, principal_of: PrincipalOf) {
    serve_with(listener, tls, routes, Admission::new(principal_of)).await;
}

/// [`serve`] with budgets, and issuing of certificates if configured.
pub async fn serve_with(listener: &TcpListener, tls: Arc<Server>, routes: Routes, admission: Admission) {
    let places = admission.budgets.places();
    let (unproven, token_clients) =
        (ConnectionPool::new(places.unproven), ConnectionPool::new(places.guests));
    let server = Arc::new(GrpcServer { tls, routes, admission, token_clients });
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let handshake = tokio::spawn(Arc::clone(&server).accept(stream));
                unproven.enter(handshake.abort_handle(), Slot::default());
            }
            Err(error) => {
                // Descriptors have run out, or the client left before it was accepted.
                tracing::warn!(%error, "cannot accept a connection; raise the descriptor limit if it has run out");
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

/// The outcome of a handshake.
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
                let serving = tokio::spawn(Arc::clone(&self).receive(*stream, session, slot.clone()));
                self.token_clients.enter(serving.abort_handle(), slot);
            }
            Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => tracing::debug!("TLS handshake timed out"),
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

    /// Serves a client that presented a certificate.
    async fn answer(self: Arc<Self>, stream: TlsStream<TcpStream>, id: SpiffeId) {
        let account = self.admission.account(&id);
        // The budget has logged the refusal.
        let Ok(_place) = account.reserve(Resource::Connections, 1) else { return };
        match account.principal() {
            Principal::Stranger(_) => self.admission.refuse(stream, &id).await,
            Principal::Workload(_) => self.serve_requests(stream, id, account, SHORT_CONNECTION).await,
            Principal::Gateway(_) | Principal::Peer(_) => {
                self.serve_requests(stream, id, account, Duration::MAX).await
            }
        }
    }

    /// Serves requests until the connection ends or its certificate is no longer accepted.
    async fn serve_requests(
        &self,
        stream: TlsStream<TcpStream>,
        id: SpiffeId,
        account: Account,
        longest: Duration,
    ) {
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let distrusted = until_distrusted(self.tls.standing(chain));
        let http = admission::connection(&account);
        let caller = Caller(id.clone());
        let service = service_fn(|request: Request<Incoming>| {
            admission::answer(self.routes.clone(), request, caller.clone(), account.clone())
        });
        tokio::select! {
            ended = timeout(longest, http.serve_connection(TokioIo::new(stream), service)) => {
                if let Ok(Err(error)) = ended {
                    tracing::debug!(peer = %id, %error, "connection ended with an error");
                }
            }
            why = distrusted => tracing::warn!(peer = %id, %why, "closing the connection: its certificate is no longer accepted"),
        }
    }

    /// Serves a client that presents a token.
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
            Ok(Err(error)) => tracing::debug!(%error, "connection of a token client ended with an error"),
            Err(_) => tracing::debug!("connection of a token client timed out"),
        }
    }
}
