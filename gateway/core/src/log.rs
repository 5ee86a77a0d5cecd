//! Writes logs of JSON lines, and defines the access log's: one bounded buffer per worker, and one thread that writes. A worker never waits; lines that
//! do not fit are dropped and counted. Untrusted text in a line is escaped.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

use crate::hello::Alpn;
use crate::identities::Identities;
use crate::reason::Reason;
use crate::snapshot::Name;

/// Lines that arrive within this time are written together.
const GATHER: Duration = Duration::from_millis(20);

/// A stream of JSON lines: the access log, or the audit log.
#[derive(Debug)]
pub struct LineLog {
    name: &'static str,
    lanes: Vec<Mutex<Vec<u8>>>,
    limit: usize,
    bell: Mutex<Bell>,
    rings: Condvar,
    /// Lines dropped.
    dropped: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Bell {
    rung: bool,
    closed: bool,
    /// All queued lines are written.
    ended: bool,
}

impl LineLog {
    /// Creates `lanes` buffers of `limit` bytes. The name is its thread's.
    #[must_use]
    pub fn new(name: &'static str, lanes: usize, limit: usize, dropped: Arc<AtomicU64>) -> LineLog {
        LineLog {
            name,
            lanes: (0..lanes).map(|_| Mutex::default()).collect(),
            limit,
            bell: Mutex::default(),
            rings: Condvar::new(),
            dropped,
        }
    }

    /// Queues a line.
    pub(crate) fn write(&self, lane: usize, line: &impl Serialize) {
        let Some(lane) = self.lanes.get(lane) else { return };
        let mut buffer = lane.lock().unwrap_or_else(PoisonError::into_inner);
        let before = buffer.len();
        let whole = serde_json::to_writer(&mut *buffer, line).is_ok();
        buffer.push(b'\n');
        if !whole || buffer.len() > self.limit {
            buffer.truncate(before);
            self.dropped.fetch_add(1, Relaxed);
        } else if before == 0 {
            drop(buffer);
            self.bell().rung = true;
            self.rings.notify_one();
        }
    }

    /// Starts the thread that writes to `out` until the log is closed.
    ///
    /// # Errors
    /// A thread cannot be created.
    pub fn start(self: &Arc<Self>, mut out: impl Write + Send + 'static) -> io::Result<JoinHandle<()>> {
        let log = Arc::clone(self);
        std::thread::Builder::new().name(self.name.to_owned()).spawn(move || {
            while log.wait() {
                log.flush(&mut out);
            }
            log.flush(&mut out);
            log.bell().ended = true;
            log.rings.notify_all();
        })
    }

    /// Tells the thread to write queued lines and stop; false if it has not stopped within `patience`.
    pub fn close(&self, patience: Duration) -> bool {
        let mut bell = self.bell();
        bell.closed = true;
        self.rings.notify_all();
        let lasts = |bell: &mut Bell| !bell.ended;
        let waited = self.rings.wait_timeout_while(bell, patience, lasts);
        waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }

    fn bell(&self) -> MutexGuard<'_, Bell> {
        self.bell.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lines; false when the log is closed.
    fn wait(&self) -> bool {
        let bell = self.bell();
        let quiet = |bell: &mut Bell| !bell.rung && !bell.closed;
        let mut bell = self.rings.wait_while(bell, quiet).unwrap_or_else(PoisonError::into_inner);
        bell.rung = false;
        let open = |bell: &mut Bell| !bell.closed;
        let (bell, _) =
            self.rings.wait_timeout_while(bell, GATHER, open).unwrap_or_else(PoisonError::into_inner);
        !bell.closed
    }

    fn flush(&self, out: &mut impl Write) {
        for lane in &self.lanes {
            let mut buffer = lane.lock().unwrap_or_else(PoisonError::into_inner);
            let lines = std::mem::take(&mut *buffer);
            drop(buffer);
            // Nobody who reads, or a full disk, loses the lines and does not stop the gateway.
            if out.write_all(&lines).and_then(|()| out.flush()).is_err() {
                let count = lines.iter().filter(|byte| **byte == b'\n').count();
                self.dropped.fetch_add(count as u64, Relaxed);
            }
        }
    }
}

/// One line of the access log: an ended connection.
#[derive(Debug, Serialize)]
pub(crate) struct Line<'a> {
    pub(crate) time: String,
    pub(crate) listener: &'a str,
    pub(crate) peer: SocketAddr,
    pub(crate) sni: Option<&'a str>,
    #[serde(serialize_with = "escaped")]
    pub(crate) alpn: &'a Alpn,
    pub(crate) service: Option<Name<'a>>,
    #[serde(flatten)]
    pub(crate) identities: &'a Identities,
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) cluster: &'a str,
    pub(crate) locality: Option<String>,
    pub(crate) attempts: u32,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    #[serde(serialize_with = "millis")]
    pub(crate) hello_ms: Option<Duration>,
    #[serde(serialize_with = "millis")]
    pub(crate) connect_ms: Option<Duration>,
    #[serde(serialize_with = "millis")]
    pub(crate) first_byte_ms: Option<Duration>,
    #[serde(serialize_with = "millis")]
    pub(crate) duration_ms: Option<Duration>,
    pub(crate) reason: Reason,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<&'static str>,
}

/// Maximum protocols in a line: a client may offer thousands.
const MAX_PROTOCOLS: usize = 16;
/// Maximum bytes of one protocol in a line: registered ones have at most 20.
const MAX_PROTOCOL: usize = 32;

fn escaped<S: Serializer>(alpn: &Alpn, serializer: S) -> Result<S::Ok, S::Error> {
    let names = alpn.iter().take(MAX_PROTOCOLS).map(|name| name.get(..MAX_PROTOCOL).unwrap_or(name));
    serializer.collect_seq(names.map(|name| name.escape_ascii().to_string()))
}

/// Serializes milliseconds with three decimals.
fn millis<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    duration.map(|duration| (duration.as_secs_f64() * 1e6).round() / 1e3).serialize(serializer)
}

/// Formats a time in UTC, with milliseconds.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
