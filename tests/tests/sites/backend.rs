//! An endpoint with mTLS that names its site in its answer, and fails as it is told: as a killed process does, or after
//! it has accepted.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use isthmus_certs::{Peer, Trust, server_config};
use isthmus_tests::cluster::Cluster;
use isthmus_tests::hello::read_hello;
use isthmus_tests::workload::{Greeting, files};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::tasks::wait;

/// What an endpoint does with a connection that it has accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Manner {
    /// Greets whoever has a trusted certificate, then echoes.
    Serve,
    /// Reads the ClientHello, then closes.
    Close,
    /// Resets at once.
    Reset,
    /// Reads, and never answers.
    Hang,
}

const MANNERS: [Manner; 4] = [Manner::Serve, Manner::Close, Manner::Reset, Manner::Hang];

/// The endpoint; its address stays the same while it is down.
#[derive(Debug)]
pub(crate) struct Backend {
    on: Handle,
    address: SocketAddr,
    serving: Arc<Serving>,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

#[derive(Debug)]
struct Serving {
    tls: Arc<rustls::ServerConfig>,
    greeting: Greeting,
    manner: AtomicUsize,
}

impl Backend {
    /// An endpoint of a cluster, with its identity `server`.
    pub(crate) fn start(cluster: &Cluster, on: &Handle, address: SocketAddr) -> Backend {
        let trust = Trust::load(&files(cluster, "server")).unwrap().current();
        let tls = server_config(&trust.identity, Arc::clone(&trust.bundles), Peer::Trusted).unwrap();
        let serving = Arc::new(Serving {
            tls: Arc::new(tls),
            greeting: greeting_of(cluster.name()),
            manner: AtomicUsize::new(0),
        });
        let mut backend = Backend { on: on.clone(), address, serving, running: None };
        backend.rise();
        backend
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what it does with connections from now on.
    pub(crate) fn behave(&self, manner: Manner) {
        self.serving.manner.store(manner as usize, SeqCst);
    }

    /// Ends as a killed process does: its port is closed, and so are its connections.
    pub(crate) fn kill(&mut self) {
        if let Some((kill, serving)) = self.running.take() {
            drop(kill);
            wait(&self.on, serving).unwrap();
        }
    }

    /// Serves again.
    pub(crate) fn rise(&mut self) {
        let (address, serving) = (self.address, Arc::clone(&self.serving));
        let listener = wait(&self.on, async move {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(address).unwrap();
            socket.listen(4096).unwrap()
        });
        let (kill, killed) = oneshot::channel();
        self.running = Some((kill, self.on.spawn(serving.accept(listener, killed))));
    }
}

impl Serving {
    async fn accept(self: Arc<Self>, listener: TcpListener, mut killed: oneshot::Receiver<()>) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Ok((stream, _)) = listener.accept() => {
                    connections.spawn(Arc::clone(&self).serve(stream));
                }
                Some(_) = connections.join_next() => {}
                _ = &mut killed => break,
            }
        }
        drop(listener);
        connections.shutdown().await;
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        let _gone = match MANNERS[self.manner.load(SeqCst)] {
            Manner::Serve => self.greet(stream).await,
            Manner::Close => skip_hello(&mut stream).await,
            Manner::Reset => stream.set_zero_linger(),
            Manner::Hang => tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop),
        };
    }

    async fn greet(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut tls = TlsAcceptor::from(Arc::clone(&self.tls)).accept(stream).await?;
        tls.write_all(&self.greeting).await?;
        tls.flush().await?;
        let (mut from, mut to) = tokio::io::split(tls);
        tokio::io::copy(&mut from, &mut to).await?;
        to.shutdown().await
    }
}

/// Reads the hello: a close with bytes unread would be a reset.
async fn skip_hello(stream: &mut TcpStream) -> io::Result<()> {
    let mut bytes = Vec::new();
    while read_hello(&mut bytes.as_slice()).is_err() {
        if tokio::time::timeout(Duration::from_secs(5), stream.read_buf(&mut bytes)).await?? == 0 {
            break;
        }
    }
    Ok(())
}

/// The greeting of a site's endpoints: its name.
fn greeting_of(site: &str) -> Greeting {
    format!("{site:-<8}").into_bytes().try_into().unwrap()
}

/// The site that a greeting names.
pub(crate) fn site_of(greeting: &Greeting) -> String {
    String::from_utf8_lossy(greeting).trim_end_matches('-').to_owned()
}
