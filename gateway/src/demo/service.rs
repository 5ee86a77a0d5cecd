//! A real service for the demo: an endpoint that demands mTLS and answers HTTP/1.1 with who it is and whom
//! it saw in the handshake. Any client with a certificate can ask it. Not a web server: one answer for all.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use isthmus_certs::{Identity, Peer, SpiffeId, TrustBundles, peer_id, server_config};
use rustls::ConnectionCommon;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::Broken;
use crate::socket;

/// Callers that an endpoint still accepts while it dies, and resets without a word.
pub(super) const LAST_CALLERS: u64 = 3;
/// Somebody may be typing into `openssl s_client`.
const PATIENCE: Duration = Duration::from_mins(5);
const REQUEST_BYTES: u64 = 16 * 1024;

/// One endpoint that serves, until it is killed or dropped.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) instance: String,
    pub(super) address: SocketAddr,
    /// The certificate that only this endpoint holds the key of.
    pub(super) leaf: CertificateDer<'static>,
    accepted: Arc<AtomicU64>,
    kill: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Endpoint {
    pub(super) async fn start(
        instance: &str,
        identity: &Identity,
        bundles: Arc<TrustBundles>,
    ) -> Result<Endpoint, Broken> {
        let allowed = Peer::Domain(identity.id().trust_domain().clone());
        let config = server_config(identity, bundles, allowed)
            .map_err(Broken::cannot("configure the TLS of an endpoint"))?;
        let bound = async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            Ok::<_, io::Error>((listener.local_addr()?, listener))
        };
        let (address, listener) = bound.await.map_err(Broken::cannot("bind an endpoint"))?;
        let accepted = Arc::new(AtomicU64::new(0));
        let (kill, killed) = oneshot::channel();
        let serving = Serving {
            instance: instance.to_owned(),
            own: identity.id().clone(),
            tls: TlsAcceptor::from(Arc::new(config)),
            accepted: Arc::clone(&accepted),
        };
        let leaf = identity.chain().first().cloned().unwrap_or_else(|| CertificateDer::from(Vec::new()));
        let task = tokio::spawn(Arc::new(serving).run(listener, killed));
        Ok(Endpoint { instance: instance.to_owned(), address, leaf, accepted, kill: Some(kill), task })
    }

    /// Connections that reached it.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// Lets it die under load: the next [`LAST_CALLERS`] find a reset where an answer should be, then the
    /// port is closed. Answers that had begun are finished. Returns when the port is closed.
    pub(super) async fn kill(&mut self) {
        if let Some(kill) = self.kill.take() {
            // Either fails only when the task has ended already.
            let _ended = kill.send(());
            let _ended = (&mut self.task).await;
        }
    }
}

struct Serving {
    instance: String,
    own: SpiffeId,
    tls: TlsAcceptor,
    accepted: Arc<AtomicU64>,
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
            // A caller that leaves or is refused sees so itself; there is nobody else to tell.
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
        let mut stream = self.tls.accept(stream).await?;
        read_request(&mut stream).await?;
        let session = stream.get_ref().1;
        let said = Said {
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

/// Reads up to the empty line; people who type end lines with LF alone.
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

/// What both ends of one TLS session can compute and nobody in between can (RFC 9266): where they agree,
/// no third party holds the session's keys.
pub(super) fn binding<Data>(session: &ConnectionCommon<Data>) -> Result<String, rustls::Error> {
    let bytes = session.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(b""))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What an endpoint says in its answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) endpoint: String,
    /// Its own identity.
    pub(super) server: String,
    /// Whom it saw.
    pub(super) client: String,
    pub(super) binding: String,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Said { endpoint, server, client, binding } = self;
        write!(f, "endpoint: {endpoint}\nserver: {server}\nclient: {client}\nbinding: {binding}\n")
    }
}

impl Said {
    /// Reads a whole HTTP answer.
    pub(super) fn parse(answer: &str) -> Option<Said> {
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let mut lines = body.lines();
        let mut next = |key: &str| Some(lines.next()?.strip_prefix(key)?.strip_prefix(": ")?.to_owned());
        let said = Said {
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
    fn an_answer_is_read_as_it_was_written() {
        let said = Said {
            endpoint: "a-0".to_owned(),
            server: "spiffe://d/ns/a/sa/b".to_owned(),
            client: "spiffe://d/ns/c/sa/d".to_owned(),
            binding: "00ff".to_owned(),
        };
        let answer = |status: &str| format!("HTTP/1.1 {status}\r\nconnection: close\r\n\r\n{said}");
        assert_eq!(Said::parse(&answer("200 OK")), Some(said));
        assert_eq!(Said::parse("HTTP/1.1 200 OK\r\n\r\nendpoint: a-0\n"), None);
    }

    #[test]
    fn an_answer_of_another_status_is_none() {
        assert_eq!(
            Said::parse("HTTP/1.1 500 No\r\n\r\nendpoint: a\nserver: b\nclient: c\nbinding: d\n"),
            None
        );
    }
}
