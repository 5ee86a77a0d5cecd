//! Short connections: connect, hello, one byte back, close.
//!
//! The *backend* closes first, on purpose. TIME_WAIT stays with the side that closes first, and it blocks
//! the port only for a side that connects. Were the client to close first, the client and every proxy
//! would run through the 28 000 ephemeral ports towards one address in a few seconds, and we would
//! measure the kernel's search for a free one. So here every TIME_WAIT lands on an accepting side (the
//! backend, the proxy's listener), where the kernel lets a newer SYN from the same port take its place
//! (needs TCP timestamps, which are on by default): no system can run out, however long it is measured.
//! [`MOST`] bounds a round all the same.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use super::{PATIENCE, Target, check_answer, closed};
use crate::hello::Job;
use crate::poller::{Interest, Poller, Ready};
use crate::stop::Stop;

/// Connections of one call at most.
const MOST: u64 = 20_000;

/// A fixed number of short connections under way, each followed by the next.
#[derive(Debug)]
pub(crate) struct Short {
    target: Target,
    hello: Vec<u8>,
    poller: Poller,
    slots: Vec<Option<Conn>>,
}

#[derive(Debug)]
struct Conn {
    stream: TcpStream,
    answered: bool,
}

impl Short {
    pub(crate) fn new(target: &Target, in_flight: usize) -> io::Result<Self> {
        let slots = std::iter::repeat_with(|| None).take(in_flight).collect();
        let hello = target.hello.for_job(Job::Once);
        Ok(Self { target: target.clone(), hello, poller: Poller::new()?, slots })
    }

    /// Connections one after another until then; gives how many were completed. None is open before or after.
    pub(crate) fn run(&mut self, until: Instant, stop: &Stop) -> io::Result<u64> {
        let (mut opened, mut done, mut ready) = (0, 0, Ready::new());
        for slot in 0..self.slots.len() {
            self.open(slot)?;
            opened += 1;
        }
        while done < opened {
            stop.check()?;
            self.poller.wait(&mut ready)?;
            let now = Instant::now();
            for (token, flags) in ready.iter() {
                let Some(place) = self.slots.get_mut(token) else { continue };
                let Some(conn) = place else { continue };
                if !conn.finished(flags)? {
                    continue;
                }
                *place = None;
                done += 1;
                if now < until && opened < MOST {
                    self.open(token)?;
                    opened += 1;
                }
            }
            if now > until + PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "a short connection did not end"));
            }
        }
        Ok(done)
    }

    /// Blocking, which on loopback never blocks: the handshake happens inside `connect`, and the hello
    /// fits the empty send buffer. It saves the system calls that would hide the proxy's cost.
    fn open(&mut self, slot: usize) -> io::Result<()> {
        let stream = TcpStream::connect(self.target.address)?;
        (&stream).write_all(&self.hello)?;
        self.poller.add(&stream, slot, Interest::IN | Interest::RDHUP | Interest::ET)?;
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(Conn { stream, answered: false });
        }
        Ok(())
    }
}

impl Conn {
    /// Whether the answer and the end have both come.
    fn finished(&mut self, flags: Interest) -> io::Result<bool> {
        let ended = flags.intersects(Interest::RDHUP | Interest::HUP);
        if !self.answered {
            // Readable, so this does not block.
            let mut answer = [0];
            if self.stream.read(&mut answer)? == 0 {
                return Err(closed());
            }
            check_answer(&answer)?;
            self.answered = true;
        }
        Ok(ended)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::backend::Backend;
    use crate::hello::Hello;

    #[test]
    fn every_connection_that_is_opened_is_completed() {
        let hello = Arc::new(Hello::new().unwrap());
        let backend = Backend::start(Arc::clone(&hello)).unwrap();
        let target = Target { address: backend.address, hello };
        let stop = Stop::default();
        let mut short = Short::new(&target, 8).unwrap();
        assert_eq!(short.run(Instant::now(), &stop).unwrap(), 8, "one for each slot");
        assert!(short.run(Instant::now() + Duration::from_millis(20), &stop).unwrap() >= 8);
        backend.wait_until_quiet(&stop).unwrap();
    }
}
