//! TLS that ends or begins in the proxy: handshakes, bulk transfers, round trips and memory. The load generator's own
//! TLS runs beside the proxy, so each figure comes with how busy the proxy's worker was.

use std::io;

use super::mixed::{PING, beside_bulk};
use super::short::{IN_FLIGHT, RATE};
use super::{Case, bulk, idle, pingpong, plural, warm_then_count, warm_then_count_apart};
use crate::backend::Backend;
use crate::contender::Contender;
use crate::ends::{End, NAME, Way};
use crate::lab::Lab;
use crate::load::{Bulk, Closer, Direction, Handshakes, PingPong, Short, Visit, handshakes};
use crate::sample::{Figure, Sample, Work, number};

const RESUMED: Figure = Figure::more("resumed", "resumed", "%");
/// Enough that the proxy always has a handshake to work on.
const THREADS: usize = 8;

/// What a system with TLS of its own is loaded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    Handshakes,
    ResumedHandshakes,
    Bulk { connections: usize },
    PingPong { connections: usize },
    Mixed,
    Idle { connections: u16 },
}

impl Load {
    pub(super) const ALL: [Self; 10] = [
        Self::Handshakes,
        Self::ResumedHandshakes,
        Self::Bulk { connections: 1 },
        Self::Bulk { connections: 4 },
        Self::Bulk { connections: 64 },
        Self::PingPong { connections: 1 },
        Self::PingPong { connections: 16 },
        Self::Mixed,
        Self::Idle { connections: 1000 },
        Self::Idle { connections: 8000 },
    ];
    pub(super) const QUICK: [Self; 3] =
        [Self::Handshakes, Self::Bulk { connections: 4 }, Self::Idle { connections: 1000 }];

    pub(super) fn title(self) -> String {
        match self {
            Self::Handshakes => "full handshakes".into(),
            Self::ResumedHandshakes => "resumed handshakes".into(),
            Self::Bulk { connections } => format!("bulk down, {}", plural(connections, "connection")),
            Self::PingPong { connections } => {
                format!("round trips of {PING} B, {}", plural(connections, "connection"))
            }
            Self::Mixed => format!("round trips of {PING} B beside 32 bulk connections"),
            Self::Idle { connections } => format!("{connections} connections that carry nothing"),
        }
    }
}

/// The cases of both ends.
pub(super) fn cases(loads: &[Load]) -> Vec<Case> {
    let of = |end| loads.iter().map(move |load| Case::Ends { end, load: *load });
    End::ALL.into_iter().flat_map(of).collect()
}

pub(super) fn measure(lab: &Lab, contender: &Contender, end: End, load: Load) -> io::Result<Sample> {
    let world = lab.ends()?;
    let way = match (end, load) {
        (End::Originate, Load::ResumedHandshakes) => Way::OriginateResuming,
        _ => end.way(),
    };
    let fresh = matches!(load, Load::Idle { .. }).then(|| contender.start_ends(lab, way)).transpose()?;
    let running = match &fresh {
        Some(running) => running,
        None => contender.ends(way)?,
    };
    let service = world.service(way).unwrap_or(&lab.loopback.backend);
    let corrupt = service.corrupt();
    let target = world.target(end, running.address);
    let processes = &running.processes;
    let sample = match load {
        Load::Handshakes | Load::ResumedHandshakes => {
            let resumes = load == Load::ResumedHandshakes;
            let (done, usage) = match end {
                End::Terminate => {
                    let (config, first) = (world.client(resumes), world.once());
                    let visit = Visit { address: running.address, config, server: NAME, first: &first };
                    warm_then_count_apart(lab, processes, |until| {
                        handshakes(visit, THREADS, until, &lab.stop)
                    })?
                }
                End::Originate => {
                    let mut short = Short::new(&target, Closer::Server, IN_FLIGHT)?;
                    warm_then_count_apart(lab, processes, |until| {
                        let before = service.resumed();
                        let times = short.run(until, &lab.stop)?.clone();
                        Ok(Handshakes { times, resumed: service.resumed() - before })
                    })?
                }
            };
            let made = number(done.times.len());
            let mut sample = Sample::new(RATE, made / usage.wall);
            if resumes {
                sample = sample.and(RESUMED, number(done.resumed) / made * 100.0);
            }
            let work = Work::connections(done.times.len());
            sample.with_latency(&done.times).with_busy(&usage).with_usage(&usage, work)
        }
        Load::Bulk { connections } => {
            let mut transfers = Bulk::open(&target, Direction::Down, connections)?;
            let (bytes, usage) = warm_then_count(lab, processes, |until| transfers.run(until, &lab.stop))?;
            bulk::sample(bytes, &usage).with_busy(&usage)
        }
        Load::PingPong { connections } => {
            let mut pings = PingPong::open(&target, PING, connections)?;
            let (times, usage) =
                warm_then_count_apart(lab, processes, |until| pings.run(until, &lab.stop).cloned())?;
            let sample = Sample::of_p50(&times).and(pingpong::RATE, number(times.len()) / usage.wall);
            sample.with_busy(&usage).with_usage(&usage, Work::round_trips(times.len()))
        }
        Load::Mixed => beside_bulk(lab, running, &target)?,
        Load::Idle { connections } => idle::cost(lab, running, (&target, service), connections)?,
    };
    check(lab, service, corrupt)?;
    Ok(sample)
}

/// Waits until the service has no connection, and checks that it has had no more corrupt ones than before.
fn check(lab: &Lab, service: &Backend, before: usize) -> io::Result<()> {
    service.wait_until_quiet(&lab.stop)?;
    if service.corrupt() > before {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a connection failed at the service"));
    }
    Ok(())
}
