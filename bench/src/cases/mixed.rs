//! Fairness: latency of small round trips beside 32 bulk connections.

use std::io;
use std::time::Instant;

use super::WARM_UP;
use crate::contender::Contender;
use crate::cpu::Meter;
use crate::lab::Lab;
use crate::load::{Bulk, Direction, PingPong, Target};
use crate::process::Running;
use crate::sample::{Figure, Sample, Work, number};
use crate::stop::Stop;

const RATE: Figure = Figure::more("rate", "rate", "trips/s");
const BESIDE: Figure = Figure::more("throughput", "bulk beside", "GB/s");
const CONNECTIONS: usize = 32;
pub(super) const PING: usize = 128;

pub(super) fn measure(lab: &Lab, contender: &Contender) -> io::Result<Sample> {
    let running = contender.near();
    beside_bulk(lab, running, &lab.loopback.target(running.address))
}

/// Round trips through a process beside bulk transfers.
pub(super) fn beside_bulk(lab: &Lab, running: &Running, target: &Target) -> io::Result<Sample> {
    let mut downloads = Bulk::open(target, Direction::Down, CONNECTIONS)?;
    let mut pings = PingPong::open(target, PING, 1)?;
    let enough = Stop::default();
    let meter = Meter::start(&running.processes)?;
    let (bytes, times, ping_seconds) = std::thread::scope(|scope| {
        let bulk = scope.spawn(|| downloads.run_until_stopped(&enough));
        let mut ping = || {
            pings.run(Instant::now() + WARM_UP, &lab.stop)?;
            let began = Instant::now();
            // Longer than other cases, so that a stall of a second is seen.
            let times = pings.run(began + 2 * lab.window, &lab.stop)?.clone();
            io::Result::Ok((times, began.elapsed().as_secs_f64()))
        };
        let pinged = ping();
        // Even if the pings failed: the bulk thread waits for this.
        enough.request();
        let bytes = bulk.join().map_err(|_| io::Error::other("the bulk load panicked"))??;
        let (times, seconds) = pinged?;
        io::Result::Ok((bytes, times, seconds))
    })?;
    let usage = meter.stop()?;
    let sample = Sample::of_p99(&times)
        .and(RATE, number(times.len()) / ping_seconds)
        .and(BESIDE, number(bytes) / 1e9 / usage.wall);
    Ok(sample.with_usage(&usage, Work::bytes(bytes)))
}
