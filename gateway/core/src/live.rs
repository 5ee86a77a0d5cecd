//! Keeps a worker's table of live connections, through which drain, timeouts and `/connections` read and end them. One
//! coarse tick per worker visits the table instead of one timer per connection.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, SystemTime};

use isthmus_certs::SpiffeId;
use isthmus_model::HostName;
use slab::Slab;

use crate::chains::Chain;
use crate::reason::Reason;
use crate::snapshot::Service;
use crate::socket::{self, Millis};

/// Interval between ticks, and ticks for one pass over the table: each connection is checked once a second, a quarter
/// of them at a time.
const TICK: Duration = Duration::from_millis(250);
const PARTS: usize = 4;

/// A live connection: written by its task, read by others.
#[derive(Debug)]
pub struct Conn {
    /// Unique in the process.
    pub id: u64,
    /// Index of the listener.
    pub listener: usize,
    /// The peer address of the socket.
    pub peer: SocketAddr,
    /// When it was accepted.
    pub since: SystemTime,
    /// When it was accepted, in [`Millis`].
    pub accepted: Millis,
    /// The client's address from a PROXY header.
    pub source: OnceLock<SocketAddr>,
    /// The SNI of its hello.
    pub sni: OnceLock<HostName>,
    /// The invalid SNI of a refused hello, escaped and truncated.
    refused_name: OnceLock<Box<str>>,
    target: Mutex<Option<Target>>,
    admission: Mutex<Option<Box<Admission>>>,
    /// Bytes from the client.
    pub bytes_in: AtomicU64,
    /// Bytes from the server.
    pub bytes_out: AtomicU64,
    last_byte: AtomicU64,
    half_closed: AtomicU64,
    age: AtomicU8,
    due_when_silent: AtomicBool,
    /// Its task itself waits for the server's first byte, and moves the connection.
    first_byte_timed: AtomicBool,
    /// Memory held by its hello.
    hello_bytes: AtomicUsize,
    /// The memory of its hello is needed for other sources.
    hello_revoked: AtomicBool,
    end: AtomicU8,
    task: OnceLock<Waker>,
}

/// The service and endpoint of a connection.
#[derive(Clone, Debug)]
pub struct Target {
    /// The service.
    pub service: Arc<Service>,
    /// The endpoint's address.
    pub endpoint: SocketAddr,
    /// When it was connected; none while connecting.
    pub connected: Option<Millis>,
}

/// Who is at the ends of a connection, where the gateway knows it; checked again while the connection lives.
#[derive(Clone, Debug, Default)]
pub(crate) struct Admission {
    /// The identity of the client.
    pub(crate) caller: Option<SpiffeId>,
    /// It has that identity by its address.
    pub(crate) by_address: bool,
    /// The identity of the server.
    pub(crate) server: Option<SpiffeId>,
    /// The identity that the gateway itself presents, by a certificate of the agent.
    pub(crate) presented: Option<SpiffeId>,
    /// What client and server have proven.
    pub(crate) chains: [Option<Arc<Chain>>; 2],
}

const LIVES: u8 = u8::MAX;
const YOUNG: u8 = 0;
const COMING_OF_AGE: u8 = 1;
const OF_AGE: u8 = 2;
/// Age from which a connection gets keepalive; most end before.
const AGE_MS: Millis = 1_000;
/// A connection that has moved no byte for this long is checked for a reset if it holds any, and gives back buffers.
pub(crate) const SILENT_MS: Millis = 1_000;

impl Conn {
    pub(crate) fn new(id: u64, listener: usize, peer: SocketAddr) -> Conn {
        let now = socket::now();
        Conn {
            id,
            listener,
            peer,
            since: SystemTime::now(),
            accepted: now,
            source: OnceLock::new(),
            sni: OnceLock::new(),
            refused_name: OnceLock::new(),
            target: Mutex::default(),
            admission: Mutex::default(),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            last_byte: AtomicU64::new(now),
            half_closed: AtomicU64::new(0),
            age: AtomicU8::new(YOUNG),
            due_when_silent: AtomicBool::new(false),
            first_byte_timed: AtomicBool::new(false),
            hello_bytes: AtomicUsize::new(0),
            hello_revoked: AtomicBool::new(false),
            end: AtomicU8::new(LIVES),
            task: OnceLock::new(),
        }
    }

    /// Returns the client's address, from the PROXY header if there is one.
    #[must_use]
    pub fn client(&self) -> SocketAddr {
        self.source.get().copied().unwrap_or(self.peer)
    }

    /// Returns the SNI for the log, valid or not.
    pub(crate) fn asked_for(&self) -> Option<&str> {
        self.sni.get().map(HostName::as_str).or_else(|| self.refused_name.get().map(|name| &**name))
    }

    pub(crate) fn set_refused_name(&self, name: String) {
        let _first = self.refused_name.set(name.into());
    }

    /// Returns its service and endpoint, from the first attempt on.
    #[must_use]
    pub fn target(&self) -> Option<Target> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn leads_to(&self, target: Target) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = Some(target);
    }

    /// Returns who is at its ends, as far as that is known.
    pub(crate) fn admission(&self) -> Admission {
        let known = self.admission.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_deref().cloned().unwrap_or_default()
    }

    /// Records who is at its ends.
    pub(crate) fn admit(&self, record: impl FnOnce(&mut Admission)) {
        record(self.admission.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default());
    }

    /// When a byte last moved.
    #[must_use]
    pub fn last_byte(&self) -> Millis {
        self.last_byte.load(Relaxed)
    }

    /// Counts bytes of one direction. Only the connection's own task writes, so no atomic addition is needed.
    pub(crate) fn moved(&self, count: &AtomicU64, bytes: usize, now: Millis) {
        count.store(count.load(Relaxed).saturating_add(bytes as u64), Relaxed);
        self.last_byte.store(now, Relaxed);
    }

    pub(crate) fn set_half_closed(&self, now: Millis) {
        self.half_closed.store(now.max(1), Relaxed);
    }

    /// Records whether its task has something to do once no byte has moved for [`SILENT_MS`].
    pub(crate) fn wake_when_silent(&self, is_due: bool) {
        self.due_when_silent.store(is_due, Relaxed);
    }

    /// Leaves the first-byte timeout to the connection's task, until the result is dropped.
    pub(crate) fn time_first_byte(&self) -> FirstByteTimed<'_> {
        self.first_byte_timed.store(true, Relaxed);
        FirstByteTimed(self)
    }

    /// Returns the memory held by its hello; 0 once it cannot be replayed any more.
    pub(crate) fn hello_bytes(&self) -> usize {
        self.hello_bytes.load(Relaxed)
    }

    pub(crate) fn set_hello_bytes(&self, bytes: usize) {
        self.hello_bytes.store(bytes, Relaxed);
    }

    /// Revokes the memory of its hello: the connection is relayed now if a server has the hello, and refused if not.
    pub(crate) fn revoke_hello(&self) {
        self.hello_revoked.store(true, Relaxed);
        self.wake();
    }

    pub(crate) fn is_hello_revoked(&self) -> bool {
        self.hello_revoked.load(Relaxed)
    }

    /// Runs the beginning, which holds the hello, until it ends or the memory is revoked. A beginning that has a
    /// server by then completes when it is polled once more.
    pub(crate) async fn until_revoked<T>(
        &self,
        mut beginning: Pin<&mut impl Future<Output = Result<T, Reason>>>,
    ) -> Result<T, Reason> {
        std::future::poll_fn(|cx| match beginning.as_mut().poll(cx) {
            Poll::Pending if self.is_hello_revoked() => Poll::Ready(Err(Reason::LimitMemory)),
            outcome => outcome,
        })
        .await
    }

    /// True once, when the connection is old enough for keepalive.
    pub(crate) fn came_of_age(&self) -> bool {
        let due = self.age.load(Relaxed) == COMING_OF_AGE;
        if due {
            self.age.store(OF_AGE, Relaxed);
        }
        due
    }

    /// Asks the connection to end with a reason; false if it was asked before.
    pub(crate) fn end(&self, reason: Reason) -> bool {
        let is_first = self.end.compare_exchange(LIVES, reason as u8, Relaxed, Relaxed).is_ok();
        if is_first {
            self.wake();
        }
        is_first
    }

    fn wake(&self) {
        if let Some(task) = self.task.get() {
            task.wake_by_ref();
        }
    }

    /// Whether it was asked to end.
    pub(crate) fn is_ending(&self) -> bool {
        self.asked_to_end().is_some()
    }

    /// Whether it was asked to end because its caller is not allowed any more.
    pub(crate) fn is_denied(&self) -> bool {
        matches!(self.asked_to_end(), Some(Reason::IdentityDenied | Reason::SourceDenied))
    }

    fn asked_to_end(&self) -> Option<Reason> {
        Reason::ALL.get(usize::from(self.end.load(Relaxed))).copied()
    }

    /// Runs the connection until it ends or is asked to end. Must be awaited by the connection's own task: a task's
    /// waker stays the same and is stored once.
    ///
    /// Pinned by the caller: a future passed by value would be stored twice.
    pub(crate) async fn until_ended(&self, mut story: Pin<&mut impl Future<Output = Reason>>) -> Reason {
        std::future::poll_fn(|cx| {
            self.task.get_or_init(|| cx.waker().clone());
            match self.asked_to_end() {
                Some(reason) => Poll::Ready(reason),
                None => story.as_mut().poll(cx),
            }
        })
        .await
    }

    /// Returns the timeout that this connection has passed, if any.
    fn overdue(&self, now: Millis) -> Option<Reason> {
        let target = self.target()?;
        let limits = &target.service.rules.timeouts;
        let passed = |since: Millis, limit: Option<Duration>| {
            limit.is_some_and(|limit| u128::from(now.saturating_sub(since)) >= limit.as_millis())
        };
        let half_closed = self.half_closed.load(Relaxed);
        // Idle time starts when the hello reaches a server; connecting has its own limits.
        let silent_since = self.last_byte().max(target.connected.unwrap_or(now));
        if passed(self.accepted, limits.max_duration) {
            Some(Reason::MaxDuration)
        } else if self.bytes_out.load(Relaxed) == 0
            && !self.first_byte_timed.load(Relaxed)
            && target.connected.is_some_and(|connected| passed(connected, limits.first_byte))
        {
            Some(Reason::FirstByteTimeout)
        } else if half_closed != 0 && passed(silent_since.max(half_closed), limits.half_closed) {
            Some(Reason::HalfCloseTimeout)
        } else if passed(silent_since, limits.idle) {
            Some(Reason::IdleTimeout)
        } else {
            None
        }
    }
}

/// While it exists, a connection's task itself waits for the server's first byte.
#[derive(Debug)]
pub(crate) struct FirstByteTimed<'a>(&'a Conn);

impl Drop for FirstByteTimed<'_> {
    fn drop(&mut self) {
        self.0.first_byte_timed.store(false, Relaxed);
    }
}

/// The live connections of one worker.
#[derive(Debug, Default)]
pub struct Live {
    table: Mutex<Slab<Arc<Conn>>>,
    count: AtomicUsize,
    clock: AtomicU64,
}

impl Live {
    fn table(&self) -> MutexGuard<'_, Slab<Arc<Conn>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, conn: &Arc<Conn>) -> usize {
        self.count.fetch_add(1, Relaxed);
        self.table().insert(Arc::clone(conn))
    }

    pub(crate) fn remove(&self, key: usize) {
        self.table().try_remove(key);
        self.count.fetch_sub(1, Relaxed);
    }

    /// Number of connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Whether there are no connections.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns all connections at this moment.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Conn>> {
        self.table().iter().map(|(_, conn)| Arc::clone(conn)).collect()
    }

    /// Returns connections that hold memory of a hello and whose memory was not revoked.
    pub(crate) fn holding(&self) -> Vec<Arc<Conn>> {
        let table = self.table();
        let holding = |conn: &&Arc<Conn>| conn.hello_bytes() > 0 && !conn.is_hello_revoked();
        table.iter().map(|(_, conn)| conn).filter(holding).map(Arc::clone).collect()
    }

    /// Returns the time of the last tick: exact enough for checks once a second, without a clock read.
    pub(crate) fn coarse_now(&self) -> Millis {
        self.clock.load(Relaxed)
    }

    /// Ends overdue connections, forever.
    pub(crate) async fn sweep(self: Arc<Self>) -> io::Result<()> {
        let mut tick = tokio::time::interval(TICK);
        let mut part = 0;
        loop {
            tick.tick().await;
            let now = socket::now();
            self.clock.store(now, Relaxed);
            self.visit(part, now);
            part = (part + 1) % PARTS;
        }
    }

    fn visit(&self, part: usize, now: Millis) {
        let table = self.table();
        let length = table.capacity().div_ceil(PARTS);
        for key in part * length..(part + 1) * length {
            let Some(conn) = table.get(key) else { continue };
            if let Some(reason) = conn.overdue(now) {
                conn.end(reason);
            } else if conn.age.load(Relaxed) == YOUNG
                && conn
                    .target()
                    .and_then(|target| target.connected)
                    .is_some_and(|connected| now.saturating_sub(connected) >= AGE_MS)
            {
                conn.age.store(COMING_OF_AGE, Relaxed);
                conn.wake();
            } else if conn.due_when_silent.load(Relaxed) && now.saturating_sub(conn.last_byte()) >= SILENT_MS
            {
                conn.wake();
            }
        }
    }
}
