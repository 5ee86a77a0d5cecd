//! Endless transfers: send, receive, or both. They run on a separate thread, so that they cost the other jobs
//! only CPU.

use std::io::{self, Read as _, Write as _};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use slab::Slab;

use super::{CHUNK, Conn, Shared};
use crate::hello::Job;
use crate::poller::{Interest, Poller, Ready, try_again};

/// Chunks per turn and direction, so that a fast peer does not delay the others. A chunk is large enough to
/// make system calls negligible, and small enough for the cache.
const CHUNKS_PER_TURN: usize = 4;

/// The connections with bulk transfers.
pub(super) struct Transfers {
    poller: Poller,
    conns: Mutex<Slab<Conn>>,
    shared: Arc<Shared>,
}

impl Transfers {
    pub(super) fn new(shared: Arc<Shared>) -> io::Result<Self> {
        Ok(Self { poller: Poller::new()?, conns: Mutex::new(Slab::with_capacity(256)), shared })
    }

    pub(super) fn take(&self, conn: Conn) -> io::Result<()> {
        let interest = match conn.job {
            Some(Job::Sink) => Interest::IN,
            Some(Job::Both) => Interest::IN | Interest::OUT,
            _ => Interest::OUT,
        };
        let mut conns = self.conns.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = conns.vacant_entry();
        self.poller.add(conn.wire.socket(), entry.key(), interest)?;
        entry.insert(conn);
        Ok(())
    }

    pub(super) fn run(&self) -> io::Result<()> {
        let chunk = vec![0x5a; CHUNK];
        let mut buffer = vec![0; CHUNK];
        let mut ready = Ready::new();
        while !self.shared.stop.requested() {
            self.poller.wait(&mut ready)?;
            let mut conns = self.conns.lock().unwrap_or_else(PoisonError::into_inner);
            for (token, flags) in ready.iter() {
                let Some(conn) = conns.get_mut(token) else { continue };
                let mut lives = !flags.intersects(Interest::ERR | Interest::HUP);
                if lives && flags.intersects(Interest::IN) {
                    lives = self.take_in_some(conn, &mut buffer);
                }
                if lives && flags.intersects(Interest::OUT) {
                    lives = send_some(conn, &chunk);
                }
                if !lives {
                    drop(conns.remove(token));
                }
            }
        }
        Ok(())
    }

    /// Receives some chunks; false once the client has left.
    fn take_in_some(&self, conn: &mut Conn, buffer: &mut [u8]) -> bool {
        for _ in 0..CHUNKS_PER_TURN {
            match conn.wire.read(buffer) {
                Ok(0) => return false,
                Ok(length) => {
                    self.shared.taken_in.fetch_add(length as u64, Ordering::Relaxed);
                    if length < buffer.len() {
                        return true;
                    }
                }
                Err(error) => return try_again(&error),
            }
        }
        true
    }
}

/// Sends some chunks; false once the client has left.
fn send_some(conn: &mut Conn, chunk: &[u8]) -> bool {
    let chunk = conn.wire.cut(chunk);
    for _ in 0..CHUNKS_PER_TURN {
        match conn.wire.write(chunk) {
            Ok(sent) if sent == chunk.len() => {}
            Ok(_) => return true,
            Err(error) => return try_again(&error),
        }
    }
    true
}
