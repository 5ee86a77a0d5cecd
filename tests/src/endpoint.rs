//! Endpoints under control of a test: they accept on request, or run a script for each connection.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::client::prepare;
use crate::hello::read_hello;
use crate::wait::DEADLINE;

/// An endpoint that accepts on request.
#[derive(Debug)]
pub struct Endpoint(TcpListener);

impl Default for Endpoint {
    fn default() -> Self {
        Endpoint::new()
    }
}

impl Endpoint {
    /// Listens on a free port of loopback.
    #[must_use]
    pub fn new() -> Endpoint {
        Endpoint::at("127.0.0.1:0".parse().unwrap())
    }

    /// Listens on this address.
    #[must_use]
    pub fn at(address: SocketAddr) -> Endpoint {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(4096).unwrap();
        Endpoint(socket.into())
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// Accepts the next connection without reading from it.
    #[track_caller]
    pub fn accept(&self) -> TcpStream {
        self.accept_within(DEADLINE).expect("the gateway connects to the endpoint")
    }

    /// Accepts the next connection and reads its hello.
    #[track_caller]
    pub fn take(&self) -> (TcpStream, Vec<u8>) {
        let mut stream = self.accept();
        let hello = read_hello(&mut stream).expect("a whole hello arrives");
        (stream, hello)
    }

    /// Accepts a pending connection, if there is one.
    #[must_use]
    pub fn waiting(&self) -> Option<TcpStream> {
        self.0.set_nonblocking(true).unwrap();
        let answer = self.0.accept();
        self.0.set_nonblocking(false).unwrap();
        let (stream, _) = answer.ok()?;
        stream.set_nonblocking(false).unwrap();
        prepare(&stream);
        Some(stream)
    }

    /// Whether there has been no connection.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.waiting().is_none()
    }

    fn accept_within(&self, limit: Duration) -> io::Result<TcpStream> {
        SockRef::from(&self.0).set_read_timeout(Some(limit))?;
        let (stream, _) = self.0.accept()?;
        prepare(&stream);
        Ok(stream)
    }
}

/// An endpoint that runs a script for each connection, each on its own thread.
#[derive(Debug)]
pub struct Scripted {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    stop: AtomicBool,
    accepted: AtomicUsize,
    hellos: Mutex<Vec<Vec<u8>>>,
}

impl Scripted {
    /// Runs `script` with each connection and its hello.
    #[must_use]
    pub fn new(script: impl Fn(TcpStream, Vec<u8>) + Send + Sync + 'static) -> Scripted {
        Scripted::raw(Endpoint::new(), move |mut stream, state| {
            if let Ok(hello) = read_hello(&mut stream) {
                state.hellos.lock().unwrap().push(hello.clone());
                script(stream, hello);
            }
        })
    }

    /// Runs `script` with each connection before any read.
    #[must_use]
    pub fn unread(script: impl Fn(TcpStream) + Send + Sync + 'static) -> Scripted {
        Scripted::unread_at(Endpoint::new(), script)
    }

    /// Like `unread`, on a given endpoint.
    #[must_use]
    pub fn unread_at(endpoint: Endpoint, script: impl Fn(TcpStream) + Send + Sync + 'static) -> Scripted {
        Scripted::raw(endpoint, move |stream, _| script(stream))
    }

    /// Answers the hello with `greeting`, then echoes until the client closes.
    #[must_use]
    pub fn echo(greeting: &'static [u8]) -> Scripted {
        Scripted::echo_at(Endpoint::new(), greeting)
    }

    /// Like `echo`, on a given endpoint.
    #[must_use]
    pub fn echo_at(endpoint: Endpoint, greeting: &'static [u8]) -> Scripted {
        Scripted::raw(endpoint, move |mut stream, state| {
            if let Ok(hello) = read_hello(&mut stream) {
                state.hellos.lock().unwrap().push(hello);
                let _gone = stream.write_all(greeting).and_then(|()| {
                    let mut from = stream.try_clone()?;
                    io::copy(&mut from, &mut stream)
                });
            }
        })
    }

    /// Answers the hello with an alert and closes.
    #[must_use]
    pub fn alerting(code: u8) -> Scripted {
        Scripted::new(move |mut stream, _| {
            let _gone = stream.write_all(&crate::client::alert(code));
        })
    }

    fn raw(endpoint: Endpoint, script: impl Fn(TcpStream, &State) + Send + Sync + 'static) -> Scripted {
        let address = endpoint.address();
        let state = Arc::new(State::default());
        let script = Arc::new(script);
        let own = Arc::clone(&state);
        // Polls: a thread in another namespace cannot be woken by a connection from here.
        SockRef::from(&endpoint.0).set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let thread = thread::spawn(move || {
            while !own.stop.load(SeqCst) {
                let Ok((stream, _)) = endpoint.0.accept() else { continue };
                own.accepted.fetch_add(1, SeqCst);
                prepare(&stream);
                let (script, state) = (Arc::clone(&script), Arc::clone(&own));
                thread::Builder::new().stack_size(256 * 1024).spawn(move || script(stream, &state)).unwrap();
            }
        });
        Scripted { address, state, thread: Some(thread) }
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Number of accepted connections.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.state.accepted.load(SeqCst)
    }

    /// All hellos read so far.
    #[must_use]
    pub fn hellos(&self) -> Vec<Vec<u8>> {
        self.state.hellos.lock().unwrap().clone()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.state.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// An address that was free a moment ago, for a listener that starts later.
#[must_use]
pub fn free() -> SocketAddr {
    Endpoint::new().address()
}

/// An address that refuses connections for as long as the test runs: bound, so that nothing else gets its port, and
/// without a listener.
#[must_use]
pub fn closed() -> SocketAddr {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(socket);
    address
}

/// An address that answers no connection attempts, as its accept queue is full, until dropped.
#[derive(Debug)]
pub struct BlackHole {
    listener: Socket,
    _queued: Vec<Socket>,
}

impl Default for BlackHole {
    fn default() -> Self {
        BlackHole::new()
    }
}

impl BlackHole {
    /// Creates a listener with a full queue.
    #[must_use]
    pub fn new() -> BlackHole {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let queued = (0..4)
            .map(|_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                let _pending = socket.connect(&address);
                socket
            })
            .collect();
        BlackHole { listener, _queued: queued }
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap().as_socket().unwrap()
    }

    /// Becomes an endpoint that accepts. Its first connections are those that had filled the queue.
    #[must_use]
    pub fn open(self) -> TcpListener {
        self.listener.into()
    }
}
