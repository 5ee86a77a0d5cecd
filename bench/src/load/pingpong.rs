//! Round trips in a closed loop: each connection sends the next ping when the last one has returned. A closed
//! loop hides the delay that a stall causes to other requests; [`super::paced`] does not.

use std::io::{self, Read as _, Write as _};
use std::time::Instant;

use hdrhistogram::Histogram;

use super::{PATIENCE, Target, closed};
use crate::hello::Job;
use crate::poller::{Interest, Poller, Ready, try_again};
use crate::sample::{histogram, record};
use crate::stop::Stop;
use crate::wire::Wire;

/// Open connections with one ping each, and the recorded round trips.
#[derive(Debug)]
pub(crate) struct PingPong {
    poller: Poller,
    conns: Vec<Pinged>,
    ping: Vec<u8>,
    buffer: Vec<u8>,
    round_trips: Histogram<u64>,
}

impl PingPong {
    /// Opens the connections. A ping of `bytes` bytes must fit a socket's send buffer.
    pub(crate) fn open(target: &Target, bytes: usize, count: usize) -> io::Result<Self> {
        let (poller, conns) = Pinged::open_many(target, count)?;
        let (ping, buffer) = (vec![0x77; bytes], vec![0; bytes]);
        Ok(Self { poller, conns, ping, buffer, round_trips: histogram()? })
    }

    /// Pings until this time; returns the round trips of this call in nanoseconds. No ping is in flight
    /// before or after.
    pub(crate) fn run(&mut self, until: Instant, stop: &Stop) -> io::Result<&Histogram<u64>> {
        let mut ready = Ready::new();
        self.round_trips.reset();
        for conn in &mut self.conns {
            conn.send(&self.ping, Instant::now())?;
        }
        let mut under_way = self.conns.len();
        while under_way > 0 {
            stop.check()?;
            self.poller.wait(&mut ready)?;
            for (token, _) in ready.iter() {
                let Some(conn) = self.conns.get_mut(token) else { continue };
                let Some(now) = conn.receive(&mut self.buffer)? else { continue };
                record(&mut self.round_trips, now.duration_since(conn.counts_from));
                if now < until { conn.send(&self.ping, now)? } else { under_way -= 1 }
            }
            if Instant::now() > until + PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "a ping did not return"));
            }
        }
        Ok(&self.round_trips)
    }
}

/// A connection to an echo server, with at most one ping in flight.
#[derive(Debug)]
pub(super) struct Pinged {
    wire: Wire,
    pub(super) counts_from: Instant,
    missing: usize,
}

impl Pinged {
    pub(super) fn open_many(target: &Target, count: usize) -> io::Result<(Poller, Vec<Self>)> {
        let poller = Poller::new()?;
        let mut conns = Vec::with_capacity(count);
        for (token, wire) in target.open_many(Job::Echo, count)?.into_iter().enumerate() {
            wire.socket().set_nonblocking(true)?;
            poller.add(wire.socket(), token, Interest::IN)?;
            conns.push(Self { wire, counts_from: Instant::now(), missing: 0 });
        }
        Ok((poller, conns))
    }

    pub(super) fn send(&mut self, ping: &[u8], counts_from: Instant) -> io::Result<()> {
        self.counts_from = counts_from;
        self.missing = ping.len();
        // The socket buffer is empty, so the write is complete.
        self.wire.write_all(ping)
    }

    /// Receives; returns when the last byte of the ping has arrived.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<Instant>> {
        match self.wire.read(buffer) {
            Ok(0) => Err(closed()),
            Ok(length) => {
                let whole = self.missing.checked_sub(length);
                self.missing = whole.ok_or_else(|| io::Error::other("received more than was sent"))?;
                Ok((self.missing == 0).then(Instant::now))
            }
            Err(error) if try_again(&error) => Ok(None),
            Err(error) => Err(error),
        }
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
    fn pingpong_receives_every_ping_and_resets_between_runs() {
        let hello = Arc::new(Hello::new().unwrap());
        let backend = Backend::start(Arc::clone(&hello), Ipv4Addr::LOCALHOST.into()).unwrap();
        let target = Target::plain(backend.address, &hello);
        let stop = Stop::default();
        for bytes in [64, 16 << 10] {
            let mut pings = PingPong::open(&target, bytes, 4).unwrap();
            assert!(pings.run(Instant::now() + Duration::from_millis(20), &stop).unwrap().len() >= 4);
            assert_eq!(pings.run(Instant::now(), &stop).unwrap().len(), 4, "one for each connection");
        }
    }
}
