//! Runs the demo's services: TLS endpoints that answer HTTP/1.1 with their own identity and the client's. Their TLS
//! configuration decides which clients they accept. Every request gets the same answer.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use isthmus_certs::{SpiffeId, peer_id};
use rustls::ConnectionCommon;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::Broken;
use super::agent::Reserved;
use super::domain::{Domain, Member, ServerTls};
use isthmus_core::socket;

const PORT: u16 = 9080;
/// Callers that a dying endpoint still accepts and resets without an answer.
pub(super) const LAST_CALLERS: u64 = 3;
/// Long enough for a person typing into `openssl s_client`.
const PATIENCE: Duration = Duration::from_mins(5);
const REQUEST_BYTES: u64 = 16 * 1024;

/// A service with its endpoints.
#[derive(Debug)]
pub(super) struct Service {
    name: &'static str,
    namespace: &'static str,
    pub(super) id: SpiffeId,
    /// Whether it is one service with the same host of the other cluster.
    pub(super) merge: bool,
    pub(super) endpoints: Vec<Endpoint>,
}

/// One endpoint; it serves until it is killed, closed or dropped, and keeps its address.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) instance: String,
    pub(super) address: SocketAddr,
    /// Its certificate; no other endpoint has the key.
    pub(super) leaf: CertificateDer<'static>,
    serving: Arc<Serving>,
    running: Option<Running>,
    _port: Reserved,
}

#[derive(Debug)]
struct Running {
    kill: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Service {
    /// Starts `count` endpoints of a service, each with its own key. `door` makes the TLS configuration of each.
    pub(super) async fn start(
        name: &'static str,
        namespace: &'static str,
        count: usize,
        domain: &mut Domain,
        door: impl Fn(Member) -> Result<ServerTls, Broken>,
    ) -> Result<Service, Broken> {
        let id = domain.workload(namespace, name)?;
        let mut service = Service { name, namespace, id, merge: false, endpoints: Vec::new() };
        for index in 0..count {
            let instance = service.instance(index);
            let names = vec![service.host(), service.alias(), service.host_of(index)];
            let member = Member::load(domain.issue(&instance, service.id.clone(), names)?)?;
            let (id, leaf) = (member.id.clone(), member.leaf());
            service.endpoints.push(Endpoint::start(instance, id, leaf, door(member)?).await?);
        }
        Ok(service)
    }

    /// Makes it one service with the same host of the other cluster.
    pub(super) fn merged(self) -> Service {
        Service { merge: true, ..self }
    }

    pub(super) fn host(&self) -> String {
        format!("{}.{}.svc.cluster.local", self.name, self.namespace)
    }

    pub(super) fn alias(&self) -> String {
        format!("{}.{}", self.name, self.namespace)
    }

    pub(super) fn port(&self) -> u16 {
        PORT
    }

    pub(super) fn instance(&self, index: usize) -> String {
        format!("{}-{index}", self.name)
    }

    /// Returns the host name of one instance.
    pub(super) fn host_of(&self, index: usize) -> String {
        format!("{}.{}", self.instance(index), self.host())
    }

    /// Returns its SNI name in Istio's form.
    pub(super) fn outbound(&self) -> String {
        format!("outbound_.{PORT}_._.{}", self.host())
    }

    /// Number of connections that reached its endpoints.
    pub(super) fn accepted(&self) -> u64 {
        self.endpoints.iter().map(Endpoint::accepted).sum()
    }
}

impl Endpoint {
    async fn start(
        instance: String,
        own: SpiffeId,
        leaf: CertificateDer<'static>,
        tls: ServerTls,
    ) -> Result<Endpoint, Broken> {
        let port = Reserved::new()?;
        let (address, accepted) = (port.address, AtomicU64::new(0));
        let serving = Arc::new(Serving { instance: instance.clone(), own, tls, accepted });
        let mut endpoint = Endpoint { instance, address, leaf, serving, running: None, _port: port };
        endpoint.revive().await?;
        Ok(endpoint)
    }

    /// Serves, also after it was killed or closed.
    pub(super) async fn revive(&mut self) -> Result<(), Broken> {
        let listener = TcpListener::bind(self.address).await.map_err(Broken::cannot("bind an endpoint"))?;
        let (kill, killed) = oneshot::channel();
        let task = tokio::spawn(Arc::clone(&self.serving).run(listener, killed));
        self.running = Some(Running { kill, task });
        Ok(())
    }

    /// Number of connections that reached it.
    pub(super) fn accepted(&self) -> u64 {
        self.serving.accepted.load(Relaxed)
    }

    /// Closes its port at once. Answers in progress are finished.
    pub(super) async fn close(&mut self) {
        if let Some(Running { task, .. }) = self.running.take() {
            task.abort();
            let _ended = task.await;
        }
    }

    /// Kills it under load: it resets the next [`LAST_CALLERS`] connections, then closes its port. Answers in progress
    /// are finished. Returns when the port is closed.
    pub(super) async fn kill(&mut self) {
        if let Some(Running { kill, task }) = self.running.take() {
            // Both fail only if the task has already ended.
            let _ended = kill.send(());
            let _ended = task.await;
        }
    }
}

struct Serving {
    instance: String,
    own: SpiffeId,
    tls: ServerTls,
    accepted: AtomicU64,
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("instance", &self.instance).finish_non_exhaustive()
    }
}

impl Serving {
    async fn run(self: Arc<Self>, listener: TcpListener, mut killed: oneshot::Receiver<()>) {
        loop {
            let stream = tokio::select! {
                stream = self.accept(&listener) => stream,
                kill = &mut killed => match kill {
                    Ok(()) => break,
                    Err(_) => return, // the endpoint was dropped, with the whole demo
                },
            };
            let serving = Arc::clone(&self);
            // A caller that leaves or is refused needs no report here.
            tokio::spawn(async move { timeout(PATIENCE, serving.answer(stream)).await });
        }
        for _ in 0..LAST_CALLERS {
            socket::reset_on_close(&self.accept(&listener).await);
        }
    }

    async fn accept(&self, listener: &TcpListener) -> TcpStream {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    self.accepted.fetch_add(1, Relaxed);
                    return stream;
                }
                // The caller has left, or descriptors are short; both pass.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    async fn answer(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = TlsAcceptor::from((self.tls)()).accept(stream).await?;
        read_request(&mut stream).await?;
        let session = stream.get_ref().1;
        let said = Greeting {
            endpoint: self.instance.clone(),
            server: self.own.to_string(),
            client: peer_id(session.peer_certificates().unwrap_or_default())
                .map_err(io::Error::other)?
                .to_string(),
            binding: binding(session).map_err(io::Error::other)?,
        };
        let body = said.to_string();
        let response = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(response.as_bytes()).await?;
        stream.shutdown().await?;
        // Closing with bytes unread would reset, and the reset could overtake the answer.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        Ok(())
    }
}

/// Reads up to the empty line; lines typed by hand end with LF only.
async fn read_request(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> io::Result<()> {
    let mut request = Vec::new();
    let mut stream = stream.take(REQUEST_BYTES);
    while !request.ends_with(b"\r\n\r\n") && !request.ends_with(b"\n\n") {
        if stream.read_buf(&mut request).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// Computes the channel binding (RFC 9266): if both ends of a TLS session get the same value, no third party holds
/// the session's keys.
pub(super) fn binding<Data>(session: &ConnectionCommon<Data>) -> Result<String, rustls::Error> {
    let bytes = session.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(b""))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The body of an endpoint's answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) endpoint: String,
    /// Identity of the endpoint.
    pub(super) server: String,
    /// Client identity that the endpoint saw.
    pub(super) client: String,
    pub(super) binding: String,
}

impl fmt::Display for Greeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Greeting { endpoint, server, client, binding } = self;
        write!(f, "endpoint: {endpoint}\nserver: {server}\nclient: {client}\nbinding: {binding}\n")
    }
}

impl Greeting {
    /// Parses a complete HTTP answer.
    pub(super) fn parse(answer: &str) -> Option<Greeting> {
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let mut lines = body.lines();
        let mut next = |key: &str| Some(lines.next()?.strip_prefix(key)?.strip_prefix(": ")?.to_owned());
        let said = Greeting {
            endpoint: next("endpoint")?,
            server: next("server")?,
            client: next("client")?,
            binding: next("binding")?,
        };
        head.starts_with("HTTP/1.1 200 ").then_some(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_parse_round_trips() {
        let said = Greeting {
            endpoint: "a-0".to_owned(),
            server: "spiffe://d/ns/a/sa/b".to_owned(),
            client: "spiffe://d/ns/c/sa/d".to_owned(),
            binding: "00ff".to_owned(),
        };
        let answer = |status: &str| format!("HTTP/1.1 {status}\r\nconnection: close\r\n\r\n{said}");
        assert_eq!(Greeting::parse(&answer("200 OK")), Some(said));
        assert_eq!(Greeting::parse("HTTP/1.1 200 OK\r\n\r\nendpoint: a-0\n"), None);
    }

    #[test]
    fn answer_with_error_status_is_rejected() {
        assert_eq!(
            Greeting::parse("HTTP/1.1 500 No\r\n\r\nendpoint: a\nserver: b\nclient: c\nbinding: d\n"),
            None
        );
    }
}
