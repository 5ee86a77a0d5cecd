//! A thin wrapper of epoll for backend and load. It is not an executor: the callers run the loops.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
pub(crate) use rustix::event::epoll::EventFlags as Interest;
use rustix::event::epoll::{self, CreateFlags, Event, EventData};

/// Longest wait, so that loops see a stop request within this time.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// One epoll instance.
#[derive(Debug)]
pub(crate) struct Poller(OwnedFd);

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    pub(crate) fn add(&self, source: impl AsFd, token: usize, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.0, source, EventData::new_u64(token as u64), interest)?)
    }

    pub(crate) fn remove(&self, source: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.0, source)?)
    }

    /// Waits for events, at most one [`TICK`]. No event, and an interruption by a signal, leave `ready`
    /// empty.
    pub(crate) fn wait(&self, ready: &mut Ready) -> io::Result<()> {
        ready.0.clear();
        let timeout = rustix::time::Timespec { tv_sec: 0, tv_nsec: i64::from(TICK.subsec_nanos()) };
        match epoll::wait(&self.0, spare_capacity(&mut ready.0), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The events of one wait; the memory is reused.
pub(crate) struct Ready(Vec<Event>);

impl Ready {
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(256))
    }

    /// Token and events of each ready source.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, Interest)> {
        self.0.iter().map(|event| {
            let (token, flags) = (event.data.u64(), event.flags);
            (usize::try_from(token).unwrap_or(usize::MAX), flags)
        })
    }
}

/// Whether the error means "try again" rather than a failure.
pub(crate) fn try_again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
