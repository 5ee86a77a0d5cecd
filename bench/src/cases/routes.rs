//! Many services: the time to load and change the tables, their memory and the cost of a lookup, in a fresh
//! process.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::short::IN_FLIGHT;
use super::warm_then_count;
use crate::contender::Contender;
use crate::lab::Lab;
use crate::load::{Closer, Short};
use crate::proc::Holdings;
use crate::sample::{Figure, Sample, Work, number};

const CHANGE: Figure = Figure::less("change", "one more service is live after", "ms");
const START: Figure = Figure::less("start", "routes after", "s");
const REST_RSS: Figure = Figure::less("rest_rss", "RSS at rest", "MiB");
const EACH: Figure = Figure::less("per_service", "each service", "KiB");
const RATE: Figure = Figure::more("rate", "connections over all services", "conn/s");

/// Time limit to load or change the tables; a system that exceeds it does not support that many services.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pause after the start: a process may still be busy, and HAProxy would even miss a signal.
const SETTLE: Duration = Duration::from_millis(500);
/// Fewest services for a meaningful memory figure per service.
const ENOUGH: u32 = 1000;

pub(super) fn measure(lab: &Lab, contender: &Contender, services: u32) -> io::Result<Sample> {
    let empty = Holdings::read(&contender.start_fresh(lab, 1)?.processes)?;
    let began = Instant::now();
    let started = contender.start_patiently(lab, services, PATIENCE);
    let mut running = started.map_err(|error| too_many(services, &error))?;
    let start = began.elapsed();
    thread::sleep(SETTLE);
    let rest = Holdings::read(&running.processes)?;

    let published = contender.publish(lab, &running, services + 1)?;
    let changed = running.wait_until_routing(&lab.loopback, services, PATIENCE, &lab.stop);
    changed.map_err(|error| too_many(services, &error))?;
    let change = published.elapsed();
    running.look_for_processes();

    let target = lab.loopback.target(running.address);
    let mut short = Short::new(&target, Closer::Server, IN_FLIGHT)?.over_services(services);
    let (times, usage) =
        warm_then_count(lab, &running.processes, |until| short.run(until, &lab.stop).cloned())?;
    let mut sample = Sample::new(RATE, number(times.len()) / usage.wall)
        .and(START, start.as_secs_f64())
        .and(CHANGE, change.as_secs_f64() * 1e3)
        .and(REST_RSS, number(rest.rss) / 1024.0);
    if services >= ENOUGH {
        sample = sample.and(EACH, (number(rest.pss) - number(empty.pss)) / f64::from(services));
    }
    Ok(sample.with_latency(&times).with_usage(&usage, Work::connections(times.len())))
}

/// An unsupported number of services is a result, not a failed measurement.
fn too_many(services: u32, error: &io::Error) -> io::Error {
    let kind =
        if error.kind() == io::ErrorKind::TimedOut { io::ErrorKind::Unsupported } else { error.kind() };
    io::Error::new(kind, format!("does not support {services} services: {error}"))
}
