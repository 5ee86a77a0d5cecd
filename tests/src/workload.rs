//! Workloads of a cluster with end-to-end TLS: endpoints that greet accepted clients, clients that report who
//! answered, and traffic that counts every call. For malformed bytes see `hello` and `client`.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use isthmus_certs::{Peer, Trust, TrustFiles, client_config, peer_id, server_config};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};

use crate::client::prepare;
use crate::cluster::Cluster;
use crate::endpoint::{Endpoint, Scripted};
use crate::netns;
use crate::wait::DEADLINE;

/// What an endpoint requires of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demands {
    /// A certificate of a trusted domain.
    Certificate,
    /// Nothing.
    Nothing,
}

/// The greeting that identifies an endpoint.
pub type Greeting = [u8; 8];

/// A client's TLS connection.
pub type Call = StreamOwned<ClientConnection, TcpStream>;

/// Starts an endpoint of a cluster on a free port, with its identity `server`: it greets, then echoes.
#[must_use]
pub fn endpoint(cluster: &Cluster, demands: Demands, greeting: &Greeting) -> Scripted {
    start(cluster, demands, Duration::ZERO, greeting)
}

/// The same with a required client certificate and a delay before the handshake.
#[must_use]
pub fn endpoint_after(cluster: &Cluster, time: Duration, greeting: &Greeting) -> Scripted {
    start(cluster, Demands::Certificate, time, greeting)
}

fn start(cluster: &Cluster, demands: Demands, wait: Duration, greeting: &Greeting) -> Scripted {
    let trust = Trust::load(&files(cluster, "server")).unwrap().current();
    let config = match demands {
        Demands::Certificate => {
            server_config(&trust.identity, Arc::clone(&trust.bundles), Peer::Trusted).unwrap()
        }
        Demands::Nothing => ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(trust.identity.chain().to_vec(), trust.identity.key().clone_key())
            .unwrap(),
    };
    let (config, greeting) = (Arc::new(config), *greeting);
    let at = SocketAddr::new(cluster.ip(), 0);
    let endpoint = match cluster.namespace() {
        Some(namespace) => netns::inside(namespace, move || Endpoint::at(at)),
        None => Endpoint::at(at),
    };
    Scripted::unread_at(endpoint, move |stream| {
        thread::sleep(wait);
        let tls = ServerConnection::new(Arc::clone(&config)).unwrap();
        let _gone = greet(StreamOwned::new(tls, stream), greeting);
    })
}

fn greet(mut tls: StreamOwned<ServerConnection, TcpStream>, greeting: Greeting) -> io::Result<()> {
    tls.write_all(&greeting)?;
    tls.flush()?;
    let mut bytes = [0; 4096];
    loop {
        let size = tls.read(&mut bytes)?;
        if size == 0 {
            return Ok(());
        }
        tls.write_all(&bytes[..size])?;
        tls.flush()?;
    }
}

/// The files of an identity of a cluster.
#[must_use]
pub fn files(cluster: &Cluster, leaf: &str) -> TrustFiles {
    let folder = cluster.path("pki").join("leaves").join(leaf);
    TrustFiles {
        certificate: folder.join("tls.crt"),
        key: folder.join("tls.key"),
        bundles: cluster.path("pki/bundles"),
        ..TrustFiles::default()
    }
}

/// A client of a cluster, with its identity `client`.
#[derive(Clone, Debug)]
pub struct Caller {
    config: Arc<ClientConfig>,
    namespace: Option<String>,
}

/// The answer to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The endpoint's greeting.
    pub greeting: String,
    /// The endpoint's SPIFFE ID.
    pub server: String,
}

impl Caller {
    /// A client with the cluster's current trust.
    #[must_use]
    pub fn in_cluster(cluster: &Cluster) -> Caller {
        let trust = Trust::load(&files(cluster, "client")).unwrap().current();
        let config = client_config(&trust.identity, Arc::clone(&trust.bundles), Peer::Trusted).unwrap();
        Caller { config: Arc::new(config), namespace: cluster.namespace().map(str::to_owned) }
    }

    /// Calls a name through a gateway: handshake, greeting, one echo, close.
    ///
    /// # Errors
    /// On any failure, including a refusal.
    pub fn call(&self, gateway: SocketAddr, name: &str) -> Result<Answer, String> {
        let (config, name) = (Arc::clone(&self.config), name.to_owned());
        self.inside(move || call(config, gateway, &name))
    }

    /// The same, but leaves the connection open after the greeting.
    ///
    /// # Errors
    /// On any failure.
    pub fn open(&self, gateway: SocketAddr, name: &str) -> Result<Call, String> {
        let (config, name) = (Arc::clone(&self.config), name.to_owned());
        self.inside(move || Ok(open(config, gateway, &name)?.0))
    }

    /// Whether the gateway reports an unknown name.
    #[must_use]
    pub fn is_unknown(&self, gateway: SocketAddr, name: &str) -> bool {
        self.call(gateway, name).is_err_and(|why| why.contains("UnrecognisedName"))
    }

    /// Calls repeatedly, at this pace, until stopped.
    #[must_use]
    pub fn traffic(&self, gateway: SocketAddr, name: &str, pace: Duration) -> Traffic {
        let (caller, name) = (self.clone(), name.to_owned());
        let tally = Arc::new(Tally::default());
        let own = Arc::clone(&tally);
        let thread = thread::spawn(move || {
            let config = Arc::clone(&caller.config);
            caller.inside(move || own.count(pace, || call(Arc::clone(&config), gateway, &name)));
        });
        Traffic { tally, thread: Some(thread) }
    }

    fn inside<T: Send + 'static>(&self, run: impl FnOnce() -> T + Send + 'static) -> T {
        match &self.namespace {
            Some(namespace) => netns::inside(namespace, run),
            None => run(),
        }
    }
}

fn open(config: Arc<ClientConfig>, gateway: SocketAddr, name: &str) -> Result<(Call, Answer), String> {
    let with_address = |error: io::Error| format!("{gateway}: {error}");
    let stream = TcpStream::connect_timeout(&gateway, DEADLINE).map_err(with_address)?;
    prepare(&stream);
    let server = ServerName::try_from(name.to_owned()).unwrap();
    let mut tls = StreamOwned::new(ClientConnection::new(config, server).unwrap(), stream);
    let mut greeting = Greeting::default();
    tls.read_exact(&mut greeting).map_err(with_address)?;
    let server = peer_id(tls.conn.peer_certificates().unwrap()).unwrap().to_string();
    Ok((tls, Answer { greeting: String::from_utf8_lossy(&greeting).into_owned(), server }))
}

fn call(config: Arc<ClientConfig>, gateway: SocketAddr, name: &str) -> Result<Answer, String> {
    let (mut tls, answer) = open(config, gateway, name)?;
    echo(&mut tls).map_err(|error| format!("{gateway}: {error}"))?;
    tls.conn.send_close_notify();
    tls.flush().map_err(|error| format!("{gateway}: {error}"))?;
    Ok(answer)
}

/// Sends a word and waits for its echo.
///
/// # Errors
/// If the word does not return.
pub fn echo(call: &mut Call) -> io::Result<()> {
    call.write_all(b"word")?;
    call.flush()?;
    let mut word = [0; 4];
    call.read_exact(&mut word)?;
    if &word == b"word" { Ok(()) } else { Err(io::Error::other(format!("{word:?} came back"))) }
}

/// Repeated calls, until stopped.
#[derive(Debug)]
pub struct Traffic {
    tally: Arc<Tally>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Tally {
    stop: AtomicBool,
    calls: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Tally {
    fn count(&self, pace: Duration, call: impl Fn() -> Result<Answer, String>) {
        let started = Instant::now();
        let mut due = started;
        while !self.stop.load(SeqCst) {
            if let Err(why) = call() {
                self.failures.lock().unwrap().push(format!("after {:?}: {why}", started.elapsed()));
            }
            self.calls.fetch_add(1, SeqCst);
            due += pace;
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
}

impl Traffic {
    /// Number of finished calls.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.tally.calls.load(SeqCst)
    }

    /// The errors of failed calls.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        self.tally.failures.lock().unwrap().clone()
    }

    /// Stops; returns the number of calls and the errors.
    #[must_use]
    pub fn end(mut self) -> (usize, Vec<String>) {
        self.stop();
        (self.calls(), self.failures())
    }

    fn stop(&mut self) {
        self.tally.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop();
    }
}
