//! The load generator. Each kind of load keeps its connections between calls, so that warm-up and measurement
//! are the same call. Knows nothing of systems, CPU or reports.

mod bulk;
mod calls;
mod handshakes;
mod paced;
mod pingpong;
pub(crate) mod short;

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

pub(crate) use bulk::{Bulk, Direction};
pub(crate) use calls::calls;
pub(crate) use handshakes::{Handshakes, Visit, handshakes};
pub(crate) use paced::Paced;
pub(crate) use pingpong::PingPong;
pub(crate) use short::{Closer, Short};

use crate::hello::{ANSWER, Hello, Job};
use crate::wire::Wire;

/// Time after which an operation on loopback counts as hung.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The address of the clients' connections and their first flight.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) hello: Arc<Hello>,
    /// TLS to begin before the hello, and the name to ask for in it.
    pub(crate) tls: Option<(Arc<ClientConfig>, &'static str)>,
}

impl Target {
    /// Clients without TLS of their own.
    pub(crate) fn plain(address: SocketAddr, hello: &Arc<Hello>) -> Self {
        Self { address, hello: Arc::clone(hello), tls: None }
    }

    /// Connects, sends the hello and waits for the answer: from here on the proxy relays.
    pub(crate) fn open(&self, job: Job) -> io::Result<Wire> {
        self.open_with(&self.hello.for_job(job))
    }

    /// Like `open`, for one of many services.
    pub(crate) fn open_service(&self, job: Job, number: u32) -> io::Result<Wire> {
        self.open_with(&self.hello.for_service(job, number))
    }

    /// Opens many connections with one copy of the hello.
    pub(crate) fn open_many(&self, job: Job, count: usize) -> io::Result<Vec<Wire>> {
        let hello = self.hello.for_job(job);
        (0..count).map(|_| self.open_with(&hello)).collect()
    }

    fn open_with(&self, hello: &[u8]) -> io::Result<Wire> {
        let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut wire = match &self.tls {
            Some((config, name)) => Wire::client(stream, config, name)?,
            None => Wire::Plain(stream),
        };
        wire.write_all(hello)?;
        let mut answer = [0];
        wire.read_exact(&mut answer)?;
        check_answer(&answer)?;
        Ok(wire)
    }
}

fn check_answer(bytes: &[u8]) -> io::Result<()> {
    if bytes == [ANSWER] {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("unexpected answer to the hello: {bytes:02x?}")))
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed during the load")
}
