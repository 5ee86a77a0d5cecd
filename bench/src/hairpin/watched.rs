//! A blocking socket whose reads and writes fail on a stop signal or when the connection stalls.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::poller::try_again;
use crate::stop::Stop;

/// Interval of checks for a stop.
pub(super) const TICK: Duration = Duration::from_millis(200);
/// Longest silence: several times the TCP retransmission of a lost packet over the slowest link.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A blocking socket that checks for a stop.
#[derive(Debug)]
pub(super) struct Watched {
    stream: TcpStream,
    stop: Stop,
}

impl Watched {
    /// Wraps a socket and sets TCP_NODELAY.
    pub(super) fn new(stream: TcpStream, stop: Stop) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TICK))?;
        stream.set_write_timeout(Some(TICK))?;
        Ok(Self { stream, stop })
    }

    fn patiently<T>(&mut self, mut attempt: impl FnMut(&mut TcpStream) -> io::Result<T>) -> io::Result<T> {
        let began = Instant::now();
        loop {
            match attempt(&mut self.stream) {
                Err(error) if try_again(&error) => {}
                done => return done,
            }
            self.stop.check()?;
            if began.elapsed() > PATIENCE {
                let what = format!("no data for {} s", PATIENCE.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
        }
    }
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.patiently(|stream| stream.read(buffer))
    }
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.patiently(|stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn watched_read_ends_when_program_exits() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stop = Stop::default();
        let mut watched = Watched::new(stream, stop.clone()).unwrap();
        stop.request();
        assert!(watched.read(&mut [0]).unwrap_err().to_string().contains("stopped"));
        let (mut server, _) = listener.accept().unwrap();
        server.write_all(b"x").unwrap();
        assert_eq!(watched.read(&mut [0]).unwrap(), 1, "available data is still read");
    }
}
