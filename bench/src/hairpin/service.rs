//! The service in east: mTLS with rustls, and answers of the requested length that begin with the caller's
//! identity. Counts the CPU time of its threads.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use isthmus_certs::peer_id;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustls::{ServerConfig, ServerConnection, Stream};

use super::cost::thread_cpu;
use super::watched::{TICK, Watched};
use crate::netns::Namespace;
use crate::poller::try_again;
use crate::stop::Stop;

/// Several threads, so that a closing connection does not delay the next.
const THREADS: usize = 4;
/// Size of one write.
const CHUNK: usize = 64 * 1024;

/// A running service; dropping it ends its threads.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) address: SocketAddr,
    cpu: Arc<AtomicU64>,
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
}

impl Service {
    /// Starts the service on a free loopback port of this namespace.
    pub(super) fn start(namespace: &Namespace, config: &Arc<ServerConfig>) -> anyhow::Result<Self> {
        let listener = namespace.inside(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let listener = Arc::new(listener.context("cannot open the service's listener")?);
        // An accept that checks for the end; one connection wakes one of the waiting threads.
        set_socket_timeout(&listener, Timeout::Recv, Some(TICK))?;
        let mut service = Self {
            address: listener.local_addr()?,
            cpu: Arc::default(),
            stop: Stop::default(),
            threads: vec![],
        };
        for _ in 0..THREADS {
            let (listener, config, stop) = (Arc::clone(&listener), Arc::clone(config), service.stop.clone());
            let clock = Clock { total: Arc::clone(&service.cpu), counted: Duration::ZERO };
            let body = move || accept_all(&listener, &config, &stop, clock);
            service.threads.push(std::thread::Builder::new().name("service".into()).spawn(body)?);
        }
        Ok(service)
    }

    /// CPU time of all threads, up to the last answer of each.
    pub(super) fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu.load(Ordering::Relaxed))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.request();
        for thread in self.threads.drain(..) {
            // A panicked thread has already reported to stderr.
            let _ = thread.join();
        }
    }
}

/// Adds a thread's CPU time to a total.
struct Clock {
    total: Arc<AtomicU64>,
    counted: Duration,
}

impl Clock {
    fn count(&mut self) {
        let now = thread_cpu();
        let more = now.saturating_sub(self.counted).as_nanos();
        self.total.fetch_add(u64::try_from(more).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.counted = now;
    }
}

fn accept_all(listener: &TcpListener, config: &Arc<ServerConfig>, stop: &Stop, mut clock: Clock) {
    while !stop.requested() {
        match listener.accept() {
            // Failures show at the client.
            Ok((stream, _)) => drop(serve(stream, config, stop, &mut clock)),
            Err(error) if try_again(&error) => {}
            Err(error) => return eprintln!("service: {error}"),
        }
        clock.count();
    }
}

/// Serves one connection. A request is eight bytes: the length of the answer.
fn serve(stream: TcpStream, config: &Arc<ServerConfig>, stop: &Stop, clock: &mut Clock) -> io::Result<()> {
    let mut stream = Watched::new(stream, stop.clone())?;
    let mut connection = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
    connection.complete_io(&mut stream)?;
    let caller = peer_id(connection.peer_certificates().unwrap_or_default()).map_err(io::Error::other)?;
    let answer: Vec<u8> = format!("{caller}\n").into_bytes().into_iter().cycle().take(CHUNK).collect();
    let mut tls = Stream::new(&mut connection, &mut stream);
    let mut request = [0; 8];
    loop {
        tls.read_exact(&mut request)?;
        let mut left = u64::from_be_bytes(request);
        while left > 0 {
            let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            tls.write_all(answer.get(..length).unwrap_or(&answer))?;
            left -= length as u64;
        }
        clock.count();
    }
}
