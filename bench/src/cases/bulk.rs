//! Bulk transfers: throughput and cost.

use std::io;

use super::warm_then_count;
use crate::contender::Contender;
use crate::cpu::Usage;
use crate::lab::Lab;
use crate::load::{Bulk, Direction};
use crate::sample::{Figure, Sample, Work, number};

const THROUGHPUT: Figure = Figure::more("throughput", "throughput", "GB/s");

pub(super) fn measure(
    lab: &Lab,
    contender: &Contender,
    direction: Direction,
    connections: usize,
) -> io::Result<Sample> {
    let backend = &lab.loopback.backend;
    let running = contender.near();
    let mut bulk = Bulk::open(&lab.loopback.target(running.address), direction, connections)?;
    let (bytes, usage) = warm_then_count(lab, &running.processes, |until| {
        let before = backend.taken_in();
        let down = bulk.run(until, &lab.stop)?;
        Ok(down + (backend.taken_in() - before))
    })?;
    Ok(sample(bytes, &usage))
}

/// The figures of this many bytes.
pub(super) fn sample(bytes: u64, usage: &Usage) -> Sample {
    let sample = Sample::new(THROUGHPUT, number(bytes) / 1e9 / usage.wall);
    sample.with_usage(usage, Work::bytes(bytes))
}
