//! Memory of idle connections, in a fresh process: memory that was used before would hide the growth.

use std::io;

use crate::backend::Backend;
use crate::contender::Contender;
use crate::hello::Job;
use crate::lab::Lab;
use crate::load::Target;
use crate::proc::{Holdings, Process};
use crate::process::Running;
use crate::sample::{Figure, Sample, number};
use crate::wire::Wire;

const EACH: Figure = Figure::less("per_connection", "each connection", "KiB");
const REST_RSS: Figure = Figure::less("rest_rss", "RSS at rest", "MiB");
const REST_PSS: Figure = Figure::less("rest_pss", "PSS at rest", "MiB");
const PIPES: Figure = Figure::less("pipe_ends", "pipe ends for all", "");
const DESCRIPTORS: Figure = Figure::less("descriptors", "descriptors for all", "");

pub(super) fn measure(lab: &Lab, contender: &Contender, connections: u16) -> io::Result<Sample> {
    let running = contender.start_fresh(lab, 1)?;
    let target = lab.loopback.target(running.address);
    cost(lab, &running, (&target, &lab.loopback.backend), connections)
}

/// What idle connections through a process that has just started cost it.
pub(super) fn cost(
    lab: &Lab,
    running: &Running,
    (target, backend): (&Target, &Backend),
    connections: u16,
) -> io::Result<Sample> {
    let inspect = || Ok((Holdings::read(&running.processes)?, Process::sum(&running.processes)?.descriptors));
    // The first connections also pay one-time costs.
    hold(lab, target, backend, 16, || Ok(()))?;
    let (rest, open_at_rest) = inspect()?;
    let (full, open) = hold(lab, target, backend, connections, inspect)?;
    let growth = number(full.pss) - number(rest.pss);
    Ok(Sample::new(EACH, growth / f64::from(connections))
        .and(REST_RSS, number(rest.rss) / 1024.0)
        .and(REST_PSS, number(rest.pss) / 1024.0)
        .and(PIPES, number(full.pipes) - number(rest.pipes))
        .and(DESCRIPTORS, number(open) - number(open_at_rest)))
}

/// Holds connections open while `inspect` runs, then lets the backend close them.
fn hold<T>(
    lab: &Lab,
    target: &Target,
    backend: &Backend,
    count: u16,
    inspect: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let mut held = target.open_many(Job::Hold, usize::from(count))?;
    lab.stop.check()?;
    let seen = inspect()?;
    backend.release_held();
    backend.wait_until_quiet(&lab.stop)?;
    held.iter_mut().try_for_each(Wire::read_end)?;
    Ok(seen)
}
