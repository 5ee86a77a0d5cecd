//! Shared test helpers: a gateway in this process, backends that answer with their address, and clients that send a
//! real ClientHello. No TLS handshake takes place; the gateway does not need one.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use isthmus_core::config;
use isthmus_core::gateway::Gateway;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Time limit for every wait.
const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "waited too long until {what}");
        thread::yield_now();
        thread::park_timeout(Duration::from_millis(2));
    }
}

/// A running gateway; it ends when it is dropped.
pub(crate) struct World(Option<Gateway>);

impl World {
    /// Starts a gateway that follows `file`.
    pub(crate) fn start(file: &Path) -> World {
        let settings = config::load(file).unwrap_or_else(|problems| panic!("{problems}"));
        World::around(Gateway::start(settings, Some(file.to_owned())).unwrap())
    }

    pub(crate) fn around(gateway: Gateway) -> World {
        World(Some(gateway))
    }

    pub(crate) fn gateway(&self) -> &Gateway {
        self.0.as_ref().unwrap()
    }

    /// Returns the address of its first listener.
    pub(crate) fn address(&self) -> SocketAddr {
        self.gateway().bound()[0].address
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.gateway().control().process.tables.load().epoch
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(gateway) = self.0.take() {
            gateway.end();
            if let Err(error) = gateway.wait()
                && !thread::panicking()
            {
                panic!("{error}");
            }
        }
    }
}

/// Returns the part of the configuration that all tests share.
pub(crate) fn head() -> String {
    "workers: 2\nlisteners: [{address: '127.0.0.1:0'}]\nadmin: {address: '127.0.0.1:0'}\n\
     metrics: {address: '127.0.0.1:0'}\nhealth: {address: '127.0.0.1:0'}\naccess_log: {enabled: false}\n"
        .to_owned()
}

/// Starts a server that answers a ClientHello with its address, and echoes what follows.
pub(crate) fn backend(address: SocketAddr) -> io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::spawn(move || {
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, address));
            }
        });
    });
    Ok(address)
}

async fn answer(mut stream: tokio::net::TcpStream, own: SocketAddr) -> io::Result<()> {
    let mut header = [0; 5];
    stream.read_exact(&mut header).await?;
    let mut hello = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
    stream.read_exact(&mut hello).await?;
    stream.write_all(format!("{own}\n").as_bytes()).await?;
    let (mut from, mut to) = stream.split();
    tokio::io::copy(&mut from, &mut to).await.map(drop)
}

/// Returns the first flight of a rustls client.
pub(crate) fn hello(sni: &str) -> Vec<u8> {
    let config = ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let name = sni.to_owned().try_into().unwrap();
    let mut flight = Vec::new();
    ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut flight).unwrap();
    flight
}

/// A connection that a backend has answered.
pub(crate) struct Client {
    stream: TcpStream,
    backend: SocketAddr,
}

impl Client {
    /// Address of the backend.
    pub(crate) fn backend(&self) -> SocketAddr {
        self.backend
    }

    /// Sends `text` and reads it back; true on success.
    pub(crate) fn echo(&mut self, text: &str) -> bool {
        let mut back = vec![0; text.len()];
        self.stream.write_all(text.as_bytes()).and_then(|()| self.stream.read_exact(&mut back)).is_ok()
            && back == text.as_bytes()
    }
}

/// The answer to a hello.
pub(crate) enum Answer {
    Served(Client),
    /// Refused with this fatal alert.
    Refused(u8),
}

/// Connects, sends `hello`, and reads the answer.
pub(crate) fn connect(gateway: SocketAddr, hello: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(gateway).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(hello).unwrap();
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    match line.as_slice() {
        [21, 3, 3, 0, 2, 2, alert] => Answer::Refused(*alert),
        line => {
            let backend = str::from_utf8(line).ok().and_then(|line| line.parse().ok());
            Answer::Served(Client { stream, backend: backend.unwrap_or_else(|| panic!("answered {line:?}")) })
        }
    }
}

/// Connects to a service; panics if it is refused.
#[track_caller]
pub(crate) fn open(gateway: SocketAddr, hello: &[u8]) -> Client {
    match connect(gateway, hello) {
        Answer::Served(client) => client,
        Answer::Refused(alert) => panic!("refused with alert {alert}"),
    }
}

/// Returns the backend of a new connection; none if it is refused.
pub(crate) fn served_by(gateway: SocketAddr, hello: &[u8]) -> Option<SocketAddr> {
    match connect(gateway, hello) {
        Answer::Served(client) => Some(client.backend()),
        Answer::Refused(_) => None,
    }
}
