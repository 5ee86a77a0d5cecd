//! The memory of all ClientHellos in flight, under one budget of the process: counted without a lock, and shared out
//! between sources once it runs short. Who gives way is decided in [`share`]; not how many connections there may be.

mod share;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::live::{Conn, Live};
use crate::reason::Reason;
use crate::socket::{self, Millis};
use share::{Holder, Shares};

/// A buffer grows to a multiple of this, so that bytes that come one by one are not copied each time.
const GROWTH: usize = 4 << 10;
/// A smaller budget is not shared out: a few hellos would be all of it.
const SHARED_FROM: usize = 1 << 20;
/// Sharing out takes at most a part of the time: after it, so many times as long is left to others.
const REST: Millis = 8;
/// But at least this.
const LEAST_REST: Millis = 5;

/// The bytes of all hellos in flight.
#[derive(Debug, Default)]
pub struct HelloMemory {
    held: AtomicUsize,
    /// The connections of all workers.
    tables: OnceLock<Vec<Arc<Live>>>,
    shares: Mutex<Shares>,
    /// No sharing out before this.
    rest_until: AtomicU64,
    revoked: AtomicU64,
}

impl HelloMemory {
    /// Bytes held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// Hellos that were given up for those of other sources, so far.
    #[must_use]
    pub fn revoked(&self) -> u64 {
        self.revoked.load(Relaxed)
    }

    /// Over half of the budget is in use: hellos that were sent are not kept for a replay.
    #[must_use]
    pub fn is_scarce(&self, budget: usize) -> bool {
        self.held() > budget / 2
    }

    /// Where those who hold memory are found. Once, at start.
    pub(crate) fn watch(&self, tables: Vec<Arc<Live>>) {
        let _once = self.tables.set(tables);
    }

    /// Counts more bytes of a source; `limit_memory` when there is no room for them.
    fn take(&self, bytes: usize, budget: usize, source: IpAddr) -> Result<(), Reason> {
        let marks = Marks::of(budget);
        if self.add(bytes, marks.pressure) {
            return Ok(());
        }
        // From here on memory is short, and a lock costs less than what it decides.
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if marks.is_shared() && self.rest_until.load(Relaxed) <= socket::now() {
            *shares = self.share_out(marks);
        }
        let most = if shares.is_large(source) { marks.large } else { budget };
        if self.add(bytes, most) { Ok(()) } else { Err(Reason::LimitMemory) }
    }

    fn add(&self, bytes: usize, most: usize) -> bool {
        let sum = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= most);
        self.held.fetch_update(Relaxed, Relaxed, sum).is_ok()
    }

    /// Ends those that hold most, longest, until what stays is well below the mark.
    fn share_out(&self, marks: Marks) -> Shares {
        let begun = socket::now();
        let holding: Vec<_> =
            self.tables.get().into_iter().flatten().flat_map(|live| live.holding()).collect();
        let holder = |conn: &Arc<Conn>| Holder {
            source: conn.client().ip(),
            bytes: conn.hello_bytes(),
            age: begun.saturating_sub(conn.accepted),
        };
        let holders: Vec<_> = holding.iter().map(holder).collect();
        let shares = Shares::of(&holders, marks.keep);
        for index in shares.too_much(&holders) {
            let Some(conn) = holding.get(index) else { continue };
            conn.revoke_hello();
            self.revoked.fetch_add(1, Relaxed);
        }
        let now = socket::now();
        let rest = now.saturating_sub(begun).saturating_mul(REST).max(LEAST_REST);
        self.rest_until.store(now.saturating_add(rest), Relaxed);
        shares
    }
}

/// Where in a budget something changes.
#[derive(Clone, Copy, Debug)]
struct Marks {
    /// What stays once it was shared out.
    keep: usize,
    /// Memory is short above this.
    pressure: usize,
    /// Sources that hold a large share get nothing above this.
    large: usize,
    budget: usize,
}

impl Marks {
    fn of(budget: usize) -> Marks {
        let eighth = if budget < SHARED_FROM { 0 } else { budget / 8 };
        let below = |eighths: usize| budget.saturating_sub(eighth.saturating_mul(eighths));
        Marks { keep: below(3), pressure: below(2), large: below(1), budget }
    }

    fn is_shared(self) -> bool {
        self.keep < self.budget
    }
}

/// The first bytes of a connection, counted against the budget as its buffer is large.
#[derive(Debug)]
pub struct Flight {
    bytes: Vec<u8>,
    memory: Arc<HelloMemory>,
    budget: usize,
    conn: Arc<Conn>,
}

impl Flight {
    pub(crate) fn new(memory: &Arc<HelloMemory>, budget: usize, conn: &Arc<Conn>) -> Flight {
        Flight { bytes: Vec::new(), memory: Arc::clone(memory), budget, conn: Arc::clone(conn) }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends what arrived; `limit_memory` when there is no room for it.
    pub(crate) fn extend(&mut self, more: &[u8]) -> Result<(), Reason> {
        let (before, needed) = (self.bytes.capacity(), self.bytes.len() + more.len());
        if needed > before {
            let wanted = if before == 0 { needed } else { needed.next_multiple_of(GROWTH) };
            self.memory.take(wanted - before, self.budget, self.conn.client().ip())?;
            self.bytes.reserve_exact(wanted - self.bytes.len());
            // The allocator may have given more.
            let given = self.bytes.capacity();
            self.memory.held.fetch_add(given.saturating_sub(wanted), Relaxed);
            self.conn.set_hello_bytes(given);
        }
        self.bytes.extend_from_slice(more);
        Ok(())
    }

    /// Forgets the first `count` bytes.
    pub(crate) fn strip(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.memory.held.fetch_sub(self.bytes.capacity(), Relaxed);
        self.conn.set_hello_bytes(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: usize = 8 << 20;
    const LARGE: usize = 64_000;

    struct World {
        memory: Arc<HelloMemory>,
        live: Arc<Live>,
    }

    impl World {
        fn new() -> World {
            let world = World { memory: Arc::default(), live: Arc::default() };
            world.memory.watch(vec![Arc::clone(&world.live)]);
            world
        }

        /// A connection with so many bytes of hello, if there is room; they come in reads.
        fn hello(&self, source: [u8; 4], bytes: usize) -> Result<(Flight, Arc<Conn>), Reason> {
            let conn = Arc::new(Conn::new(1, 0, (source, 1).into()));
            self.live.insert(&conn);
            let mut flight = Flight::new(&self.memory, BUDGET, &conn);
            for read in vec![0; bytes].chunks(16 << 10) {
                flight.extend(read)?;
            }
            Ok((flight, conn))
        }
    }

    #[test]
    fn hello_memory_counts_buffer_capacity() {
        let world = World::new();
        let (mut flight, conn) = world.hello([10, 0, 0, 1], LARGE).unwrap();
        assert_eq!(world.memory.held(), flight.bytes.capacity());
        assert_eq!(conn.hello_bytes(), flight.bytes.capacity());
        assert!((LARGE..LARGE + GROWTH).contains(&world.memory.held()), "{}", world.memory.held());
        flight.strip(100);
        drop(flight);
        assert_eq!((world.memory.held(), conn.hello_bytes()), (0, 0));
        let (small, _) = world.hello([10, 0, 0, 1], 300).unwrap();
        assert_eq!(world.memory.held(), 300);
        drop(small);
    }

    #[test]
    fn hello_memory_pressure_refuses_only_the_largest_source() {
        let world = World::new();
        // Those that are told to go have not yet gone: the worst moment.
        let hog: Vec<_> = (0..1_040).map_while(|_| world.hello([10, 0, 0, 1], LARGE).ok()).collect();
        assert!(hog.len() < 1_040, "all of them fit");
        let others: Vec<_> = (2..200).map(|last| world.hello([10, 0, 0, last], 2_000)).collect();
        assert!(others.iter().all(Result::is_ok), "one of many was refused");
        assert!(world.memory.held() <= BUDGET);
        assert!(hog.iter().any(|(_, conn)| conn.is_hello_revoked()));
        assert!(!others.iter().flatten().any(|(_, conn)| conn.is_hello_revoked()));
        // Once they have gone there is room for the source itself, too.
        let stays: Vec<_> = hog.into_iter().filter(|(_, conn)| !conn.is_hello_revoked()).collect();
        assert!(!stays.is_empty(), "all of its hellos were given up");
        assert!(world.hello([10, 0, 0, 1], 2_000).is_ok());
    }
}
