//! Limits the memory of all ClientHellos in flight to one budget of the process. It is counted without a lock and
//! shared out between sources once it runs short; [`share`] decides which hellos are revoked.

mod share;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::live::{Conn, Live};
use crate::reason::Reason;
use crate::socket::{self, Millis};
use share::{Holder, Shares};

/// Buffers grow to a multiple of this, so that single bytes do not cause a copy each.
const GROWTH: usize = 4 << 10;
/// A smaller budget is not shared out, because a few hellos would use all of it.
const SHARED_FROM: usize = 1 << 20;
/// After sharing out, it pauses for this many times as long as it took.
const REST: Millis = 8;
/// Minimum pause between two rounds of sharing out.
const LEAST_REST: Millis = 5;

/// The memory of all hellos in flight.
#[derive(Debug, Default)]
pub struct HelloMemory {
    held: AtomicUsize,
    /// Live connections of all workers.
    tables: OnceLock<Vec<Arc<Live>>>,
    shares: Mutex<Shares>,
    /// No sharing out before this.
    rest_until: AtomicU64,
    revoked: AtomicU64,
}

impl HelloMemory {
    /// Returns the number of bytes held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    /// Returns the number of hellos revoked for other sources since the start.
    #[must_use]
    pub fn revoked(&self) -> u64 {
        self.revoked.load(Relaxed)
    }

    /// Whether more than half of the budget is in use; then sent hellos are not kept for a replay.
    #[must_use]
    pub fn is_scarce(&self, budget: usize) -> bool {
        self.held() > budget / 2
    }

    /// Sets the tables of live connections, once at start.
    pub(crate) fn watch(&self, tables: Vec<Arc<Live>>) {
        let _once = self.tables.set(tables);
    }

    /// Counts more bytes of a source, or fails with `limit_memory`.
    fn reserve(&self, bytes: usize, budget: usize, source: IpAddr) -> Result<(), Reason> {
        let marks = Marks::for_budget(budget);
        if self.add(bytes, marks.pressure) {
            return Ok(());
        }
        // Memory is short from here on, so taking the lock is worth its cost.
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

    /// Revokes hellos that hold the most for the longest, until the rest is well below the mark.
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
        let shares = Shares::divide(&holders, marks.keep);
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

/// Thresholds of a budget.
#[derive(Clone, Copy, Debug)]
struct Marks {
    /// Bytes kept by sharing out.
    keep: usize,
    /// Memory is short above this.
    pressure: usize,
    /// Sources with a large share get no more memory above this.
    large: usize,
    budget: usize,
}

impl Marks {
    fn for_budget(budget: usize) -> Marks {
        let eighth = if budget < SHARED_FROM { 0 } else { budget / 8 };
        let below = |eighths: usize| budget.saturating_sub(eighth.saturating_mul(eighths));
        Marks { keep: below(3), pressure: below(2), large: below(1), budget }
    }

    fn is_shared(self) -> bool {
        self.keep < self.budget
    }
}

/// The first bytes of a connection; the capacity of the buffer counts against the budget.
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

    /// Appends received bytes, or fails with `limit_memory`.
    pub(crate) fn extend(&mut self, more: &[u8]) -> Result<(), Reason> {
        let (before, needed) = (self.bytes.capacity(), self.bytes.len() + more.len());
        if needed > before {
            let wanted = if before == 0 { needed } else { needed.next_multiple_of(GROWTH) };
            self.memory.reserve(wanted - before, self.budget, self.conn.client().ip())?;
            self.bytes.reserve_exact(wanted - self.bytes.len());
            // The allocator may return more.
            let given = self.bytes.capacity();
            self.memory.held.fetch_add(given.saturating_sub(wanted), Relaxed);
            self.conn.set_hello_bytes(given);
        }
        self.bytes.extend_from_slice(more);
        Ok(())
    }

    /// Drops the first `count` bytes.
    pub(crate) fn strip(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
    }

    /// Takes the bytes of another flight of the same connection in place of its own.
    pub(crate) fn replace(&mut self, by: Flight) {
        *self = by;
        self.conn.set_hello_bytes(self.bytes.capacity());
    }

    /// Drops all bytes and their memory.
    pub(crate) fn clear(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.memory.held.fetch_sub(bytes.capacity(), Relaxed);
        self.conn.set_hello_bytes(0);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.clear();
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

        /// Adds a connection with a hello of this many bytes, received in several reads, if there is room.
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
        // The worst case: revoked connections have not released their memory yet.
        let hog: Vec<_> = (0..1_040).map_while(|_| world.hello([10, 0, 0, 1], LARGE).ok()).collect();
        assert!(hog.len() < 1_040, "all fit");
        let others: Vec<_> = (2..200).map(|last| world.hello([10, 0, 0, last], 2_000)).collect();
        assert!(others.iter().all(Result::is_ok), "another source was refused");
        assert!(world.memory.held() <= BUDGET);
        assert!(hog.iter().any(|(_, conn)| conn.is_hello_revoked()));
        assert!(!others.iter().flatten().any(|(_, conn)| conn.is_hello_revoked()));
        // After they have released their memory, the source itself has room, too.
        let stays: Vec<_> = hog.into_iter().filter(|(_, conn)| !conn.is_hello_revoked()).collect();
        assert!(!stays.is_empty(), "all of its hellos were revoked");
        assert!(world.hello([10, 0, 0, 1], 2_000).is_ok());
    }
}
