//! Failover: one of two endpoints fails in one of several ways while calls go on at a fixed rate. The first half of a
//! window is steady; then the endpoint fails, and every call counts: those that fail, and how much longer the others
//! take.

use std::io;
use std::time::Instant;

use hdrhistogram::Histogram;

use super::WARM_UP;
use crate::backend::failing::{Failing, Shape};
use crate::contender::Contender;
use crate::lab::Lab;
use crate::load::calls;
use crate::sample::{Figure, Sample, number};

const RATE: u32 = 500;

const ANSWERED: Figure = Figure::more("answered", "calls answered", "of 1 000");
const FAILED: Figure = Figure::less("failed", "calls failed", "");
const ADDED_P50: Figure = Figure::less("added_p50", "added to p50", "µs");
const ADDED_P99: Figure = Figure::less("added_p99", "added to p99", "µs");
const ADDED_MAX: Figure = Figure::less("added_max", "added to max", "µs");

pub(super) fn measure(lab: &Lab, contender: &Contender, shape: Shape) -> io::Result<Sample> {
    let mut endpoint = Failing::start()?;
    let running = contender.start_failover(lab, endpoint.address)?;
    let target = lab.loopback.target(running.address);
    calls(&target, RATE, Instant::now() + WARM_UP, &lab.stop)?;
    let steady = calls(&target, RATE, Instant::now() + lab.window, &lab.stop)?;
    if steady.failed > 0 {
        return Err(io::Error::other(format!("{} calls failed before the endpoint did", steady.failed)));
    }
    endpoint.fail(shape)?;
    let moved = calls(&target, RATE, Instant::now() + lab.window, &lab.stop)?;
    let made = moved.times.len() + moved.failed;
    let added = |value: fn(&Histogram<u64>) -> u64| {
        (number(value(&moved.times)) - number(value(&steady.times))) / 1e3
    };
    Ok(Sample::new(ANSWERED, number(moved.times.len()) * 1e3 / number(made))
        .and(FAILED, number(moved.failed))
        .and(ADDED_P50, added(|times| times.value_at_quantile(0.5)))
        .and(ADDED_P99, added(|times| times.value_at_quantile(0.99)))
        .and(ADDED_MAX, added(Histogram::max))
        .with_latency(&moved.times))
}
