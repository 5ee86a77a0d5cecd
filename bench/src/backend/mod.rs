//! The service behind every system: reads the hello, answers with one byte, then does the job that the hello
//! names. Two threads with epoll and no allocation per event; not a model of a real server.

pub(crate) mod closing;
pub(crate) mod failing;
pub(crate) mod tls;
mod transfer;

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::SocketFlags;
use rustls::ServerConfig;
use slab::Slab;

use self::transfer::Transfers;
use crate::hello::{ANSWER, Hello, Job};
use crate::poller::{Interest, Poller, Ready, try_again};
use crate::stop::Stop;
use crate::wire::Wire;

/// Size of one read.
const CHUNK: usize = 128 * 1024;
const LISTENER: usize = usize::MAX;

/// A running backend; dropping it ends its threads.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: Stop,
    live: AtomicUsize,
    corrupt: AtomicUsize,
    taken_in: AtomicU64,
    resumed: AtomicU64,
    release: AtomicBool,
}

impl Backend {
    /// Starts the backend on a free port of this address, in the network namespace of the calling thread.
    pub(crate) fn start(hello: Arc<Hello>, ip: IpAddr) -> io::Result<Self> {
        Self::start_with(hello, ip, None)
    }

    /// Likewise, with TLS: the hello comes within the session.
    pub(crate) fn start_tls(hello: Arc<Hello>, ip: IpAddr, tls: Arc<ServerConfig>) -> io::Result<Self> {
        Self::start_with(hello, ip, Some(tls))
    }

    fn start_with(hello: Arc<Hello>, ip: IpAddr, tls: Option<Arc<ServerConfig>>) -> io::Result<Self> {
        let listener = listen(ip)?;
        let address = listener.local_addr()?;
        let shared = Arc::<Shared>::default();
        let transfers = Arc::new(Transfers::new(Arc::clone(&shared))?);
        let front = Front::new(listener, (hello, tls), Arc::clone(&transfers), Arc::clone(&shared))?;
        let threads = vec![
            spawn("backend-front", move || front.run())?,
            spawn("backend-transfer", move || transfers.run())?,
        ];
        Ok(Self { address, shared, threads })
    }

    /// Number of altered hellos since the start.
    pub(crate) fn corrupt(&self) -> usize {
        self.shared.corrupt.load(Ordering::Relaxed)
    }

    /// Bytes received by sinks since the start.
    pub(crate) fn taken_in(&self) -> u64 {
        self.shared.taken_in.load(Ordering::Relaxed)
    }

    /// Handshakes that resumed a session since the start.
    pub(crate) fn resumed(&self) -> u64 {
        self.shared.resumed.load(Ordering::Relaxed)
    }

    /// Closes every held connection from this side; see [`crate::load::short`] for the reason.
    pub(crate) fn release_held(&self) {
        self.shared.release.store(true, Ordering::Release);
    }

    /// Waits until all connections have ended, so that measurements do not overlap.
    pub(crate) fn wait_until_quiet(&self, stop: &Stop) -> io::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let live = self.shared.live.load(Ordering::Acquire);
            if live == 0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("{live} connections are still open at the backend")));
            }
            stop.check()?;
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.shared.stop.request();
        for thread in self.threads.drain(..) {
            // A panicked thread has already reported to stderr.
            let _ = thread.join();
        }
    }
}

fn listen(ip: IpAddr) -> io::Result<TcpListener> {
    use rustix::net::{AddressFamily, SocketType, bind, listen, socket_with};
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    bind(&socket, &SocketAddr::from((ip, 0)))?;
    // std's listeners have a backlog of 128, too small for a burst of idle connections.
    listen(&socket, 4096)?;
    Ok(TcpListener::from(socket))
}

fn spawn<E: std::fmt::Display>(
    name: &'static str,
    body: impl FnOnce() -> Result<(), E> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(move || {
        if let Err(error) = body() {
            eprintln!("{name}: {error}");
        }
    })
}

struct Conn {
    wire: Wire,
    read: usize,
    job: Option<Job>,
    _live: Live,
}

/// Counts a connection as live until it is dropped.
struct Live(Arc<Shared>);

impl Live {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.live.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(shared))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What to do with a connection after an event.
enum Step {
    Keep,
    Close,
    Transfer,
    Verify,
}

/// Accepts, reads hellos, and does all jobs except endless transfers.
struct Front {
    listener: TcpListener,
    poller: Poller,
    conns: Slab<Conn>,
    hello: Arc<Hello>,
    tls: Option<Arc<ServerConfig>>,
    transfers: Arc<Transfers>,
    shared: Arc<Shared>,
    buffer: Vec<u8>,
}

impl Front {
    fn new(
        listener: TcpListener,
        (hello, tls): (Arc<Hello>, Option<Arc<ServerConfig>>),
        transfers: Arc<Transfers>,
        shared: Arc<Shared>,
    ) -> io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(&listener, LISTENER, Interest::IN)?;
        let conns = Slab::with_capacity(8192);
        Ok(Self { listener, poller, conns, hello, tls, transfers, shared, buffer: vec![0; CHUNK] })
    }

    fn run(mut self) -> io::Result<()> {
        let mut ready = Ready::new();
        while !self.shared.stop.requested() {
            self.poller.wait(&mut ready)?;
            for (token, _) in ready.iter() {
                if token == LISTENER { self.accept()? } else { self.serve(token) }
            }
            if self.shared.release.swap(false, Ordering::AcqRel) {
                self.conns.retain(|_, conn| {
                    let is_held = conn.job == Some(Job::Hold);
                    if is_held {
                        conn.wire.end();
                    }
                    !is_held
                });
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket: OwnedFd = match rustix::net::accept_with(&self.listener, flags) {
                Ok(socket) => socket,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                // The client has already left.
                Err(rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let stream = TcpStream::from(socket);
            let wire = match &self.tls {
                Some(config) => Wire::server(stream, config)?,
                None => Wire::Plain(stream),
            };
            let live = Live::new(&self.shared);
            let entry = self.conns.vacant_entry();
            self.poller.add(wire.socket(), entry.key(), Interest::IN)?;
            entry.insert(Conn { wire, read: 0, job: None, _live: live });
        }
    }

    fn serve(&mut self, token: usize) {
        let Some(conn) = self.conns.get_mut(token) else { return };
        let next = if conn.read < self.hello.len() {
            read_hello(conn, &self.hello, &mut self.buffer, &self.shared.resumed)
        } else {
            echo(conn, &mut self.buffer)
        };
        match next {
            Ok(Step::Keep) => {}
            Ok(Step::Close) => drop(self.conns.remove(token)),
            Ok(Step::Transfer) => self.hand_over(token, |front, conn| front.transfers.take(conn)),
            Ok(Step::Verify) => self.hand_over(token, |_, conn| {
                // Not joined: the thread ends with its connection, which a check always closes.
                spawn("backend-verify", move || echo_all(conn)).map(drop)
            }),
            Err(error) => {
                let corrupt = error.kind() == io::ErrorKind::InvalidData;
                self.shared.corrupt.fetch_add(usize::from(corrupt), Ordering::Relaxed);
                drop(self.conns.remove(token));
            }
        }
    }

    fn hand_over(&mut self, token: usize, to: impl FnOnce(&Self, Conn) -> io::Result<()>) {
        let conn = self.conns.remove(token);
        let done = self.poller.remove(conn.wire.socket()).and_then(|()| to(self, conn));
        if let Err(error) = done {
            eprintln!("backend: connection lost: {error}");
        }
    }
}

fn read_hello(conn: &mut Conn, hello: &Hello, buffer: &mut [u8], resumed: &AtomicU64) -> io::Result<Step> {
    let wanted = hello.len() - conn.read;
    let room = buffer.get_mut(..wanted).unwrap_or_default();
    let part = match conn.wire.read(room) {
        Ok(0) => return Ok(Step::Close),
        Ok(length) => room.get(..length).unwrap_or_default(),
        Err(error) if try_again(&error) => return Ok(Step::Keep),
        Err(error) => return Err(error),
    };
    if let Some(job) = hello.accept(conn.read, part)? {
        conn.job = Some(job);
    }
    conn.read += part.len();
    if conn.read < hello.len() {
        return Ok(Step::Keep);
    }
    resumed.fetch_add(u64::from(conn.wire.is_resumed() == Some(true)), Ordering::Relaxed);
    answer(conn)
}

fn answer(conn: &mut Conn) -> io::Result<Step> {
    if conn.job != Some(Job::Once) {
        conn.wire.socket().set_nodelay(true)?;
    }
    conn.wire.write_all(&[ANSWER])?;
    if conn.job == Some(Job::Once) {
        conn.wire.end();
    }
    Ok(match conn.job {
        Some(Job::Echo | Job::Hold) => Step::Keep,
        Some(Job::Source | Job::Sink | Job::Both) => Step::Transfer,
        Some(Job::Verify) => Step::Verify,
        Some(Job::Once) | None => Step::Close,
    })
}

/// Echoes. The load never has enough in flight to fill the socket's buffer.
fn echo(conn: &mut Conn, buffer: &mut [u8]) -> io::Result<Step> {
    match conn.wire.read(buffer) {
        Ok(0) => Ok(Step::Close),
        Ok(length) => {
            conn.wire.write_all(buffer.get(..length).unwrap_or_default())?;
            Ok(Step::Keep)
        }
        Err(error) if try_again(&error) => Ok(Step::Keep),
        Err(error) => Err(error),
    }
}

/// Echoes any amount, on a separate thread, until the client closes its direction.
fn echo_all(mut conn: Conn) -> io::Result<()> {
    let socket = conn.wire.socket();
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.set_write_timeout(Some(Duration::from_secs(10)))?;
    let mut buffer = vec![0; CHUNK];
    loop {
        match conn.wire.read(&mut buffer)? {
            0 => break,
            length => conn.wire.write_all(buffer.get(..length).unwrap_or_default())?,
        }
    }
    conn.wire.end();
    conn.wire.socket().shutdown(std::net::Shutdown::Write)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::load::Target;

    fn world() -> (Backend, Target) {
        let hello = Arc::new(Hello::new().unwrap());
        let backend = Backend::start(Arc::clone(&hello), Ipv4Addr::LOCALHOST.into()).unwrap();
        let target = Target::plain(backend.address, &hello);
        (backend, target)
    }

    #[test]
    fn backend_runs_every_job_and_leaks_nothing() {
        let (backend, target) = world();
        let mut byte = [0];
        let mut once = target.open(Job::Once).unwrap();
        assert_eq!(once.read(&mut byte).unwrap(), 0, "closed by the backend");
        let mut echo = target.open(Job::Echo).unwrap();
        echo.write_all(b"x").unwrap();
        echo.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        let mut source = target.open(Job::Source).unwrap();
        source.read_exact(&mut vec![0; 1 << 20]).unwrap();
        let mut both = target.open(Job::Both).unwrap();
        both.write_all(&[0; 4096]).unwrap();
        both.read_exact(&mut vec![0; 1 << 20]).unwrap();
        let mut sink = target.open(Job::Sink).unwrap();
        sink.write_all(&[0; 4096]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while backend.taken_in() < 8192 {
            assert!(Instant::now() < deadline, "{} bytes were received", backend.taken_in());
            std::thread::yield_now();
        }
        let mut hold = target.open(Job::Hold).unwrap();
        backend.release_held();
        assert_eq!(hold.read(&mut byte).unwrap(), 0, "released");
        drop((once, echo, source, both, sink, hold));
        backend.wait_until_quiet(&Stop::default()).unwrap();
    }

    #[test]
    fn backend_joins_fragmented_hello_and_counts_altered_one() {
        let (backend, target) = world();
        let bytes = target.hello.for_job(Job::Once);
        let mut stream = TcpStream::connect(target.address).unwrap();
        stream.set_nodelay(true).unwrap();
        for piece in bytes.chunks(bytes.len() / 3) {
            stream.write_all(piece).unwrap();
        }
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all, [ANSWER]);

        let mut changed = bytes;
        *changed.last_mut().unwrap() ^= 1;
        let mut stream = TcpStream::connect(target.address).unwrap();
        stream.write_all(&changed).unwrap();
        all.clear();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all, [] as [u8; 0]);
        assert_eq!(backend.corrupt(), 1);
    }
}
