//! The service for full handshakes: mTLS with rustls, a required client certificate, and an answer of one
//! byte. Its threads block; waking a thread costs little compared with a handshake.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use isthmus_certs::{Authority, Peer, SpiffeId, TrustBundles, TrustDomain, client_config, server_config};
use rustls::{ClientConfig, ServerConfig, ServerConnection, Stream};

use crate::hello::ANSWER;
use crate::stop::Stop;

/// The service's name in all systems.
pub(crate) const TLS_NAME: &str = "tls.bench.svc.cluster.local";

const THREADS: usize = 4;
/// Socket timeout, so that a hung client does not block the exit.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running service; dropping it ends its threads.
#[derive(Debug)]
pub(crate) struct TlsBackend {
    pub(crate) address: SocketAddr,
    pub(crate) client: Arc<ClientConfig>,
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
}

impl TlsBackend {
    /// Starts the service on a free port of this address, with new certificates.
    pub(crate) fn start(ip: IpAddr) -> anyhow::Result<Self> {
        let (server, client) = configs()?;
        let listener = TcpListener::bind((ip, 0)).context("cannot open the listener of the TLS backend")?;
        let address = listener.local_addr()?;
        let stop = Stop::default();
        let mut threads = Vec::with_capacity(THREADS);
        for _ in 0..THREADS {
            let (listener, server, stop) = (listener.try_clone()?, Arc::clone(&server), stop.clone());
            threads.push(super::spawn("backend-tls", move || serve_all(&listener, &server, &stop))?);
        }
        Ok(Self { address, client, stop, threads })
    }
}

impl Drop for TlsBackend {
    fn drop(&mut self) {
        self.stop.request();
        for _ in &self.threads {
            // Each connection wakes one thread from its accept. If connecting fails no thread is waiting.
            let _ = TcpStream::connect(self.address);
        }
        for thread in self.threads.drain(..) {
            // A panicked thread has already reported to stderr.
            let _ = thread.join();
        }
    }
}

fn configs() -> anyhow::Result<(Arc<ServerConfig>, Arc<ClientConfig>)> {
    let authority = Authority::generate(TrustDomain::new("bench.example")?)?;
    let id = |account| SpiffeId::workload(authority.trust_domain(), "bench", account);
    let issue = |id: &SpiffeId| authority.issue(id, &[TLS_NAME], Duration::from_hours(24));
    let (server, client) = (id("server")?, id("client")?);
    let mut bundles = TrustBundles::new();
    bundles.add_root(authority.trust_domain().clone(), authority.certificate())?;
    let bundles = Arc::new(bundles);
    let server_side = server_config(&issue(&server)?, Arc::clone(&bundles), Peer::Ids(vec![client.clone()]))?;
    let client_side = client_config(&issue(&client)?, bundles, Peer::Ids(vec![server]))?;
    Ok((Arc::new(server_side), Arc::new(client_side)))
}

fn serve_all(listener: &TcpListener, config: &Arc<ServerConfig>, stop: &Stop) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        if stop.requested() {
            return Ok(());
        }
        // Failures show at the client.
        let _ = serve(stream, config);
    }
}

fn serve(mut stream: TcpStream, config: &Arc<ServerConfig>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut connection = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
    connection.complete_io(&mut stream)?;
    let mut stream = Stream::new(&mut connection, &mut stream);
    stream.write_all(&[ANSWER])?;
    // The client closes first.
    stream.read(&mut [0]).map(drop)
}
