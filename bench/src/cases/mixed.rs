//! Fairness: what small round trips feel of 32 connections that carry all they can.

use std::io;
use std::time::Instant;

use super::WARM_UP;
use crate::contender::Contender;
use crate::cpu::Meter;
use crate::lab::Lab;
use crate::load::{Bulk, Direction, PingPong};
use crate::sample::{Figure, Sample, number};
use crate::stop::Stop;

const RATE: Figure = Figure::more("rate", "rate", "trips/s");
const BESIDE: Figure = Figure::more("throughput", "bulk beside", "GB/s");
const CONNECTIONS: usize = 32;
const PING: usize = 128;

pub(super) fn measure(lab: &Lab, contender: &Contender) -> io::Result<Sample> {
    let running = contender.near();
    let target = lab.loopback.target(running.address);
    let mut downloads = Bulk::open(&target, Direction::Down, CONNECTIONS)?;
    let mut pings = PingPong::open(&target, PING, 1)?;
    let enough = Stop::default();
    std::thread::scope(|scope| {
        let bulk = scope.spawn(|| {
            let began = Instant::now();
            let bytes = downloads.run_until_stopped(&enough)?;
            io::Result::Ok(number(bytes) / 1e9 / began.elapsed().as_secs_f64())
        });
        let mut ping = || {
            pings.run(Instant::now() + WARM_UP, &lab.stop)?;
            let meter = Meter::start(&running.processes)?;
            // Longer than others: one stall of a second must not be missed.
            let times = pings.run(Instant::now() + 2 * lab.window, &lab.stop)?;
            let usage = meter.stop()?;
            let sample = Sample::of_p99(times).and(RATE, number(times.len()) / usage.wall);
            io::Result::Ok(Sample { gap: Some(usage.gap()), ..sample })
        };
        let sample = ping();
        // Also when the pings failed: the other thread waits for this.
        enough.request();
        let throughput = bulk.join().map_err(|_| io::Error::other("the bulk load panicked"))??;
        Ok(sample?.and(BESIDE, throughput))
    })
}
