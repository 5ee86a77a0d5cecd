//! Full mTLS handshakes with rustls at both ends. Nearly all of the machine's CPU goes to cryptography, which
//! no passthrough proxy does: only the proxy's own share differs.

use std::io;

use super::warm_then_count;
use crate::backend::tls::TLS_NAME;
use crate::contender::Contender;
use crate::lab::Lab;
use crate::load::{Visit, handshakes};
use crate::sample::{Figure, Sample, Work, number};

const RATE: Figure = Figure::more("rate", "rate", "handshakes/s");
const THREADS: usize = 4;

pub(super) fn measure(lab: &Lab, contender: &Contender) -> io::Result<Sample> {
    let service = &lab.loopback.tls;
    let running = contender.near();
    let address = if contender.is_direct() { service.address } else { running.address };
    let visit = Visit { address, config: &service.client, server: TLS_NAME, first: &[] };
    let (done, usage) =
        warm_then_count(lab, &running.processes, |until| handshakes(visit, THREADS, until, &lab.stop))?;
    let times = done.times;
    let sample = Sample::new(RATE, number(times.len()) / usage.wall).with_latency(&times);
    Ok(sample.with_usage(&usage, Work::connections(times.len())))
}
