//! Round trips: latency and cost.

use std::io;

use super::{Pace, warm_then_count_apart};
use crate::contender::Contender;
use crate::lab::Lab;
use crate::load::{Paced, PingPong};
use crate::sample::{Figure, Sample, Work, number};

pub(super) const RATE: Figure = Figure::more("rate", "rate", "trips/s");

pub(super) fn measure(
    lab: &Lab,
    contender: &Contender,
    bytes: usize,
    connections: usize,
    pace: Pace,
) -> io::Result<Sample> {
    let running = contender.near();
    let target = lab.loopback.target(running.address);
    let (times, usage) = match pace {
        Pace::Closed => {
            let mut pings = PingPong::open(&target, bytes, connections)?;
            warm_then_count_apart(lab, &running.processes, |until| pings.run(until, &lab.stop).cloned())?
        }
        Pace::Open(rate) => {
            let mut pings = Paced::open(&target, bytes, connections, rate)?;
            warm_then_count_apart(lab, &running.processes, |until| pings.run(until, &lab.stop).cloned())?
        }
    };
    let rate = number(times.len()) / usage.wall;
    let sample = match pace {
        Pace::Closed => Sample::new(RATE, rate).with_latency(&times),
        Pace::Open(_) => Sample::of_p99(&times).and(RATE, rate),
    };
    Ok(sample.with_usage(&usage, Work::round_trips(times.len())))
}
