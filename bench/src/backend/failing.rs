//! An endpoint that serves until it is told to fail, in one of the ways in which endpoints fail.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt};

use crate::hello::ANSWER;

/// How an endpoint fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Its port is closed.
    Refuses,
    /// Its machine answers nothing at all.
    Silent,
    /// It accepts and closes.
    Closes,
    /// It accepts and resets.
    Resets,
    /// It answers each hello by a fatal alert, like a gateway without an endpoint.
    Alerts,
    /// It accepts and never answers.
    Hangs,
}

impl Shape {
    pub(crate) const ALL: [Self; 6] =
        [Self::Refuses, Self::Silent, Self::Closes, Self::Resets, Self::Alerts, Self::Hangs];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Refuses => "refuses",
            Self::Silent => "answers no packet",
            Self::Closes => "accepts and closes",
            Self::Resets => "accepts and resets",
            Self::Alerts => "answers by an alert",
            Self::Hangs => "accepts and never answers",
        }
    }
}

/// The alert `internal_error`.
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];
/// As [`Shape`]'s discriminants.
const SERVES: u8 = u8::MAX;
/// An endpoint on loopback that has not sent its hello by then is hung.
const PATIENCE: Duration = Duration::from_secs(5);
/// Length of the accept queue of an endpoint that is to be silent: once full, the kernel drops further SYNs.
const QUEUE: i32 = 1;

/// A running endpoint; dropping it ends its thread.
#[derive(Debug)]
pub(crate) struct Failing {
    pub(crate) address: SocketAddr,
    /// `None` after the port was closed.
    listener: Option<Arc<TcpListener>>,
    shared: Arc<Shared>,
    /// Connections that fill the queue.
    fillers: Vec<rustix::fd::OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    shape: AtomicU8,
    stop: AtomicBool,
}

impl Failing {
    /// Starts the endpoint on a free loopback port; it serves.
    pub(crate) fn start() -> io::Result<Self> {
        let listener = Arc::new(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { shape: AtomicU8::new(SERVES), stop: AtomicBool::new(false) });
        let (accepting, serving) = (Arc::clone(&listener), Arc::clone(&shared));
        let thread =
            std::thread::Builder::new().name("failing".into()).spawn(move || serving.run(&accepting))?;
        let listener = Some(listener);
        Ok(Self { address, listener, shared, fillers: Vec::new(), thread: Some(thread) })
    }

    /// Fails from now on.
    pub(crate) fn fail(&mut self, shape: Shape) -> io::Result<()> {
        self.shared.shape.store(shape as u8, Ordering::Release);
        match shape {
            Shape::Refuses => {
                self.end_accepting();
                self.listener = None;
            }
            Shape::Silent => {
                self.end_accepting();
                self.fill_queue()?;
            }
            Shape::Closes | Shape::Resets | Shape::Alerts | Shape::Hangs => {}
        }
        Ok(())
    }

    /// Fills the accept queue, so that the kernel answers no further SYN.
    fn fill_queue(&mut self) -> io::Result<()> {
        let Some(listener) = &self.listener else { return Ok(()) };
        listen(listener.as_fd(), QUEUE)?;
        // One more than the queue holds; the last ones stay unanswered themselves.
        for _ in 0..4 {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
            match connect(&socket, &self.address) {
                Ok(()) | Err(rustix::io::Errno::INPROGRESS) => self.fillers.push(socket),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn end_accepting(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // This connection makes the accept return.
        let is_woken = TcpStream::connect_timeout(&self.address, PATIENCE).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| is_woken) {
            // A panicked thread has already reported to stderr.
            let _ = thread.join();
        }
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end_accepting();
        }
    }
}

impl Shared {
    fn run(&self, listener: &TcpListener) {
        let mut hung = Vec::new();
        for stream in listener.incoming() {
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let Ok(stream) = stream else { continue };
            let code = self.shape.load(Ordering::Acquire);
            match Shape::ALL.into_iter().find(|shape| *shape as u8 == code) {
                // A caller that goes away is the caller's failure, and counted there.
                None => _ = answer(stream, &[ANSWER]),
                Some(Shape::Alerts) => _ = answer(stream, &ALERT),
                Some(Shape::Resets) => _ = sockopt::set_socket_linger(&stream, Some(Duration::ZERO)),
                Some(Shape::Hangs) => hung.push(stream),
                Some(Shape::Closes | Shape::Refuses | Shape::Silent) => drop(stream),
            }
        }
    }
}

/// Reads a hello, the load's or one of a system's own, answers and closes.
fn answer(mut stream: TcpStream, answer: &[u8]) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut header = [0; 5];
    stream.read_exact(&mut header)?;
    let [.., high, low] = header;
    stream.read_exact(&mut vec![0; u16::from_be_bytes([high, low]).into()])?;
    stream.write_all(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hello::{Hello, Job};
    use crate::load::Target;

    #[test]
    fn failing_endpoint_serves_until_it_fails_in_each_shape() {
        let hello = Arc::new(Hello::new().unwrap());
        for shape in Shape::ALL {
            let mut endpoint = Failing::start().unwrap();
            let target = Target::plain(endpoint.address, &hello);
            target.open(Job::Once).unwrap();
            endpoint.fail(shape).unwrap();
            match shape {
                Shape::Silent => {
                    let error = TcpStream::connect_timeout(&endpoint.address, Duration::from_millis(100));
                    assert_eq!(error.unwrap_err().kind(), io::ErrorKind::TimedOut);
                }
                Shape::Hangs => {
                    let stream = TcpStream::connect(endpoint.address).unwrap();
                    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                    assert_eq!((&stream).read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
                }
                _ => assert!(target.open(Job::Once).is_err(), "{shape:?}"),
            }
        }
    }
}
