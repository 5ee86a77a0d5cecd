//! Performs one client operation: connect, TLS handshake, and the HTTP request or echo inside. Knows nothing
//! of rates, other operations or reports.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::failure::{Failure, Kind, Step};

/// Size of one read.
const CHUNK: usize = 16 * 1024;

/// The work on a connection.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// None: the operation is opening and closing the connection.
    Handshake,
    /// An HTTP GET of this path.
    Http(String),
    /// Sends these bytes and expects them back.
    Echo(Arc<[u8]>),
}

/// Performs one kind of operation.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) addresses: Vec<SocketAddr>,
    /// Counts connections, to use all addresses in turn.
    pub(crate) turn: AtomicUsize,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) sni: ServerName<'static>,
    pub(crate) work: Work,
    /// Whether each operation opens its own connection.
    pub(crate) fresh: bool,
    pub(crate) timeout: Duration,
    pub(crate) open: Arc<AtomicUsize>,
}

/// The current step of an operation and the times of its finished steps. It outlives a cancelled operation.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) step: Step,
    pub(crate) connect: Option<Duration>,
    pub(crate) handshake: Option<Duration>,
    /// From the request to the first byte of the response.
    pub(crate) first_byte: Option<Duration>,
}

/// A kept-alive connection.
#[derive(Debug)]
pub(crate) struct OpenConnection {
    inside: Protocol,
    _open: Open,
}

#[derive(Debug)]
enum Protocol {
    Bare(Box<TlsStream<TcpStream>>),
    Http { sender: SendRequest<Empty<Bytes>>, driver: Driver },
}

/// The task that drives an HTTP connection; it is aborted when dropped.
type Driver = JoinSet<hyper::Result<()>>;

/// Counts an open connection until dropped.
#[derive(Debug)]
struct Open(Arc<AtomicUsize>);

impl Open {
    fn count(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(open))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Client {
    /// Whether connections are reused.
    pub(crate) fn keeps(&self) -> bool {
        !self.fresh && !matches!(self.work, Work::Handshake)
    }

    /// Performs one operation on the kept connection or a new one. A failure drops the connection.
    pub(crate) async fn operate(
        &self,
        kept: &mut Option<OpenConnection>,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let mut connection = match kept.take() {
            Some(connection) if connection.is_usable() => connection,
            _ => self.connect(progress).await?,
        };
        progress.step = Step::Answer;
        match (&self.work, &mut connection.inside) {
            (Work::Http(path), Protocol::Http { sender, driver }) => {
                self.get(path, sender, driver, progress).await?;
            }
            (Work::Echo(payload), Protocol::Bare(stream)) => echo(payload, stream, progress).await?,
            _ => {}
        }
        if self.keeps() {
            *kept = Some(connection);
            return Ok(());
        }
        progress.step = Step::Close;
        connection.close().await
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self, progress: &mut Progress) -> Result<OpenConnection, Failure> {
        progress.step = Step::Connect;
        let begun = Instant::now();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let address = self.addresses.get(turn % self.addresses.len()).ok_or(io::ErrorKind::AddrNotAvailable);
        let tcp = TcpStream::connect(address.map_err(io::Error::from)?).await?;
        tcp.set_nodelay(true)?;
        let open = Open::count(&self.open);
        progress.connect = Some(begun.elapsed());

        progress.step = Step::Handshake;
        let begun = Instant::now();
        let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(self.sni.clone(), tcp).await?;
        progress.handshake = Some(begun.elapsed());

        let inside = match self.work {
            Work::Http(_) => {
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                let mut driver = Driver::new();
                driver.spawn(connection);
                Protocol::Http { sender, driver }
            }
            _ => Protocol::Bare(Box::new(stream)),
        };
        Ok(OpenConnection { inside, _open: open })
    }

    async fn get(
        &self,
        path: &str,
        sender: &mut SendRequest<Empty<Bytes>>,
        driver: &mut Driver,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let request = Request::get(path)
            .header(hyper::header::HOST, &*self.sni.to_str())
            .header(hyper::header::USER_AGENT, concat!("isthmus-bench/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|error| Failure::new(Kind::WrongAnswer, &error.to_string()))?;
        let begun = Instant::now();
        let mut answer = match sender.send_request(request).await {
            Ok(answer) => answer,
            // The connection's own error says more about the cause than the request's.
            Err(error) if error.is_canceled() || error.is_closed() => {
                return Err(match driver.join_next().await {
                    Some(Ok(Err(cause))) => cause.into(),
                    _ => error.into(),
                });
            }
            Err(error) => return Err(error.into()),
        };
        progress.first_byte = Some(begun.elapsed());
        while let Some(frame) = answer.frame().await {
            frame?;
        }
        let status = answer.status();
        if status.as_u16() >= 400 {
            return Err(Failure::new(Kind::Status(status.as_u16()), status.as_str()));
        }
        Ok(())
    }
}

impl OpenConnection {
    fn is_usable(&self) -> bool {
        match &self.inside {
            Protocol::Bare(_) => true,
            Protocol::Http { sender, .. } => !sender.is_closed(),
        }
    }

    /// Closes the connection and waits for the server's close: only then is it certain that the server
    /// accepted the client certificate (TLS 1.3 does not say so earlier) and that no bytes were lost.
    async fn close(self) -> Result<(), Failure> {
        match self.inside {
            Protocol::Http { sender, mut driver } => {
                drop(sender);
                // The response is complete, so the outcome of the close does not matter.
                driver.join_next().await;
                Ok(())
            }
            Protocol::Bare(mut stream) => {
                let shutdown = stream.shutdown().await;
                let mut rest = vec![0; CHUNK];
                loop {
                    match stream.read(&mut rest).await {
                        Ok(0) => return Ok(shutdown?),
                        Ok(_) => {}
                        // Many servers omit close_notify; after ours there is nothing left to truncate.
                        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(shutdown?),
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
    }
}

/// Sends and receives concurrently: an echo server may answer before it has the whole request.
async fn echo(
    payload: &[u8],
    stream: &mut TlsStream<TcpStream>,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let (mut from, mut to) = tokio::io::split(stream);
    let send = async {
        to.write_all(payload).await?;
        to.flush().await.map_err(Failure::from)
    };
    let receive = async {
        let mut chunk = vec![0; CHUNK.min(payload.len())];
        let mut rest = payload;
        while !rest.is_empty() {
            let most = chunk.len().min(rest.len());
            let part = chunk.get_mut(..most).unwrap_or_default();
            let count = from.read(part).await?;
            progress.first_byte.get_or_insert_with(|| begun.elapsed());
            let received = part.get(..count).unwrap_or_default();
            if received.is_empty() {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            rest = rest.strip_prefix(received).ok_or_else(|| {
                let at = payload.len() - rest.len();
                Failure::new(Kind::WrongAnswer, &format!("the echo differs from the request near byte {at}"))
            })?;
        }
        Ok(())
    };
    tokio::pin!(receive);
    // A read says more than a failed write: there may be an alert to read.
    tokio::select! {
        received = &mut receive => received,
        sent = send => receive.await.and(sent),
    }
}
