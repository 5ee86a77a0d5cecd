//! Implements a client of the demo: calls a name through a gateway with its own certificate and records what it saw
//! of the server. It knows the gateway's address, its trust bundles and names, but no endpoint.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_certs::{SpiffeId, peer_id};
use rustls::AlertDescription;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::domain::ClientTls;
use super::service::{Greeting, binding};

const PATIENCE: Duration = Duration::from_secs(5);
const ANSWER_BYTES: u64 = 16 * 1024;

/// A client.
#[derive(Clone)]
pub(super) struct Client {
    tls: Arc<ClientTls>,
    gateway: SocketAddr,
}

/// A connection after the TLS handshake and before the request.
pub(super) struct Open {
    stream: TlsStream<TcpStream>,
    host: String,
    since: Instant,
}

/// An answer, with the server as the client saw it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) said: Greeting,
    /// Server identity from the handshake.
    pub(super) server: SpiffeId,
    /// Server certificate from the handshake.
    pub(super) leaf: CertificateDer<'static>,
    /// Channel binding computed by the client.
    pub(super) binding: String,
    /// Time from connect to the complete answer.
    pub(super) took: Duration,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The server or the gateway sent a TLS alert.
    #[error("refused: TLS alert {code} ({0:?})", code = u8::from(*.0))]
    Alert(AlertDescription),
    /// The connection failed.
    #[error("{0}")]
    Io(io::Error),
    /// The time limit passed.
    #[error("no answer within {PATIENCE:?}")]
    Timeout,
    /// The answer has another format.
    #[error("not an answer from a demo service: {0:?}")]
    Garbled(String),
}

impl Client {
    pub(super) fn new(tls: ClientTls, gateway: SocketAddr) -> Client {
        Client { tls: Arc::new(tls), gateway }
    }

    /// Returns the same client at another gateway.
    pub(super) fn at(&self, gateway: SocketAddr) -> Client {
        Client { tls: Arc::clone(&self.tls), gateway }
    }

    /// Makes one call on a new connection.
    pub(super) async fn call(&self, name: &str) -> Result<Answer, CallError> {
        self.open(name).await?.ask().await
    }

    /// Connects and completes the TLS handshake.
    pub(super) async fn open(&self, name: &str) -> Result<Open, CallError> {
        let since = Instant::now();
        let sni =
            ServerName::try_from(name.to_owned()).map_err(|error| CallError::Io(io::Error::other(error)))?;
        let connected = async {
            let stream = TcpStream::connect(self.gateway).await?;
            stream.set_nodelay(true)?;
            TlsConnector::from((self.tls)()).connect(sni, stream).await
        };
        let stream = in_time(connected).await?;
        Ok(Open { stream, host: name.to_owned(), since })
    }
}

impl Open {
    /// Sends one request and reads the answer to its end.
    pub(super) async fn ask(mut self) -> Result<Answer, CallError> {
        let Open { stream, host, since } = &mut self;
        let exchange = async {
            let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            // An end without close_notify is an error here: the answer was cut.
            (&mut *stream).take(ANSWER_BYTES).read_to_string(&mut answer).await?;
            // The answer is complete; the outcome of the close does not matter.
            let _goodbye = stream.shutdown().await;
            Ok(answer)
        };
        let answer = in_time(exchange).await?;
        let took = since.elapsed();
        let session = stream.get_ref().1;
        let other = |error: &dyn fmt::Display| CallError::Io(io::Error::other(error.to_string()));
        let chain = session.peer_certificates().unwrap_or_default();
        let server = peer_id(chain).map_err(|error| other(&error))?;
        let leaf = chain.first().cloned().ok_or_else(|| other(&"no certificate"))?;
        let binding = binding(session).map_err(|error| other(&error))?;
        let said = Greeting::parse(&answer).ok_or(CallError::Garbled(answer))?;
        Ok(Answer { said, server, leaf, binding, took })
    }
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> Result<T, CallError> {
    match timeout(PATIENCE, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(CallError::Timeout),
    }
}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> CallError {
        match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(rustls::Error::AlertReceived(alert)) => CallError::Alert(*alert),
            _ => CallError::Io(error),
        }
    }
}
