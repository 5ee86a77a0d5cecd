//! Short connections: connect, hello, one byte back, close.
//!
//! TIME_WAIT stays with the side that closes first, and blocks the port only for a side that connects. When
//! the *server* closes first, every TIME_WAIT is on an accepting side (the backend, the proxy's listener),
//! where the kernel accepts a newer SYN from the same port (with TCP timestamps, the default): no system can
//! run out of ports. When the *client* closes first, the client and every proxy use up one of 28 000 ports
//! towards one address for a minute, or for a second on loopback, where the kernel reuses them sooner. That
//! is measured on purpose, with a number of connections for which there are ports.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::{PATIENCE, Target, check_answer, closed};
use crate::hello::Job;
use crate::poller::{Interest, Poller, Ready};
use crate::sample::{histogram, record};
use crate::stop::Stop;

/// The side that closes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closer {
    Client,
    Server,
}

/// Step from one service to the next: avoids neighbours in any table and visits all services.
const STRIDE: u32 = 7919;

/// A fixed number of concurrent short connections, each followed by the next.
#[derive(Debug)]
pub(crate) struct Short {
    target: Target,
    closer: Closer,
    services: u32,
    service: u32,
    hello: Vec<u8>,
    poller: Poller,
    slots: Vec<Option<Conn>>,
    first_bytes: Histogram<u64>,
    most: u64,
    /// Number of failed connections, if they are tolerated.
    lost: Option<u64>,
}

#[derive(Debug)]
struct Conn {
    stream: TcpStream,
    began: Instant,
    answered: bool,
}

impl Short {
    pub(crate) fn new(target: &Target, closer: Closer, in_flight: usize) -> io::Result<Self> {
        let job = if closer == Closer::Server { Job::Once } else { Job::Echo };
        Ok(Self {
            target: target.clone(),
            closer,
            services: 1,
            service: 0,
            hello: target.hello.for_job(job),
            poller: Poller::new()?,
            slots: std::iter::repeat_with(|| None).take(in_flight).collect(),
            first_bytes: histogram()?,
            most: u64::MAX,
            lost: None,
        })
    }

    /// Uses the first `count` services in turn instead of one.
    pub(crate) fn over_services(mut self, count: u32) -> Self {
        self.services = count;
        self
    }

    /// Limits the connections of one call.
    pub(crate) fn at_most(mut self, connections: u64) -> Self {
        self.most = connections;
        self
    }

    /// Counts failed connections instead of returning the first error.
    pub(crate) fn forgiving(mut self) -> Self {
        self.lost = Some(0);
        self
    }

    /// Number of tolerated failures since the start.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.unwrap_or(0)
    }

    /// Opens connections one after another until this time; returns the times from connect to first byte in
    /// nanoseconds. No connection is open before or after.
    pub(crate) fn run(&mut self, until: Instant, stop: &Stop) -> io::Result<&Histogram<u64>> {
        let (mut opened, mut done, mut ready) = (0, 0, Ready::new());
        self.first_bytes.reset();
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
                match (conn.finished(flags, self.closer, &mut self.first_bytes), &mut self.lost) {
                    (Ok(false), _) => continue,
                    (Ok(true), _) => {}
                    (Err(_), Some(lost)) => *lost += 1,
                    (Err(error), None) => return Err(error),
                }
                *place = None;
                done += 1;
                if now < until && opened < self.most {
                    self.open(token)?;
                    opened += 1;
                }
            }
            if now > until + PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "a short connection did not close"));
            }
        }
        Ok(&self.first_bytes)
    }

    /// Uses blocking calls, which never block within one machine: the handshake happens inside `connect`, and
    /// the hello fits the empty send buffer. This saves system calls that would hide the proxy's cost.
    fn open(&mut self, slot: usize) -> io::Result<()> {
        let began = Instant::now();
        if self.services > 1 {
            self.service = (self.service + STRIDE) % self.services;
            self.target.hello.address_to(self.service, &mut self.hello);
        }
        let stream = self.connect()?;
        (&stream).write_all(&self.hello)?;
        self.poller.add(&stream, slot, Interest::IN | Interest::RDHUP | Interest::ET)?;
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(Conn { stream, began, answered: false });
        }
        Ok(())
    }

    fn connect(&mut self) -> io::Result<TcpStream> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match (TcpStream::connect(self.target.address), &mut self.lost) {
                (Err(_), Some(lost)) if Instant::now() < deadline => *lost += 1,
                (outcome, _) => return outcome,
            }
            // The port may be without a listener for a moment.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Conn {
    /// Whether the answer has arrived, and the close if the server closes first.
    fn finished(
        &mut self,
        flags: Interest,
        closer: Closer,
        first_bytes: &mut Histogram<u64>,
    ) -> io::Result<bool> {
        if !self.answered {
            // The socket is readable, so this does not block.
            let mut answer = [0];
            if self.stream.read(&mut answer)? == 0 {
                return Err(closed());
            }
            check_answer(&answer)?;
            self.answered = true;
            record(first_bytes, self.began.elapsed());
        }
        Ok(closer == Closer::Client || flags.intersects(Interest::RDHUP | Interest::HUP))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use super::*;
    use crate::backend::Backend;
    use crate::hello::Hello;

    #[test]
    fn short_connections_complete_whichever_side_closes() {
        let hello = Arc::new(Hello::new().unwrap());
        let backend = Backend::start(Arc::clone(&hello), Ipv4Addr::LOCALHOST.into()).unwrap();
        let target = Target::plain(backend.address, &hello);
        let stop = Stop::default();
        for closer in [Closer::Client, Closer::Server] {
            let mut short = Short::new(&target, closer, 8).unwrap().over_services(100).at_most(50);
            assert_eq!(short.run(Instant::now(), &stop).unwrap().len(), 8, "one for each slot");
            let later = Instant::now() + Duration::from_mins(1);
            assert_eq!(short.run(later, &stop).unwrap().len(), 50, "no more than allowed");
            backend.wait_until_quiet(&stop).unwrap();
        }
        assert_eq!(backend.corrupt(), 0);
    }
}
