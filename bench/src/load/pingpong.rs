//! Small round trips in a closed loop: each connection sends the next ping when the last came back.
//! A closed loop hides how long a stall would have kept others waiting; open loops are not done here.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use hdrhistogram::Histogram;

use super::{PATIENCE, Target, closed};
use crate::hello::Job;
use crate::poller::{Interest, Poller, Ready, try_again};
use crate::stop::Stop;

const PING: usize = 128;
/// A minute in nanoseconds: the longest round trip that the histogram can hold.
const LONGEST: u64 = 60_000_000_000;

/// Open connections with a ping each, and the round trips so far.
#[derive(Debug)]
pub(crate) struct PingPong {
    poller: Poller,
    conns: Vec<Conn>,
    round_trips: Histogram<u64>,
}

#[derive(Debug)]
struct Conn {
    stream: TcpStream,
    sent: Instant,
    missing: usize,
}

impl PingPong {
    pub(crate) fn open(target: &Target, count: usize) -> io::Result<Self> {
        let poller = Poller::new()?;
        let mut conns = Vec::with_capacity(count);
        for (token, stream) in target.open_many(Job::Echo, count)?.into_iter().enumerate() {
            stream.set_nonblocking(true)?;
            poller.add(&stream, token, Interest::IN)?;
            conns.push(Conn { stream, sent: Instant::now(), missing: 0 });
        }
        let round_trips = Histogram::new_with_max(LONGEST, 3).map_err(io::Error::other)?;
        Ok(Self { poller, conns, round_trips })
    }

    /// Pings until then, and gives the round trips of this call in nanoseconds. No ping is under way
    /// before or after.
    pub(crate) fn run(&mut self, until: Instant, stop: &Stop) -> io::Result<&Histogram<u64>> {
        let mut ready = Ready::new();
        self.round_trips.reset();
        for conn in &mut self.conns {
            conn.send()?;
        }
        let mut under_way = self.conns.len();
        while under_way > 0 {
            stop.check()?;
            self.poller.wait(&mut ready)?;
            for (token, _) in ready.iter() {
                let Some(conn) = self.conns.get_mut(token) else { continue };
                let Some(now) = conn.receive()? else { continue };
                let nanoseconds = u64::try_from(now.duration_since(conn.sent).as_nanos()).unwrap_or(LONGEST);
                self.round_trips.saturating_record(nanoseconds);
                if now < until { conn.send()? } else { under_way -= 1 }
            }
            if Instant::now() > until + PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "a ping did not come back"));
            }
        }
        Ok(&self.round_trips)
    }
}

impl Conn {
    fn send(&mut self) -> io::Result<()> {
        self.sent = Instant::now();
        self.missing = PING;
        // Into an empty socket buffer: this is never short.
        self.stream.write_all(&[0x77; PING])
    }

    /// The moment at which the last byte of the ping was back.
    fn receive(&mut self) -> io::Result<Option<Instant>> {
        let mut buffer = [0; PING];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(closed()),
            Ok(length) => {
                let whole = self.missing.checked_sub(length);
                self.missing = whole.ok_or_else(|| io::Error::other("more came back than was sent"))?;
                Ok((self.missing == 0).then(Instant::now))
            }
            Err(error) if try_again(&error) => Ok(None),
            Err(error) => Err(error),
        }
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
    fn known_times_give_known_quantiles() {
        let mut times = Histogram::<u64>::new_with_max(LONGEST, 3).unwrap();
        for microseconds in 1..=1000_u64 {
            times.saturating_record(microseconds * 1000);
        }
        for (quantile, microseconds) in [(0.5, 500), (0.99, 990), (1.0, 1000)] {
            let found = times.value_at_quantile(quantile);
            assert!(found.abs_diff(microseconds * 1000) <= microseconds, "{quantile}: {found}");
        }
        times.saturating_record(u64::MAX);
        assert!(times.max() >= LONGEST, "what is too long is counted as the longest");
    }

    #[test]
    fn every_ping_comes_back_and_a_second_run_starts_at_none() {
        let hello = Arc::new(Hello::new().unwrap());
        let backend = Backend::start(Arc::clone(&hello)).unwrap();
        let target = Target { address: backend.address, hello };
        let stop = Stop::default();
        let mut pings = PingPong::open(&target, 4).unwrap();
        assert!(pings.run(Instant::now() + Duration::from_millis(20), &stop).unwrap().len() >= 4);
        assert_eq!(pings.run(Instant::now(), &stop).unwrap().len(), 4, "one for each connection");
    }
}
