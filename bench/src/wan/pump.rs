//! Moves packets between the two devices of a link at the times that [`Lane`] decides.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tappers::Tun;

use super::MTU;
use super::lane::Lane;
use crate::poller::{Interest, Poller, Ready, try_again};
use crate::stop::Stop;

/// Higher priority than the measured programs: if they delayed packets, their CPU time would count twice.
const NICE: i32 = -15;

/// Both directions of a link.
pub(crate) struct Pump {
    ways: [Way; 2],
    timer: OwnedFd,
    poller: Poller,
    dropped: Arc<AtomicU64>,
    buffer: Vec<u8>,
}

/// One direction, from device to device.
struct Way {
    from: Arc<Tun>,
    to: Arc<Tun>,
    lane: Lane,
    /// In order of time, as a lane never reorders.
    under_way: VecDeque<(Duration, Vec<u8>)>,
}

impl Pump {
    pub(crate) fn new(devices: [Tun; 2], lanes: [Lane; 2], dropped: Arc<AtomicU64>) -> io::Result<Self> {
        let [near, far] = devices.map(Arc::new);
        let poller = Poller::new()?;
        poller.add(&*near, 0, Interest::IN)?;
        poller.add(&*far, 1, Interest::IN)?;
        // An epoll timeout is not exact enough: the kernel adds slack of a thousandth.
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        poller.add(&timer, 2, Interest::IN)?;
        let way = |from: &Arc<Tun>, to: &Arc<Tun>, lane| Way {
            from: Arc::clone(from),
            to: Arc::clone(to),
            lane,
            under_way: VecDeque::new(),
        };
        let [there, back] = lanes;
        let ways = [way(&near, &far, there), way(&far, &near, back)];
        Ok(Self { ways, timer, poller, dropped, buffer: vec![0; usize::from(MTU)] })
    }

    pub(crate) fn run(&mut self, stop: &Stop) -> io::Result<()> {
        // For this thread only. Without the privilege, packets are on time only while the machine is quiet.
        let _ = rustix::process::nice(NICE);
        let mut ready = Ready::new();
        while !stop.requested() {
            self.poller.wait(&mut ready)?;
            for way in &mut self.ways {
                way.take_in(&mut self.buffer, &self.dropped)?;
                way.deliver()?;
            }
            self.set_timer()?;
        }
        Ok(())
    }

    /// Sets the timer to the next packet's time, which may have passed. Setting it also clears its readiness.
    fn set_timer(&self) -> io::Result<()> {
        let next = self.ways.iter().filter_map(|way| way.under_way.front().map(|(time, _)| *time)).min();
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = match next {
            Some(time) => Timespec::try_from(time).map_err(io::Error::other)?,
            None => never,
        };
        let setting = Itimerspec { it_interval: never, it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &setting)?;
        Ok(())
    }
}

impl Way {
    fn take_in(&mut self, buffer: &mut [u8], dropped: &AtomicU64) -> io::Result<()> {
        loop {
            let length = match self.from.recv(buffer) {
                Ok(length) => length,
                Err(error) if try_again(&error) => return Ok(()),
                Err(error) => return Err(error),
            };
            let packet = buffer.get(..length).unwrap_or_default();
            match self.lane.offer(length, now()) {
                Some(time) => self.under_way.push_back((time, packet.to_vec())),
                None => drop(dropped.fetch_add(1, Ordering::Relaxed)),
            }
        }
    }

    fn deliver(&mut self) -> io::Result<()> {
        while let Some((_, packet)) = self.under_way.pop_front_if(|(time, _)| *time <= now()) {
            self.to.send(&packet)?;
        }
        Ok(())
    }
}

/// Current time on the timer's clock.
fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}
