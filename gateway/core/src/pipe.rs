//! Manages pipes for splicing, in a pool per worker. A pipe that still holds bytes is closed instead of reused,
//! because the next connection would receive them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use crate::socket::{self, Millis};

/// Below this, copying costs less than splicing.
const MIN_USEFUL: usize = 256 * 1024;
/// Pause after the kernel denied a pipe.
const RETRY_MS: Millis = 1_000;

/// The pipes of one worker.
#[derive(Debug)]
pub struct Pool {
    free: Mutex<Vec<Ends>>,
    made: AtomicUsize,
    limit: usize,
    size: usize,
    retry_at: AtomicU64,
    /// Times a transfer was copied because no pipe was available.
    pub(crate) denied: AtomicU64,
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pool {
    /// Creates a pool of at most `limit` pipes of `size` bytes.
    #[must_use]
    pub fn new(limit: usize, size: usize) -> Pool {
        Pool {
            free: Mutex::default(),
            made: AtomicUsize::new(0),
            limit,
            size,
            retry_at: AtomicU64::new(0),
            denied: AtomicU64::new(0),
        }
    }

    /// Number of open pipes, in use or idle.
    #[must_use]
    pub fn open(&self) -> usize {
        self.made.load(Relaxed)
    }

    /// Times a transfer was copied because no pipe was available.
    #[must_use]
    pub fn denied(&self) -> u64 {
        self.denied.load(Relaxed)
    }

    /// Takes an empty pipe; without one the caller copies.
    pub fn lend(self: &Arc<Pool>) -> Option<Pipe> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match free.or_else(|| self.make()) {
            Some(ends) => Some(Pipe { ends: Some(ends), unsent: 0, size: self.size, pool: Arc::clone(self) }),
            None => {
                self.denied.fetch_add(1, Relaxed);
                None
            }
        }
    }

    fn make(&self) -> Option<Ends> {
        if self.made.load(Relaxed) >= self.limit || socket::now() < self.retry_at.load(Relaxed) {
            return None;
        }
        match open(self.size) {
            Ok(ends) => {
                self.made.fetch_add(1, Relaxed);
                Some(ends)
            }
            Err(error) => {
                tracing::debug!(%error, "cannot open a pipe; copying instead");
                self.retry_at.store(socket::now().saturating_add(RETRY_MS), Relaxed);
                None
            }
        }
    }
}

/// Opens a pipe. Without CAP_SYS_RESOURCE a user may hold 64 pipes of 1 MiB (`pipe-user-pages-soft`); beyond that the
/// size is refused with EPERM and new pipes hold two pages.
fn open(size: usize) -> io::Result<Ends> {
    let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
    let granted = fcntl_setpipe_size(&write, size).or_else(|_| fcntl_setpipe_size(&write, MIN_USEFUL))?;
    if granted < MIN_USEFUL {
        return Err(io::ErrorKind::QuotaExceeded.into());
    }
    Ok(Ends { read, write })
}

/// One pipe, until it is dropped.
#[derive(Debug)]
pub struct Pipe {
    ends: Option<Ends>,
    unsent: usize,
    size: usize,
    pool: Arc<Pool>,
}

impl Pipe {
    /// Number of bytes in the pipe.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.unsent
    }

    /// Moves bytes from the socket into the pipe, which must be empty: splice returns EAGAIN both for an empty socket
    /// and for a full pipe, and so it can only mean the socket. 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` if the socket has no bytes, or the socket's error.
    pub fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let moved =
            splice(socket, None, &ends.write, None, self.size, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?;
        self.unsent += moved;
        Ok(moved)
    }

    /// Moves bytes from the pipe to the socket.
    ///
    /// # Errors
    /// `WouldBlock` if the socket accepts no more, or the socket's error.
    pub fn drain(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let moved =
            splice(&ends.read, None, socket, None, self.unsent, SpliceFlags::NONBLOCK | SpliceFlags::MOVE)?;
        if moved == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.unsent -= moved;
        Ok(moved)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        match self.ends.take() {
            Some(ends) if self.unsent == 0 => {
                self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(ends);
            }
            _ => {
                self.pool.made.fetch_sub(1, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn drained_pipe_is_reused_and_full_one_is_not() {
        let pool = Arc::new(Pool::new(1, 1 << 20));
        let (mut client, server) = pair();
        client.write_all(b"0123456789").unwrap();
        let mut pipe = pool.lend().unwrap();
        assert!(pool.lend().is_none());
        assert_eq!(pool.denied.load(Relaxed), 1);
        assert_eq!(pipe.fill(&server).unwrap(), 10);
        assert_eq!(pipe.drain(&server).unwrap(), 10);
        let mut echoed = [0; 10];
        client.read_exact(&mut echoed).unwrap();
        assert_eq!(&echoed, b"0123456789");
        drop(pipe);
        assert_eq!(pool.open(), 1);

        let mut pipe = pool.lend().unwrap();
        client.write_all(b"left behind").unwrap();
        assert_eq!(pipe.fill(&server).unwrap(), 11);
        drop(pipe);
        assert_eq!(pool.open(), 0);
    }
}
