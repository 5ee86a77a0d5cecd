//! Endless transfers over a fixed number of connections, on the calling thread. What comes through TLS is counted as it
//! is on the wire and not decrypted: that would cost the client as much as the proxy.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use super::{Target, closed};
use crate::hello::Job;
use crate::poller::{Interest, Poller, Ready, try_again};
use crate::stop::Stop;
use crate::wire::Wire;

/// Size of one read. The bytes are read as by a real client, not discarded in the kernel.
const CHUNK: usize = 128 * 1024;

/// Direction of the bytes, as seen by the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Down,
    Up,
    Both,
}

/// Open transfers; dropping the value closes them.
#[derive(Debug)]
pub(crate) struct Bulk {
    poller: Poller,
    streams: Vec<TcpStream>,
    sent: Vec<u8>,
    buffer: Vec<u8>,
}

impl Bulk {
    pub(crate) fn open(target: &Target, direction: Direction, count: usize) -> io::Result<Self> {
        let (job, interest) = match direction {
            Direction::Down => (Job::Source, Interest::IN),
            Direction::Up => (Job::Sink, Interest::OUT),
            Direction::Both => (Job::Both, Interest::IN | Interest::OUT),
        };
        let poller = Poller::new()?;
        let streams: Vec<_> = target.open_many(job, count)?.into_iter().map(Wire::into_socket).collect();
        for (token, stream) in streams.iter().enumerate() {
            stream.set_nonblocking(true)?;
            poller.add(stream, token, interest)?;
        }
        Ok(Self { poller, streams, sent: vec![0x5a; CHUNK], buffer: vec![0; CHUNK] })
    }

    /// Transfers until this time; returns the bytes received. Bytes sent are counted by the backend.
    pub(crate) fn run(&mut self, until: Instant, stop: &Stop) -> io::Result<u64> {
        let (mut bytes, mut ready) = (0, Ready::new());
        while Instant::now() < until {
            bytes += self.turn(&mut ready)?;
            stop.check()?;
        }
        Ok(bytes)
    }

    /// Transfers until stopped, beside another load; returns the bytes received.
    pub(crate) fn run_until_stopped(&mut self, stop: &Stop) -> io::Result<u64> {
        let (mut bytes, mut ready) = (0, Ready::new());
        while !stop.requested() {
            bytes += self.turn(&mut ready)?;
        }
        Ok(bytes)
    }

    fn turn(&mut self, ready: &mut Ready) -> io::Result<u64> {
        self.poller.wait(ready)?;
        let mut bytes = 0;
        for (token, flags) in ready.iter() {
            let Some(mut stream) = self.streams.get(token) else { continue };
            if flags.intersects(Interest::IN | Interest::HUP | Interest::ERR) {
                match stream.read(&mut self.buffer) {
                    Ok(0) => return Err(closed()),
                    Ok(length) => bytes += length as u64,
                    Err(error) if try_again(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            if flags.contains(Interest::OUT) {
                match stream.write(&self.sent) {
                    Ok(_) => {}
                    Err(error) if try_again(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::backend::Backend;
    use crate::hello::Hello;

    #[test]
    fn bulk_moves_bytes_in_requested_direction() {
        let hello = Arc::new(Hello::new().unwrap());
        let backend = Backend::start(Arc::clone(&hello), Ipv4Addr::LOCALHOST.into()).unwrap();
        let target = Target::plain(backend.address, &hello);
        let stop = Stop::default();
        for (direction, down, up) in
            [(Direction::Down, true, false), (Direction::Up, false, true), (Direction::Both, true, true)]
        {
            let before = backend.taken_in();
            let mut bulk = Bulk::open(&target, direction, 2).unwrap();
            let mut seen = (false, false);
            let deadline = Instant::now() + Duration::from_secs(10);
            while seen != (down, up) {
                assert!(Instant::now() < deadline, "{direction:?}: {seen:?}");
                seen.0 |= bulk.run(Instant::now() + Duration::from_millis(5), &stop).unwrap() > 0;
                seen.1 |= backend.taken_in() > before;
            }
            drop(bulk);
            backend.wait_until_quiet(&stop).unwrap();
            assert_eq!(seen, (down, up), "{direction:?}");
        }
    }
}
