//! The scenarios and their cases, one file per scenario. For rounds and order see [`crate::compare`], for the
//! presentation [`crate::report`].

mod bulk;
mod churn;
pub(crate) mod ends;
mod failover;
mod idle;
mod mixed;
mod pingpong;
mod routes;
mod short;
mod tls;

use std::io;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::affinity::Apart;
use crate::backend::failing::Shape;
use crate::contender::Contender;
use crate::cpu::{Meter, Usage};
use crate::ends::End;
use crate::lab::Lab;
use crate::load::{Closer, Direction};
use crate::sample::Sample;

/// Load before each measurement, to fill buffers, caches and lazy allocations.
const WARM_UP: Duration = Duration::from_millis(150);

/// Descriptors reserved for everything else.
const SPARE: u64 = 1000;

/// The scenarios to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Bulk transfers: down, up, both ways; 1, 4, 64 connections.
    Bulk,
    /// Round trips: 64 B, 1 KiB, 16 KiB; 1, 16, 256 connections; at full speed and at fixed rates. The proxy
    /// has a core to itself.
    Pingpong,
    /// Short connections of one exchange each; closed by the client or by the server, on loopback and across
    /// veth pairs. The proxy has a core to itself.
    Short,
    /// Small round trips beside 32 bulk connections.
    Mixed,
    /// Full mTLS handshakes through the proxy.
    Tls,
    /// Memory of 1 000 and 8 000 idle connections.
    Idle,
    /// Short and long connections while the tables are swapped 10 times a second.
    Churn,
    /// 10, 1 000, 100 000 services: lookup, reload, memory.
    Routes,
    /// TLS that ends and begins in the proxy, with client certificates: handshakes, bulk transfers, round trips, memory.
    /// Traefik is left out. For handshakes and round trips the proxy has a core to itself.
    TlsEnds,
    /// Calls at a fixed rate while one of two endpoints fails, in six ways. nginx and Traefik are left out.
    Failover,
}

/// A case: one table of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Case {
    Bulk { direction: Direction, connections: usize },
    Ends { end: End, load: ends::Load },
    PingPong { bytes: usize, connections: usize, pace: Pace },
    Short { closer: Closer, veth: bool },
    Mixed,
    Tls,
    Idle { connections: u16 },
    Churn,
    Routes { services: u32 },
    Failover { shape: Shape },
}

/// When a ping is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// When the previous one has returned.
    Closed,
    /// At this rate per second over all connections.
    Open(u32),
}

impl Scenario {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub(crate) fn cases(self) -> Vec<Case> {
        match self {
            Self::Bulk => [Direction::Down, Direction::Up, Direction::Both]
                .into_iter()
                .flat_map(|direction| [1, 4, 64].map(|connections| Case::Bulk { direction, connections }))
                .collect(),
            Self::Pingpong => {
                let closed = [64, 1 << 10, 16 << 10].into_iter().flat_map(|bytes| {
                    [1, 16, 256].map(|connections| Case::PingPong { bytes, connections, pace: Pace::Closed })
                });
                let open = [2_000, 10_000].map(|rate| Case::PingPong {
                    bytes: 64,
                    connections: 16,
                    pace: Pace::Open(rate),
                });
                closed.chain(open).collect()
            }
            Self::Short => [
                (Closer::Server, false),
                (Closer::Client, false),
                (Closer::Server, true),
                (Closer::Client, true),
            ]
            .map(|(closer, veth)| Case::Short { closer, veth })
            .into(),
            Self::Mixed => vec![Case::Mixed],
            Self::Tls => vec![Case::Tls],
            Self::Idle => [1000, 8000].map(|connections| Case::Idle { connections }).into(),
            Self::Churn => vec![Case::Churn],
            Self::Routes => [10, 1000, 100_000].map(|services| Case::Routes { services }).into(),
            Self::TlsEnds => ends::cases(&ends::Load::ALL),
            Self::Failover => Shape::ALL.map(|shape| Case::Failover { shape }).into(),
        }
    }

    /// A few representative cases for `--quick`.
    pub(crate) fn quick_cases(self) -> Vec<Case> {
        let ping = |connections| Case::PingPong { bytes: 64, connections, pace: Pace::Closed };
        match self {
            Self::Bulk => vec![Case::Bulk { direction: Direction::Down, connections: 4 }],
            Self::Pingpong => vec![ping(1), ping(16)],
            Self::Short => vec![Case::Short { closer: Closer::Server, veth: false }],
            Self::Idle => vec![Case::Idle { connections: 1000 }],
            Self::Routes => vec![Case::Routes { services: 1000 }],
            Self::TlsEnds => ends::cases(&ends::Load::QUICK),
            Self::Failover => vec![Case::Failover { shape: Shape::Refuses }],
            Self::Mixed | Self::Tls | Self::Churn => self.cases(),
        }
    }
}

impl Case {
    pub(crate) fn title(self) -> String {
        match self {
            Self::Bulk { direction, connections } => {
                let way = match direction {
                    Direction::Down => "down",
                    Direction::Up => "up",
                    Direction::Both => "both ways at once",
                };
                format!("bulk {way}, {}", plural(connections, "connection"))
            }
            Self::Ends { end, load } => format!("{}: {}", end.name(), load.title()),
            Self::PingPong { bytes, connections, pace } => {
                let pace = match pace {
                    Pace::Closed => String::new(),
                    Pace::Open(rate) => format!(", {rate} a second, timed from when each was due"),
                };
                format!("round trips of {}, {}{pace}", size(bytes), plural(connections, "connection"))
            }
            Self::Short { closer, veth } => {
                let (closer, place) = (
                    if closer == Closer::Client { "client" } else { "server" },
                    if veth { "across veth pairs" } else { "on loopback" },
                );
                format!("short connections, the {closer} closes first, {place}")
            }
            Self::Mixed => "round trips of 128 B beside 32 bulk connections".into(),
            Self::Tls => "mTLS handshakes".into(),
            Self::Idle { connections } => format!("{connections} connections that carry nothing"),
            Self::Churn => "short and long connections, tables swapped 10 times a second".into(),
            Self::Routes { services } => format!("{services} services"),
            Self::Failover { shape } => format!("failover: one of two endpoints {}", shape.title()),
        }
    }

    /// An error if this machine cannot measure the case.
    pub(crate) fn possible(self, lab: &Lab) -> Result<(), String> {
        match self {
            Self::Short { veth: true, .. } => lab.veth().map(drop).map_err(|error| error.to_string()),
            Self::Idle { connections } | Self::Ends { load: ends::Load::Idle { connections }, .. } => {
                // Both ends of each connection are in this process, or in the proxy.
                let needed = 2 * u64::from(connections) + SPARE;
                let allowed = lab.descriptors;
                if needed <= allowed {
                    Ok(())
                } else {
                    Err(format!(
                        "needs {needed} file descriptors, the limit is {allowed}; raise it (ulimit -Hn)"
                    ))
                }
            }
            _ => Ok(()),
        }
    }

    /// Whether the case is also measured without a proxy.
    pub(crate) fn works_direct(self) -> bool {
        !matches!(
            self,
            Self::Idle { .. } | Self::Churn | Self::Routes { .. } | Self::Ends { .. } | Self::Failover { .. }
        )
    }

    /// Whether one round is enough: memory and start-up vary little and take long to measure.
    pub(crate) fn only_once(self) -> bool {
        let is_idle = matches!(self, Self::Ends { load: ends::Load::Idle { .. }, .. });
        is_idle || matches!(self, Self::Idle { .. } | Self::Routes { .. })
    }

    /// Measures once and leaves no connection open.
    pub(crate) fn measure(self, lab: &Lab, contender: &Contender) -> io::Result<Sample> {
        let place = lab.place(matches!(self, Self::Short { veth: true, .. }))?;
        let corrupt = place.backend.corrupt();
        let sample = match self {
            Self::Bulk { direction, connections } => bulk::measure(lab, contender, direction, connections),
            Self::Ends { end, load } => ends::measure(lab, contender, end, load),
            Self::PingPong { bytes, connections, pace } => {
                pingpong::measure(lab, contender, bytes, connections, pace)
            }
            Self::Short { closer, veth } => short::measure(lab, contender, closer, veth),
            Self::Mixed => mixed::measure(lab, contender),
            Self::Tls => tls::measure(lab, contender),
            Self::Idle { connections } => idle::measure(lab, contender, connections),
            Self::Churn => churn::measure(lab, contender),
            Self::Routes { services } => routes::measure(lab, contender, services),
            Self::Failover { shape } => failover::measure(lab, contender, shape),
        }?;
        place.backend.wait_until_quiet(&lab.stop)?;
        if place.backend.corrupt() > corrupt {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a hello reached the backend altered"));
        }
        Ok(sample)
    }
}

/// Runs a load for the warm-up, then for the window while counting CPU.
fn warm_then_count<T>(
    lab: &Lab,
    processes: &[u32],
    mut run: impl FnMut(Instant) -> io::Result<T>,
) -> io::Result<(T, Usage)> {
    run(Instant::now() + WARM_UP)?;
    let meter = Meter::start(processes)?;
    let done = run(Instant::now() + lab.window)?;
    Ok((done, meter.stop()?))
}

/// The same with a core reserved for the proxy, for loads of many short waits.
fn warm_then_count_apart<T>(
    lab: &Lab,
    processes: &[u32],
    run: impl FnMut(Instant) -> io::Result<T>,
) -> io::Result<(T, Usage)> {
    let _apart = Apart::new(processes)?;
    warm_then_count(lab, processes, run)
}

fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn size(bytes: usize) -> String {
    if bytes.is_multiple_of(1024) { format!("{} KiB", bytes / 1024) } else { format!("{bytes} B") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_titles_are_unique() {
        let cases = Scenario::value_variants().iter().flat_map(|scenario| scenario.cases());
        let mut titles: Vec<_> = cases.map(Case::title).collect();
        let count = titles.len();
        titles.sort();
        titles.dedup();
        assert_eq!(titles.len(), count);
    }

    #[test]
    fn quick_cases_are_subset_of_all_cases() {
        for scenario in Scenario::value_variants() {
            let (all, quick) = (scenario.cases(), scenario.quick_cases());
            assert!(!quick.is_empty() && quick.iter().all(|case| all.contains(case)), "{scenario:?}");
        }
    }
}
