//! A client of the demo: calls a name through a gateway with a certificate of its own, and keeps what it saw of
//! the other end. It knows a gateway's address, whom to believe, and names; no endpoint.

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
use super::service::{Said, binding};

const PATIENCE: Duration = Duration::from_secs(5);
const ANSWER_BYTES: u64 = 16 * 1024;

/// A client.
#[derive(Clone)]
pub(super) struct Client {
    tls: Arc<ClientTls>,
    gateway: SocketAddr,
}

/// A connection whose handshake is done, and nothing asked yet.
pub(super) struct Open {
    stream: TlsStream<TcpStream>,
    host: String,
    since: Instant,
}

/// What came back, and what this end saw.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) said: Said,
    /// Whom we saw in the handshake.
    pub(super) server: SpiffeId,
    /// The certificate we saw.
    pub(super) leaf: CertificateDer<'static>,
    /// Our own computation.
    pub(super) binding: String,
    /// From connect to the whole answer.
    pub(super) took: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The other end, or the gateway, said no.
    #[error("refused: TLS alert {code} ({0:?})", code = u8::from(*.0))]
    Alert(AlertDescription),
    /// The connection failed.
    #[error("{0}")]
    Io(io::Error),
    /// Nothing came.
    #[error("no answer within {PATIENCE:?}")]
    Timeout,
    /// Something else came.
    #[error("not an answer from a demo service: {0:?}")]
    Garbled(String),
}

impl Client {
    pub(super) fn new(tls: ClientTls, gateway: SocketAddr) -> Client {
        Client { tls: Arc::new(tls), gateway }
    }

    /// The same client at another gateway.
    pub(super) fn at(&self, gateway: SocketAddr) -> Client {
        Client { tls: Arc::clone(&self.tls), gateway }
    }

    /// One call on a connection of its own.
    pub(super) async fn call(&self, name: &str) -> Result<Answer, CallError> {
        self.open(name).await?.ask().await
    }

    /// Connects and shakes hands.
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
    /// Asks once and reads to the end.
    pub(super) async fn ask(mut self) -> Result<Answer, CallError> {
        let Open { stream, host, since } = &mut self;
        let exchange = async {
            let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            // A connection cut short is an error here: an end without close_notify.
            (&mut *stream).take(ANSWER_BYTES).read_to_string(&mut answer).await?;
            // The answer is whole; how the goodbye goes changes nothing.
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
        let said = Said::parse(&answer).ok_or(CallError::Garbled(answer))?;
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
