//! Short connections: rate, time to first byte and cost.

use std::io;
use std::thread;
use std::time::Duration;

use super::warm_then_count_apart;
use crate::contender::Contender;
use crate::lab::Lab;
use crate::load::{Closer, Short};
use crate::sample::{Figure, Sample, Work, number};

pub(super) const RATE: Figure = Figure::more("rate", "rate", "conn/s");

pub(super) const IN_FLIGHT: usize = 16;

/// Largest number of connections of a warm-up or a measurement if the client closes first: each uses up a
/// port for a minute. The kernel has 28 000 ports per destination and searches long for the last ones.
const PORTS: u64 = 10_000;

/// On loopback the systems share the backend's address and the ports towards it, which the kernel reuses
/// after a second.
const REUSE: Duration = Duration::from_millis(1100);

pub(super) fn measure(lab: &Lab, contender: &Contender, closer: Closer, veth: bool) -> io::Result<Sample> {
    let place = lab.place(veth)?;
    let far = veth.then(|| contender.start_far(lab)).transpose()?;
    let running = far.as_ref().unwrap_or_else(|| contender.near());
    let target = place.target(running.address);
    if closer == Closer::Client && !veth {
        thread::sleep(REUSE);
    }
    let most = if closer == Closer::Client { PORTS } else { u64::MAX };
    let (times, usage) = place.as_client(|| {
        let mut short = Short::new(&target, closer, IN_FLIGHT)?.at_most(most);
        warm_then_count_apart(lab, &running.processes, |until| short.run(until, &lab.stop).cloned())
    })?;
    let sample = Sample::new(RATE, number(times.len()) / usage.wall).with_latency(&times);
    Ok(sample.with_usage(&usage, Work::connections(times.len())))
}
