//! Round trips in an open loop: pings are due at a fixed rate, whether or not the earlier ones have returned.
//! Latency counts from when a ping was *due*, so a stall is charged to every ping that it delayed and not
//! only to the few in flight (coordinated omission).

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::pingpong::Pinged;
use super::{PATIENCE, Target};
use crate::poller::{Interest, Poller, Ready};
use crate::sample::{histogram, record};
use crate::stop::Stop;

/// Wakes a poller at a given time, exact to some microseconds; epoll timeouts are rounded to a millisecond.
#[derive(Debug)]
struct Alarm(OwnedFd);

impl Alarm {
    fn new(poller: &Poller) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let alarm = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // Edge-triggered: it need not be read; setting it re-arms it.
        poller.add(&alarm, ALARM, Interest::IN | Interest::ET)?;
        Ok(Self(alarm))
    }

    fn set(&self, after: Duration) -> io::Result<()> {
        // Zero would disarm it.
        let it_value = Timespec::try_from(after.max(Duration::from_nanos(1))).map_err(io::Error::other)?;
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

const ALARM: usize = usize::MAX;

/// The due times of the pings.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    start: Instant,
    per_second: u32,
}

impl Schedule {
    fn due(self, ping: u64) -> Instant {
        let (whole, part) = (ping / u64::from(self.per_second), ping % u64::from(self.per_second));
        self.start
            + Duration::from_secs(whole)
            + Duration::from_nanos(part * 1_000_000_000 / u64::from(self.per_second))
    }
}

/// Open connections that share the pings, with the recorded round trips.
#[derive(Debug)]
pub(crate) struct Paced {
    poller: Poller,
    alarm: Alarm,
    conns: Vec<Pinged>,
    /// Connections without a ping in flight.
    free: Vec<usize>,
    ping: Vec<u8>,
    buffer: Vec<u8>,
    per_second: u32,
    round_trips: Histogram<u64>,
}

impl Paced {
    pub(crate) fn open(target: &Target, bytes: usize, count: usize, per_second: u32) -> io::Result<Self> {
        let (poller, conns) = Pinged::open_many(target, count)?;
        let (ping, buffer) = (vec![0x77; bytes], vec![0; bytes]);
        let (alarm, free) = (Alarm::new(&poller)?, (0..count).collect());
        Ok(Self { poller, alarm, conns, free, ping, buffer, per_second, round_trips: histogram()? })
    }

    /// Pings until this time; returns the latencies in nanoseconds. Every due ping is sent and awaited,
    /// however late.
    ///
    /// # Errors
    /// If the last ping has not returned 5 s after the end: the rate is too high for the system.
    pub(crate) fn run(&mut self, until: Instant, stop: &Stop) -> io::Result<&Histogram<u64>> {
        let schedule = Schedule { start: Instant::now(), per_second: self.per_second };
        let (mut next, mut ready) = (0, Ready::new());
        self.round_trips.reset();
        loop {
            stop.check()?;
            let now = Instant::now();
            while schedule.due(next) <= now.min(until) {
                let Some(token) = self.free.pop() else { break };
                let Some(conn) = self.conns.get_mut(token) else { continue };
                conn.send(&self.ping, schedule.due(next))?;
                next += 1;
            }
            let all_sent = schedule.due(next) > until;
            if all_sent && self.free.len() == self.conns.len() {
                return Ok(&self.round_trips);
            }
            if now > until + PATIENCE {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the system cannot keep up with the rate",
                ));
            }
            if !all_sent && !self.free.is_empty() {
                self.alarm.set(schedule.due(next) - now)?;
            }
            self.poller.wait(&mut ready)?;
            for (token, _) in ready.iter() {
                let Some(conn) = self.conns.get_mut(token) else { continue };
                let Some(now) = conn.receive(&mut self.buffer)? else { continue };
                record(&mut self.round_trips, now.duration_since(conn.counts_from));
                self.free.push(token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};
    use std::sync::Arc;
    use std::thread;

    use super::*;
    use crate::backend::Backend;
    use crate::hello::{ANSWER, Hello};
    use crate::load::PingPong;

    const BYTES: usize = 64;

    #[test]
    fn paced_pings_are_due_at_even_intervals_without_drift() {
        let schedule = Schedule { start: Instant::now(), per_second: 3 };
        assert_eq!(schedule.due(0), schedule.start);
        assert_eq!(schedule.due(1), schedule.start + Duration::from_nanos(333_333_333));
        assert_eq!(schedule.due(300), schedule.start + Duration::from_secs(100));
    }

    #[test]
    fn paced_load_sends_every_due_ping_and_receives_it() {
        let hello = Arc::new(Hello::new().unwrap());
        let backend = Backend::start(Arc::clone(&hello), Ipv4Addr::LOCALHOST.into()).unwrap();
        let target = Target::plain(backend.address, &hello);
        let mut pings = Paced::open(&target, BYTES, 4, 1000).unwrap();
        let times = pings.run(Instant::now() + Duration::from_millis(100), &Stop::default()).unwrap();
        // Fewer if this thread was delayed before the first ping was due.
        assert!((50..=101).contains(&times.len()), "{} in 100 ms at 1000/s", times.len());
    }

    /// An echo server for one connection that delays one ping by 200 ms.
    fn stalls_once(hello: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            stream.read_exact(&mut vec![0; hello]).unwrap();
            stream.write_all(&[ANSWER]).unwrap();
            let mut ping = [0; BYTES];
            for number in 0_u32.. {
                if stream.read_exact(&mut ping).is_err() {
                    return;
                }
                if number == 20 {
                    thread::sleep(Duration::from_millis(200));
                }
                stream.write_all(&ping).unwrap();
            }
        });
        address
    }

    /// Coordinated omission: at 1000 pings per second a stall of 200 ms delays 200 of them, by 100 ms on
    /// average. A closed loop sees one slow ping.
    #[test]
    fn paced_latency_charges_stall_to_every_delayed_ping() {
        let hello = Arc::new(Hello::new().unwrap());
        let target = || Target::plain(stalls_once(hello.len()), &hello);
        let stop = Stop::default();
        let half_a_second = || Instant::now() + Duration::from_millis(500);
        let slow = |times: &Histogram<u64>| times.count_between(50_000_000, u64::MAX);

        let mut open_loop = Paced::open(&target(), BYTES, 1, 1000).unwrap();
        let times = open_loop.run(half_a_second(), &stop).unwrap();
        assert!(slow(times) >= 100, "{} of {} waited 50 ms or more", slow(times), times.len());

        let mut closed_loop = PingPong::open(&target(), BYTES, 1).unwrap();
        let times = closed_loop.run(half_a_second(), &stop).unwrap();
        assert!(slow(times) <= 5, "{} of {} waited 50 ms or more", slow(times), times.len());
    }
}
