//! The access log's way out: one bounded buffer for each worker, one thread that writes. A worker never
//! waits for it; what does not fit is counted. What a line says is in `account`.

use std::io::{self, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::metrics::Metrics;

/// Lines that come within this are written together.
const GATHER: Duration = Duration::from_millis(20);

/// The buffers and the thread's bell.
#[derive(Debug)]
pub struct AccessLog {
    lanes: Vec<Mutex<Vec<u8>>>,
    limit: usize,
    bell: Mutex<Bell>,
    rings: Condvar,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Bell {
    rung: bool,
    closed: bool,
}

impl AccessLog {
    /// A lane of `limit` bytes for each worker.
    #[must_use]
    pub fn new(workers: usize, limit: usize, metrics: Arc<Metrics>) -> AccessLog {
        AccessLog {
            lanes: (0..workers).map(|_| Mutex::default()).collect(),
            limit,
            bell: Mutex::default(),
            rings: Condvar::new(),
            metrics,
        }
    }

    /// Queues a line, without its newline.
    pub(crate) fn write(&self, lane: usize, line: &impl serde::Serialize) {
        let Some(lane) = self.lanes.get(lane) else { return };
        let mut buffer = lane.lock().unwrap_or_else(PoisonError::into_inner);
        let before = buffer.len();
        let whole = serde_json::to_writer(&mut *buffer, line).is_ok();
        buffer.push(b'\n');
        if !whole || buffer.len() > self.limit {
            buffer.truncate(before);
            self.metrics.log_dropped.fetch_add(1, Relaxed);
        } else if before == 0 {
            drop(buffer);
            self.bell().rung = true;
            self.rings.notify_one();
        }
    }

    /// Starts the thread that writes to `out` until the log is closed.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(self: &Arc<Self>, mut out: impl Write + Send + 'static) -> io::Result<JoinHandle<()>> {
        let log = Arc::clone(self);
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            while log.wait() {
                log.flush(&mut out);
            }
            log.flush(&mut out);
        })
    }

    /// Writes what is queued and ends the thread.
    pub fn close(&self) {
        self.bell().closed = true;
        self.rings.notify_one();
    }

    fn bell(&self) -> MutexGuard<'_, Bell> {
        self.bell.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False when the log is closed.
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
            // Nobody reads standard output any more: the lines are lost, the gateway is not.
            if out.write_all(&lines).and_then(|()| out.flush()).is_err() {
                self.metrics.log_dropped.fetch_add(1, Relaxed);
            }
        }
    }
}
