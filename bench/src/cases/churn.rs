//! Churn: short and long connections while a service is added or removed every tenth of a second, in a fresh
//! process that ends with all its generations. Then, in another process, calls to a service with one endpoint
//! that accepts and closes.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::WARM_UP;
use super::short::{IN_FLIGHT, RATE};
use crate::backend::closing::Closing;
use crate::contender::Contender;
use crate::cpu::{Meter, Usage};
use crate::hello::Job;
use crate::lab::Lab;
use crate::load::{Closer, PingPong, Short};
use crate::sample::{CPU_MACHINE, Figure, Sample, number};
use crate::stop::Stop;

const SWAPS: Figure = Figure::more("swaps", "tables published", "1/s");
const LOST: Figure = Figure::less("lost", "connections lost", "");
const CLOSED: Figure = Figure::less("closed", "calls failed of 300, one of two endpoints closes at once", "");
const PING_P99: Figure = Figure::less("ping_p99", "p99 of round trips", "µs");

/// The machine's CPU, as some systems replace their processes and lose their counters.
const CPU: Figure = Figure::less(CPU_MACHINE, "CPU by /proc/stat", "µs/conn");

const SERVICES: u32 = 100;
const BETWEEN: Duration = Duration::from_millis(100);
const LONG: usize = 16;
const PING: usize = 64;

pub(super) fn measure(lab: &Lab, contender: &Contender) -> io::Result<Sample> {
    let running = contender.start_fresh(lab, SERVICES)?;
    let target = lab.loopback.target(running.address);
    let mut short = Short::new(&target, Closer::Server, IN_FLIGHT)?.over_services(SERVICES).forgiving();
    let mut pings = PingPong::open(&target, PING, LONG)?;
    short.run(Instant::now() + WARM_UP, &lab.stop)?;
    let before = short.lost();
    let meter = Meter::start(&[])?;
    let began = Instant::now();
    // Long enough for several swaps, even in a quick run.
    let until = began + lab.window.max(10 * BETWEEN);
    let swap = |number: u32| contender.publish(lab, &running, SERVICES + number % 2).map(drop);
    let (swaps, first_bytes, round_trips) = thread::scope(|scope| {
        let swapping = scope.spawn(|| swap_until(until, &lab.stop, swap));
        let pinging = scope.spawn(|| pings.run(until, &lab.stop).cloned());
        let first_bytes = short.run(until, &lab.stop).cloned();
        let panicked = |_| io::Error::other("a load thread panicked");
        let (swaps, round_trips) = (swapping.join().map_err(panicked)?, pinging.join().map_err(panicked)?);
        io::Result::Ok((swaps?, first_bytes?, round_trips?))
    })?;
    let Usage { wall: seconds, machine, .. } = meter.stop()?;
    let ping_p99 = number(round_trips.value_at_quantile(0.99)) / 1e3;
    Ok(Sample::new(RATE, number(first_bytes.len()) / seconds)
        .and(SWAPS, f64::from(swaps) / seconds)
        .and(LOST, number(short.lost() - before))
        .and(CLOSED, number(beside_closing(lab, contender)?))
        .and(PING_P99, ping_p99)
        .and(CPU, machine * 1e6 / number(first_bytes.len()))
        .with_latency(&first_bytes))
}

/// Calls a service with two endpoints, one of which accepts and closes; returns the number of failed calls.
fn beside_closing(lab: &Lab, contender: &Contender) -> io::Result<u64> {
    const CALLS: u64 = 300;
    let closing = Closing::start()?;
    let running = contender.start_beside_closing(lab, closing.address)?;
    let target = lab.loopback.target(running.address);
    let mut failed = 0;
    for _ in 0..CALLS {
        lab.stop.check()?;
        failed += u64::from(target.open_service(Job::Once, 1).is_err());
    }
    Ok(failed)
}

fn swap_until(until: Instant, stop: &Stop, swap: impl Fn(u32) -> io::Result<()>) -> io::Result<u32> {
    for number in 1.. {
        let next = Instant::now() + BETWEEN;
        swap(number)?;
        if next >= until {
            return Ok(number);
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
        stop.check()?;
    }
    Ok(u32::MAX)
}
